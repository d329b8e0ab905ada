"""Many runs, from a short file to a table: plan, launch, watch, collect.

Example:
    python -m tools.sweep plan configs/sweeps/star.py --device "TPU v5p" --mfu 0.5 --price 4.2
    python -m tools.sweep launch configs/sweeps/star.py --store runs/star
    python -m tools.sweep status runs/star --watch
    python -m tools.sweep collect runs/star

A sweep is a Python file with `sweep() -> SweepConfig`; configs/sweeps/ has Table 6. What is done is
in the store alone: interrupted in any way, the same launch continues.
"""

import dataclasses
import fnmatch
import math
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vvlm_jax.config import ConfigError, choose, nearest, override
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import SweepConfig

from .common import die_in_one_line, load_config

_SWEEP = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SWEEP")]
_STORE = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
_NAMES = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME ...")]
_SET = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One row a run: x, n, inference cost, parameters, training FLOPs, device-hours, totals."""

    sweep: _SWEEP
    """A Python file that defines `sweep() -> SweepConfig`, such as configs/sweeps/star.py."""
    set: _SET = ()
    """Overrides, such as finetune.batch_size=128 text_tokens=200."""
    device: str = "NVIDIA H100"
    """Whose peak bfloat16 rate counts."""
    mfu: float = 0.4
    """Share of the peak that training reaches."""
    price: float | None = None
    """Of one device for an hour, in any currency."""
    topology: str | None = None
    """Such as v5p:2x2x4: say which runs fit it, as `tools.compile --sweep` found."""
    compiled: Path = Path("runs/compile")
    """Where tools.compile kept what it found."""
    csv: bool = False
    """Print a header and one row a run, nothing else."""
    json: bool = False
    """Print rows, stage 1, totals and assumptions as JSON."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """Runs a sweep, or goes on with it: any number of drivers may share a store."""

    sweep: _SWEEP
    """A Python file that defines `sweep() -> SweepConfig`."""
    on: Literal["local", "slurm", "tpu"] = "local"
    """Where: worker processes on this machine, jobs of a Slurm cluster, or files for TPU pods."""
    cluster: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """What to ask the cluster for, such as partition=gpu minutes=600 nodes=2 gpus_per_node=8, or
    topology=v5p:2x2x4 project=lab zone=us-east5-a; vvlm_jax/sweep/launch/slurm.py and tpu.py have all.
    """
    workers: int = 0
    """Local worker processes: 0 takes one with all accelerators or, without any, one a core."""
    store: Path | None = None
    """Folder of the sweep, on a filesystem that all workers see, or gs://BUCKET/FOLDER or
    s3://BUCKET/FOLDER; runs/sweeps/NAME by default."""
    set: _SET = ()
    """Overrides, as for plan."""
    dry_run: bool = False
    """Say what would be done (a cluster's scripts), and write nothing."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Does one job of a store in this process, or without a job whatever is left to do.

    Exit codes: 0 done (also when it was already), 1 failed (the store says why), 2 bad input or a
    full disk, 3 claimed by somebody alive or waiting for another job, 75 stopped by SIGTERM with
    its work saved: run it again.
    """

    store: _STORE
    """Folder of a sweep that was launched."""
    job: tyro.conf.Positional[str | None] = None
    """`RUN/NAME`, as status --jobs lists them."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Of several hosts that are neither a TPU pod nor under Slurm: where process 0 is."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which one this is, from 0."""


@dataclasses.dataclass(frozen=True)
class Status:
    """Shows how far the runs are, what fails, how long it will take, and, of a store launched on
    Slurm, the states that it gives the jobs.
    """

    store: _STORE
    """Folder of a sweep."""
    all: bool = False
    """Show every run of a large sweep, also those that are done or wait."""
    jobs: bool = False
    """List jobs, one a line: its name and how far it is."""
    watch: bool = False
    """Show it again every few seconds, until everything has ended."""


@dataclasses.dataclass(frozen=True)
class Retry:
    """Makes failed and cancelled jobs ready again; a launch then does them."""

    store: _STORE
    """Folder of a sweep."""
    names: _NAMES = ()
    """Runs or jobs, * for any text; without names all that failed or were cancelled."""


@dataclasses.dataclass(frozen=True)
class Cancel:
    """Takes jobs out of a sweep; their workers leave them."""

    store: _STORE
    """Folder of a sweep."""
    names: _NAMES = ()
    """Runs or jobs, at least one, * for any text: '*' is everything that is not done."""


@dataclasses.dataclass(frozen=True)
class Collect:
    """Writes the table of runs, as CSV and Parquet, and lists the scores that are missing."""

    store: _STORE
    """Folder of a sweep."""
    out: Path | None = None
    """A .csv or .parquet file; by default runs.csv and, where pyarrow is installed, runs.parquet
    in the store.
    """


