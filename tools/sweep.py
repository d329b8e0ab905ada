"""Many runs, from a short file to a table: plan, launch, watch, collect.

Example:
    vvlm sweep plan sweeps/star --device "TPU v5p" --mfu 0.5 --price 4.2
    vvlm sweep launch sweeps/star --store runs/star
    vvlm sweep status runs/star --watch
    vvlm sweep collect runs/star

A sweep is a Python file with `sweep() -> SweepConfig`, or a shipped one: sweeps/star and
sweeps/isoflop are Table 6. The store records what is done: after any interruption the same launch
continues.
"""

import dataclasses
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vvlm_jax.config import ConfigError
from vvlm_jax.exit_codes import Exit

from .arguments import read_options
from .common import die_in_one_line, own_command
from .sweep_plan import SWEEP, Plan, load, plan
from .sweep_store import STORE, Cancel, Collect, Retry, Status, cancel, collect, retry, status

_SET = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")]


@dataclasses.dataclass(frozen=True)
class Launch:
    """Run a sweep, or continue it. Several launches may share a store."""

    sweep: SWEEP
    """A Python file that defines `sweep() -> SweepConfig`, or a shipped one: sweeps/star."""
    on: Literal["local", "slurm", "tpu"] = "local"
    """Where: worker processes on this machine, jobs of a Slurm cluster, or files for TPU pods."""
    cluster: _SET = ()
    """Options of the cluster, such as partition=gpu minutes=600 nodes=2 gpus_per_node=8, or
    topology=v5p:2x2x4 project=lab zone=us-east5-a; vvlm_jax/sweep/launch/slurm.py and tpu.py list
    them."""
    workers: int = 0
    """Local worker processes: 0 takes one with all accelerators or, without any, one a core."""
    store: Path | None = None
    """Folder of the sweep, on a filesystem that all workers see, or gs://BUCKET/FOLDER or
    s3://BUCKET/FOLDER; runs/sweeps/NAME by default."""
    set: _SET = ()
    """Overrides, as for plan."""
    dry_run: bool = False
    """Show what would be done (a cluster's scripts), and write nothing."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Do one job of a store in this process, or without a job whatever is left.

    Exit codes: 0 done (now or before), 1 failed (the store says why), 2 bad input or a full disk,
    3 claimed by another worker or waiting for another job, 75 stopped by SIGTERM with its work
    saved: run it again.
    """

    store: STORE
    """Folder of a sweep that was launched."""
    job: tyro.conf.Positional[str | None] = None
    """`RUN/NAME`, as status --jobs lists them."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of process 0, for several hosts that are neither a TPU pod nor run under Slurm."""
    processes: int | None = None
    """Number of processes, with --coordinator."""
    process: int | None = None
    """Number of this process from 0, with --coordinator."""


def launch(args: Launch) -> None:
    """Run the jobs that are left. Exit code 1 when some have failed, 75 after SIGTERM."""
    from vvlm_jax.sweep import clusters, jobs, text
    from vvlm_jax.sweep.launch import local
    from vvlm_jax.sweep.store import sweep_json

    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: must be 0 (all there is) or above")
    config = load(args.sweep, args.set)
    path = args.store or Path("runs/sweeps") / config.name
    if args.on != "local":
        work = own_command("sweep", "work")[1:]  # a cluster may have another interpreter
        print(clusters.launch(args.on, path, config, args.cluster, work, args.dry_run))
        return
    if args.cluster:
        raise ConfigError("--cluster: is for --on slurm and --on tpu")
    path, shares = sweep_json.folder(path), local.shares(args.workers)
    store, missing = jobs.create(path, config, dry_run=True), jobs.missing_inputs(config)
    if args.dry_run:
        done = sum(s.phase == "done" for s in store.states().values()) if store else 0
        kinds = Counter(job.kind for job in jobs.jobs_of(config))
        would = text.launch_plan(config.name, path, kinds, done, [s.text for s in shares])
        print("\n".join([*would, *missing]))
        return
    if missing:
        more = f"; {len(missing) - 1} more are missing, see --dry-run" if len(missing) > 1 else ""
        raise ConfigError(missing[0] + more)
    store = jobs.create(path, config)
    print(f"{len(store.runs)} runs, {len(store.jobs)} jobs in {path}", file=sys.stderr)
    if not local.drive(store, own_command("sweep", "work", str(store.path)), shares):
        sys.exit(Exit.FAILED)


def work(args: Work) -> None:
    """Do a job, or jobs until none is left."""
    from vvlm_jax import devices

    devices.keep_freed_memory()
    from vvlm_jax.progress import Progress
    from vvlm_jax.sweep import worker
    from vvlm_jax.sweep.store.store import Store

    store, stop = Store.open(args.store), worker.Stop()
    if args.job is not None:
        store.job(args.job)
    signal.signal(signal.SIGTERM, stop)
    if args.job is None:
        Progress.shown = False  # the driver has the terminal's line
        try:
            worker.pull(store, kinds(), stop)
        except worker.Interrupted:
            sys.exit(Exit.RETRY)
        return
    hosts = worker.join_hosts(args.coordinator, args.processes, args.process)
    code, message = worker.run_job(store, args.job, kinds(), stop, hosts)
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


def kinds() -> dict:
    """Return the functions of all kinds of jobs, of sweeps and of the study."""
    from vvlm_jax.sweep import controls, jobs

    export = partial(jobs.export, command=own_command("convert"))
    return {**jobs.KINDS, **controls.KINDS, "export": export}


COMMANDS = {
    Plan: plan, Launch: launch, Work: work, Status: status, Retry: retry, Cancel: cancel,
    Collect: collect,
}  # fmt: skip


def main(args) -> None:
    """Run the subcommand that the arguments belong to."""
    COMMANDS[type(args)](args)


def cli() -> None:
    """Read the command line and run the command."""
    kinds = {kind.__name__.lower(): kind for kind in COMMANDS}
    die_in_one_line(lambda: main(read_options(kinds, __doc__)))


if __name__ == "__main__":
    cli()
