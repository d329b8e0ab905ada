"""`launch --on slurm` and `--on tpu`: a store's runs as jobs of a cluster.

A run is one job there: its training, then what comes after it, each by `tools.sweep work`. The
store alone says what is done, so that runs which are submitted twice are still done once.
"""

import contextlib
import json
import shutil
import sys
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.override import override
from vvlm_jax.storage import bucket
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.launch import slurm, tpu_files
from vvlm_jax.sweep.launch.slurm import SlurmOptions
from vvlm_jax.sweep.launch.tpu import TpuOptions
from vvlm_jax.sweep.store import sweep_json
from vvlm_jax.sweep.store.store import Job, Store

_IDS = "slurm/jobs.jsonl"
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", slurm.GONE}


def waves(todo: list[Job]) -> list[dict[tuple[str, ...], dict[str, list[str]]]]:
    """Jobs by what their runs wait for: [{runs before: {run: its jobs, in order}}], so that each
    wave waits for runs of the ones before it alone.
    """
    of_run: dict[str, list[str]] = {}
    before: dict[str, set[str]] = {}
    runs = {job.run for job in todo}
    for job in todo:
        of_run.setdefault(job.run, []).append(job.id)
        others = {id.rpartition("/")[0] for id in job.after}
        before.setdefault(job.run, set()).update(others & runs - {job.run})
    found, seen = [], set()
    while len(seen) < len(runs):
        groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
        ready = [run for run in of_run if run not in seen and before[run] <= seen]
        for run in ready:
            groups.setdefault(tuple(sorted(before[run])), {})[run] = of_run[run]
        seen.update(ready)
        found.append(groups)
    return found


def launch(on: str, path: Path, config, asked: tuple[str, ...], dry_run: bool) -> None:
    """Submits what is left of a sweep to Slurm, or writes the files for TPU pods.

    Raises ConfigError, one line, with nothing changed, when the cluster would not take it.
    """
    if bucket.is_url(path):
        raise ConfigError(
            f"--store {sweep_json.folder(path)}: --on {on} keeps its files in the store, and a run's "
            "hosts share its folder: mount a filesystem (Filestore, FSx, NFS)"
        )
    path = path.resolve()
    options = override(SlurmOptions() if on == "slurm" else TpuOptions(), asked)
    if on == "slurm":
        _slurm(path, config, options, dry_run)
    else:
        _tpu(path, config, options, dry_run)


def _todo(path: Path, config, dry_run: bool) -> tuple[Store | None, list[Job]]:
    """The store, made unless `dry_run`, and its jobs that have not ended, in order."""
    store = jobs.create(path, config, dry_run=dry_run)
    if store is None:
        return None, jobs.jobs_of(config)
    states = store.states()
    return store, [job for id, job in store.jobs.items() if not states[id].is_final]


def _commands(ids: list[str], python: str, path: Path) -> list[tuple[str, ...]]:
    return [(python, "-m", "vvlm", "sweep", "work", str(path), id) for id in ids]


def _slurm(path: Path, config, options: SlurmOptions, dry_run: bool) -> None:
    name, folder, python = f"sweep-{config.name}", path / "slurm", options.python or sys.executable
    if dry_run:
        for wave in waves(_todo(path, config, dry_run)[1]):
            for after, runs in wave.items():
                print(f"# {len(runs)} runs" + (f", after {', '.join(after)}" if after else ""))
                for run, ids in runs.items():
                    print(f"#   {run}: {', '.join(id.rpartition('/')[2] for id in ids)}")
                print(slurm.script(options, name, folder, len(runs)))
        return
    slurm.check(options, name, folder)
    if lacking := jobs.not_there(config):  # nodes see what a login node sees
        raise ConfigError(lacking[0])
    store, todo = _todo(path, config, dry_run)
    there = queued(store)
    count, left = 0, [job for job in todo if job.run not in there]
    for wave in waves(left):
        for after, runs in wave.items():
            ids = slurm.submit(
                [_commands(job_ids, python, store.path) for job_ids in runs.values()],
                options,
                name=name,
                folder=folder,
                cwd=Path.cwd(),  # from where paths of data have been looked at
                after=[there[run] for run in after],
            )
            _remember(store, dict(zip(runs, ids, strict=True)))
            there |= dict(zip(runs, ids, strict=True))
            count += len(ids)
    print(f"{count} runs submitted, {len(there) - count} were queued; tools.sweep status {path}")


def _remember(store: Store, ids: dict[str, str]) -> None:
    with (store.path / _IDS).open("a") as file:
        lines = "".join(json.dumps({"run": run, "id": id}) + "\n" for run, id in ids.items())
        file.write(f"\n{lines}")  # after a line that was cut, too


def queued(store: Store) -> dict[str, str]:
    """{run: id} of the Slurm jobs of this store that have not ended."""
    newest = _submitted(store)
    states = slurm.states(list(newest.values()))
    return {run: id for run, id in newest.items() if states[id] not in _ENDED}


def slurm_states(store: Store) -> dict[str, tuple[str, str]]:
    """{run: (id, Slurm's word)} of what was submitted last; empty where Slurm was not asked, or is
    not here.
    """
    newest = _submitted(store)
    if not newest or shutil.which("squeue") is None:
        return {}
    states = slurm.states(list(newest.values()))
    return {run: (id, states[id]) for run, id in newest.items()}


def _submitted(store: Store) -> dict[str, str]:
    file = store.path / _IDS
    newest = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that was cut, or none
            entry = json.loads(line)
            newest[entry["run"]] = entry["id"]
    return newest


def cancel_queued(store: Store) -> None:
    """Takes runs of which nothing is left to do out of Slurm's queue, where there is one."""
    if not (store.path / _IDS).exists() or shutil.which("scancel") is None:
        return
    states = store.states()
    left = {job.run for id, job in store.jobs.items() if not states[id].is_final}
    slurm.cancel([id for run, id in queued(store).items() if run not in left])


def _tpu(path: Path, config, options: TpuOptions, dry_run: bool) -> None:
    if not path.is_relative_to(options.mount):
        raise ConfigError(
            f"--store {path}: not below mount={options.mount}, where hosts have the file system; "
            "it must have the same path here and there"
        )
    tpu_files.files([], options)  # says what is missing before anything is written
    _, todo = _todo(path, config, dry_run)
    parts = [
        {
            run: _commands(ids, options.python, path)
            for runs in wave.values()
            for run, ids in runs.items()
        }
        for wave in waves(todo)
    ]
    if dry_run:
        for name, text in tpu_files.files(parts, options).items():
            print(f"# {path / 'tpu' / name}\n{text}")
        return
    written = tpu_files.write(parts, options, path / "tpu")
    print(f"{len(written)} files for {sum(map(len, parts))} runs in {path / 'tpu'}:")
    if options.project:
        print(f"  bash {path / 'tpu/launch.sh'}")
    if options.image:
        print(f"  kubectl apply -f {path / 'tpu/kueue.json'}  # once")
        for number in range(1, len(parts) + 1):
            wait = "" if number == 1 else "  # when those before have completed"
            print(f"  kubectl apply -f {path / f'tpu/jobsets-{number}.json'}{wait}")