def plan(args: Plan) -> None:
    """Prints what a sweep will take."""
    from vvlm_jax import devices
    from vvlm_jax.sweep import plan

    from . import _sweep_text as text

    if args.csv and args.json:
        raise ConfigError("--csv and --json: choose one")
    config = with_counts(load(args.sweep, args.set))
    known = {name: devices.peak_flops(name) for name in devices.known_devices()}
    peak = devices.peak_flops(args.device) or choose(known, args.device, "--device")
    if not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu {args.mfu:g}: must be a share above 0, at most 1")
    if args.price is not None and not 0 < args.price < math.inf:
        raise ConfigError(f"--price {args.price:g}: must be above 0")
    fits = {}
    if args.topology:
        from vvlm_jax.compile.table import known_fits

        configs = sweep_config.configurations(config)
        fits = known_fits(configs, args.topology, args.compiled)
    rate = dict(peak=peak, mfu=args.mfu, price=args.price)
    rows = plan.rows(config, inference_cost(config), fits=fits, **rate)
    stage_1 = plan.stage_1_rows(config, **rate)
    if config.pretrain is not None and not stage_1:
        text.note(
            "warning: stage 1 is not counted: pretrain.data.num_examples is not set, and "
            f"{config.pretrain.data.annotations} is not here"
        )
    totals, assumed = plan.totals(rows, stage_1), {"device": args.device, **rate}
    if args.csv:
        text.plan_csv(rows)
    else:
        (text.plan_json if args.json else text.plan_text)(rows, stage_1, totals, assumed)


def load(path: Path, overrides=()) -> SweepConfig:
    """A sweep's file with overrides, checked. ConfigError in one line."""
    config = override(load_config(path, SweepConfig, "sweep", ""), overrides)
    sweep_config.check(config, _data_size(config))
    return config


def _data_size(config: SweepConfig) -> int | None:
    """Examples there are to finetune on; None when that cannot be known here."""
    if config.data_size is not None:
        return config.data_size
    return _count(config.finetune.data.annotations)


def _count(annotations: str) -> int | None:
    """Examples there are; None when they are not here."""
    if not Path(annotations).exists():
        return None
    from vvlm_jax.data.rows import count_rows

    return count_rows(annotations)


def with_counts(config: SweepConfig) -> SweepConfig:
    """The same with stage 1's number of examples, where all are taken and can be counted."""
    stage = config.pretrain
    if stage is None or stage.data.num_examples is not None:
        return config
    data = dataclasses.replace(stage.data, num_examples=_count(stage.data.annotations))
    return dataclasses.replace(config, pretrain=dataclasses.replace(stage, data=data))


def inference_cost(config: SweepConfig):
    """Equation 1 with the sweep's constants, or its encoder's own: [(x_N, x_T, x_V)] → FLOPs."""
    from fitting.cost import CostConstants
    from vvlm_jax.sweep.plan import encoder

    return CostConstants(**encoder(config))


def launch(args: Launch) -> None:
    """Runs the jobs that are left. Exit code 1 when some have failed, 75 after SIGTERM."""
    from vvlm_jax.sweep import jobs
    from vvlm_jax.sweep.launch import local
    from vvlm_jax.sweep.store import sweep_json
    from vvlm_jax.sweep.store.store import Store

    from . import _sweep_text as text
    from ._sweep_drive import drive

    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: must be 0 (all there is) or above")
    config = load(args.sweep, args.set)
    path = args.store or Path("runs/sweeps") / config.name
    if args.on != "local":
        from vvlm_jax.sweep import clusters

        clusters.launch(args.on, path, config, args.cluster, args.dry_run)
        return
    if args.cluster:
        raise ConfigError("--cluster: is for --on slurm and --on tpu")
    path = sweep_json.folder(path)
    shares = local.shares(args.workers)
    store, lacking = jobs.create(path, config, dry_run=True), jobs.not_there(config)
    if args.dry_run:
        done = sum(s.phase == "done" for s in store.states().values()) if store else 0
        text.dry_run(config.name, path, jobs.jobs_of(config), done, [s.text for s in shares])
        for line in lacking:
            print(line)
        return
    if lacking:
        raise ConfigError(lacking[0])
    store = jobs.create(path, config)
    text.note(f"{len(store.runs)} runs, {len(store.jobs)} jobs in {path}")
    drive(Store.open(path), shares)


