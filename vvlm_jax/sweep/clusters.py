"""The runs of a store as jobs of a cluster: Slurm, or TPU pods.

A run is one job of the cluster: its training, then the jobs after it, each by a command `work
STORE JOB`. Only the store knows what is done, so a run that is submitted twice is done once.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.override import override
from vvlm_jax.storage import bucket
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.config import SweepConfig
from vvlm_jax.sweep.launch import slurm, tpu_files
from vvlm_jax.sweep.launch.slurm import SlurmOptions
from vvlm_jax.sweep.launch.tpu import TpuOptions
from vvlm_jax.sweep.store import sweep_json
from vvlm_jax.sweep.store.store import Job, Store

_IDS = "slurm/jobs.jsonl"
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", slurm.GONE}

Wave = dict[tuple[str, ...], dict[str, list[str]]]
"""{runs that must end before: {run: ids of its jobs, in order}}."""


def waves(todo: list[Job]) -> list[Wave]:
    """Group jobs by the runs that their runs wait for; a wave waits for earlier waves only."""
    of_run: dict[str, list[str]] = {}
    before: dict[str, set[str]] = {}
    runs = {job.run for job in todo}
    for job in todo:
        of_run.setdefault(job.run, []).append(job.id)
        others = {id.rpartition("/")[0] for id in job.after}
        before.setdefault(job.run, set()).update(others & runs - {job.run})
    found, seen = [], set()
    while len(seen) < len(runs):
        groups: Wave = {}
        ready = [run for run in of_run if run not in seen and before[run] <= seen]
        for run in ready:
            groups.setdefault(tuple(sorted(before[run])), {})[run] = of_run[run]
        seen.update(ready)
        found.append(groups)
    return found


def launch(
    on: str,
    path: Path,
    config: SweepConfig,
    asked: Sequence[str],
    work: Sequence[str],
    dry_run: bool,
) -> str:
    """Submit what is left of a sweep to Slurm, or write the files that start it on TPU pods.

    Args:
      on: 'slurm' or 'tpu'.
      path: the store, on a filesystem that all hosts mount.
      asked: overrides KEY=VALUE of `SlurmOptions` or `TpuOptions`.
      work: what follows the interpreter in the command line of a worker, up to the store's path:
        ("-m", PROGRAM, …).
      dry_run: change nothing.

    Return a text for the user: what was done or, of a dry run, the scripts.

    Raises ConfigError, with nothing changed, when the cluster would refuse the jobs.
    """
    if bucket.is_url(path):
        raise ConfigError(
            f"--store {sweep_json.folder(path)}: --on {on} keeps its files in the store, and the "
            "hosts of a run share its folder: mount a filesystem (Filestore, FSx, NFS)"
        )
    path = path.resolve()
    if on == "slurm":
        options = override(SlurmOptions(), asked)
        if dry_run:
            return _slurm_scripts(path, config, options)
        return _submit(path, config, options, work)
    return _write_tpu_files(path, config, override(TpuOptions(), asked), work, dry_run)


def _left(store: Store) -> list[Job]:
    """Return the jobs that have not ended, in order."""
    states = store.states()
    return [job for id, job in store.jobs.items() if not states[id].is_final]


def _commands(ids: list[str], python: str, work: Sequence[str], path: Path) -> list[tuple]:
    return [(python, *work, str(path), id) for id in ids]


def _slurm_scripts(path: Path, config: SweepConfig, options: SlurmOptions) -> str:
    store = jobs.create(path, config, dry_run=True)
    lines = []
    for wave in waves(_left(store) if store else jobs.jobs_of(config)):
        for after, runs in wave.items():
            lines.append(f"# {len(runs)} runs" + (f", after {', '.join(after)}" if after else ""))
            for run, ids in runs.items():
                lines.append(f"#   {run}: {', '.join(id.rpartition('/')[2] for id in ids)}")
            lines.append(slurm.script(options, _name(config), path / "slurm", len(runs)))
    return "\n".join(lines)


def _name(config: SweepConfig) -> str:
    return f"sweep-{config.name}"


def _submit(path: Path, config: SweepConfig, options: SlurmOptions, work: Sequence[str]) -> str:
    name, folder, python = _name(config), path / "slurm", options.python or sys.executable
    slurm.check(options, name, folder)
    if missing := jobs.missing_inputs(config):  # nodes see the files of a login node
        raise ConfigError(missing[0])
    store = jobs.create(path, config)
    ids_of = queued(store)
    count, left = 0, [job for job in _left(store) if job.run not in ids_of]
    for wave in waves(left):
        for after, runs in wave.items():
            ids = slurm.submit(
                [_commands(job_ids, python, work, store.path) for job_ids in runs.values()],
                options,
                name=name,
                folder=folder,
                cwd=Path.cwd(),  # relative paths of data were checked from here
                after=[ids_of[run] for run in after],
            )
            remember(store, dict(zip(runs, ids, strict=True)))
            ids_of |= dict(zip(runs, ids, strict=True))
            count += len(ids)
    return f"{count} runs submitted, {len(ids_of) - count} were queued; vvlm sweep status {path}"


def remember(store: Store, ids: dict[str, str]) -> None:
    """Append the ids of submitted Slurm jobs, {run: id}, to a file of the store."""
    file = store.path / _IDS
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as lines:
        entries = "".join(json.dumps({"run": run, "id": id}) + "\n" for run, id in ids.items())
        lines.write(f"\n{entries}")  # a newline first: a killed driver may have left half a line


def submitted(store: Store) -> dict[str, str]:
    """Return {run: id} of the Slurm jobs that were submitted last."""
    file = store.path / _IDS
    newest = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # half a line, or an empty one
            entry = json.loads(line)
            newest[entry["run"]] = entry["id"]
    return newest


def queued(store: Store) -> dict[str, str]:
    """Return {run: id} of the Slurm jobs of this store that have not ended."""
    newest = submitted(store)
    states = slurm.states(list(newest.values()))
    return {run: id for run, id in newest.items() if states[id] not in _ENDED}


def is_on_slurm(store: Store) -> bool:
    """Return whether the store was launched on Slurm."""
    return not store.in_bucket and (store.path / "slurm").is_dir()


def slurm_states(store: Store) -> dict[str, tuple[str, str]]:
    """Return {run: (id, Slurm's state)} of the jobs that were submitted last.

    Empty when the store was not launched on Slurm, or Slurm is not installed here.
    """
    newest = submitted(store) if is_on_slurm(store) else {}
    if not newest or shutil.which("squeue") is None:
        return {}
    states = slurm.states(list(newest.values()))
    return {run: (id, states[id]) for run, id in newest.items()}


def cancel_queued(store: Store) -> None:
    """Cancel the Slurm jobs of runs of which all jobs have ended."""
    if not is_on_slurm(store) or shutil.which("scancel") is None:
        return
    left = {job.run for job in _left(store)}
    slurm.cancel([id for run, id in queued(store).items() if run not in left])


def _write_tpu_files(
    path: Path, config: SweepConfig, options: TpuOptions, work: Sequence[str], dry_run: bool
) -> str:
    if not path.is_relative_to(options.mount):
        raise ConfigError(
            f"--store {path}: not below mount={options.mount}, where hosts have the filesystem; "
            "it must have the same path here and there"
        )
    tpu_files.files([], options)  # raises for missing options before the store is created
    store = jobs.create(path, config, dry_run=dry_run)
    parts = [
        {
            run: _commands(ids, options.python, work, path)
            for runs in wave.values()
            for run, ids in runs.items()
        }
        for wave in waves(_left(store) if store else jobs.jobs_of(config))
    ]
    if dry_run:
        texts = tpu_files.files(parts, options)
        return "\n".join(f"# {path / 'tpu' / name}\n{text}" for name, text in texts.items())
    written = tpu_files.write(parts, options, path / "tpu")
    lines = [f"{len(written)} files for {sum(map(len, parts))} runs in {path / 'tpu'}:"]
    if options.project:
        lines.append(f"  bash {path / 'tpu/launch.sh'}")
    if options.image:
        lines.append(f"  kubectl apply -f {path / 'tpu/kueue.json'}  # once")
        for number in range(1, len(parts) + 1):
            wait = "" if number == 1 else "  # when those before have completed"
            lines.append(f"  kubectl apply -f {path / f'tpu/jobsets-{number}.json'}{wait}")
    return "\n".join(lines)