def work(args: Work) -> None:
    """Does a job, or pulls jobs until none is left."""
    from vvlm_jax import devices

    devices.keep_freed_memory()
    from vvlm_jax.progress import Progress
    from vvlm_jax.sweep.store.store import Store
    from vvlm_jax.sweep.worker import AGAIN, Interrupted, Stop, pull, run_job

    store, stop = Store.open(args.store), Stop()
    if args.job is not None:
        store.job(args.job)
    signal.signal(signal.SIGTERM, stop)
    if args.job is None:
        Progress.shown = False  # the driver has the terminal's line
        try:
            pull(store, kinds(), stop)
        except Interrupted:
            sys.exit(AGAIN)
        return
    code, line = run_job(store, args.job, kinds(), stop, _hosts(args))
    if line:
        print(line, file=sys.stderr)
    sys.exit(code)


def kinds() -> dict:
    """What jobs of a sweep, or of the study, may be."""
    from vvlm_jax.sweep.jobs import KINDS

    from . import _study_jobs
    from ._sweep_export import export

    return {**KINDS, **_study_jobs.KINDS, "export": export}


def _hosts(args: Work):
    """This process among those of the job."""
    from vvlm_jax import distributed
    from vvlm_jax.sweep.worker import Hosts

    agreed = distributed.join(args.coordinator, args.processes, args.process)
    if agreed is None:
        return Hosts()
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    def tell(code: int) -> int:
        return int(multihost_utils.broadcast_one_to_all(np.int32(code)))

    return Hosts(jax.process_index(), agreed, tell)


def status(args: Status) -> None:
    """Prints a table, again and again with --watch."""
    from vvlm_jax.sweep.status import overview
    from vvlm_jax.sweep.store.store import Store

    from . import _sweep_text as text

    store = Store.open(args.store)
    while True:
        start, states = time.monotonic(), store.states()
        if args.jobs:
            text.job_lines(states)
        else:
            slurm = _slurm_states(store)
            text.status(store.name, overview(store, states), args.all, args.watch, slurm)
        if not args.watch or all(state.is_final for state in states.values()):
            return
        least = 10.0 if _is_on_slurm(store) else 2.0  # a controller serves many
        time.sleep(max(least, 10 * (time.monotonic() - start)))


def _is_on_slurm(store) -> bool:
    return (store.path / "slurm").is_dir()


def _slurm_states(store) -> dict[str, tuple[str, str]]:
    if not _is_on_slurm(store):
        return {}
    from vvlm_jax.sweep.clusters import slurm_states

    return slurm_states(store)


def retry(args: Retry) -> None:
    """Makes jobs ready again."""
    _change(args.store, args.names or ("*",), "retry", "ready again")


def cancel(args: Cancel) -> None:
    """Cancels jobs that are not done."""
    if not args.names:
        raise ConfigError("cancel: name runs or jobs; '*' is everything that is not done")
    _change(args.store, args.names, "cancel", "cancelled")


def _change(path: Path, names, what: str, told: str) -> None:
    from vvlm_jax.sweep.store.store import Store

    store = Store.open(path)
    chosen = [id for name in names for id in _named(store, name)]
    states = store.states()
    phases = {
        "retry": ("failed", "cancelled"),
        "cancel": ("ready", "waiting", "blocked", "running"),
    }[what]
    chosen = [id for id in dict.fromkeys(chosen) if states[id].phase in phases]
    count = sum(getattr(store, what)(id) for id in chosen)
    if what == "cancel":
        from vvlm_jax.sweep.clusters import cancel_queued

        cancel_queued(store)
    print(f"{count} jobs {told}")


def _named(store, name: str) -> list[str]:
    """The jobs of a run, or one job. ConfigError names the nearest when there is none."""
    found = [
        id
        for id, job in store.jobs.items()
        if fnmatch.fnmatchcase(id, name) or fnmatch.fnmatchcase(job.run, name)
    ]
    if not found:
        runs = dict.fromkeys(job.run for job in store.jobs.values())
        raise ConfigError(f"{name}: no such run or job; {nearest(name, runs)}")
    return found


def collect(args: Collect) -> None:
    """Writes the table and lists what is missing."""
    from vvlm_jax.sweep.store.store import Store

    from . import _sweep_table

    _sweep_table.check(args.out)
    _sweep_table.write(Store.open(args.store), args.out)


COMMANDS = {
    Plan: plan, Launch: launch, Work: work, Status: status, Retry: retry, Cancel: cancel,
    Collect: collect,
}  # fmt: skip


def main(args) -> None:
    """Runs the command that was asked for."""
    COMMANDS[type(args)](args)


def cli() -> None:
    """Reads the command line and runs the command."""
    kinds = {kind.__name__.lower(): kind for kind in COMMANDS}
    die_in_one_line(lambda: main(tyro.extras.subcommand_cli_from_dict(kinds, description=__doc__)))


if __name__ == "__main__":
    cli()
