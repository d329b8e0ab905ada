"""Seconds that status and collect take over a store of many runs.

Example:
    python -m tools.bench.bench_sweep

The bar: 10,000 runs, 3 s each on 2 cores. The store is written for it: trainings and evaluations,
all done but a few that run, failed or wait. Each command is a process of its own, first without
the index and then with it; the best of --repeats counts.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from configs.sweeps import mini
from tools.arguments import read_options
from tools.common import die_in_one_line
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import Store

TASKS = ("cell", "flash", "most")


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_sweep`."""

    runs: int = 10_000
    """Runs of the store."""
    repeats: int = 3
    """The best of so many."""


def main(args: Args) -> None:
    """Print a line a command."""
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "s", args.runs)
        files = sum(len(names) for _, _, names in os.walk(store.path / "runs"))
        print(f"{args.runs:,} runs, {len(store.jobs):,} jobs, {files:,} files of journals")
        for command in ("status", "collect"):
            for index in (False, True):
                seconds = [timed(store, command, index) for _ in range(args.repeats)]
                wall, cpu = map(min, zip(*seconds, strict=True))
                told = "with" if index else "without"
                print(f"{command} {told} the index: {wall:.2f} s, {cpu:.2f} s of CPU")


def write_store(path: Path, count: int) -> Store:
    """Write a store in which nearly all jobs are done."""
    config = mini.sweep()
    base = config.points[0]
    points = [
        dataclasses.replace(base, run_id=f"run-{i:05d}", num_examples=4 + i) for i in range(count)
    ]
    store = jobs.create(path, dataclasses.replace(config, points=tuple(points), data_size=None))
    for job in store.jobs.values():
        number = int(job.run.partition("-")[2] or -1) if job.run.startswith("run") else -1
        folder = store.folder(job.run) / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        entries = [{"event": journal.CLAIM, "worker": "host:1", "lease": 120.0, "deaths": 0}]
        if number % 500 == 1:  # its training runs, and its evaluation waits
            if job.kind == "train":
                line = {"step": 1, "loss": 2.0, "examples_per_second": 3.0}
                (folder.parent / "metrics.jsonl").write_text((json.dumps(line) + "\n") * 200)
            else:
                continue
        elif number % 500 == 2 and job.kind == "evaluate":
            entries.append({"event": journal.FAILED, "error": "OSError: gone", "traceback": "…"})
        else:
            result = {"steps": number, "loss": 1.5, "unreadable": []}
            if job.kind == "evaluate":
                result = {
                    "scores": dict.fromkeys(TASKS, number % 100 + 0.5),
                    "stderr": dict.fromkeys(TASKS, 1.0),
                    "num_questions": dict.fromkeys(TASKS, 1000),
                    "unreadable": [],
                }
            entries.append({"event": journal.DONE, "seconds": 12.5, "result": result})
        for i, entry in enumerate(entries, 1):
            journal.entry_file(folder, job.name, i).write_text(json.dumps(entry) + "\n")
    return store


def timed(store: Store, command: str, index: bool) -> tuple[float, float]:
    """Return (wall seconds, CPU seconds) of a command, with or without the index."""
    if not index:
        (store.path / "index.json").unlink(missing_ok=True)
    options = ["--out", str(store.path / "runs.csv")] if command == "collect" else []
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-m", "tools.sweep", command, str(store.path), *options],
        capture_output=True,
        text=True,
    )
    seconds, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise RuntimeError(done.stderr)
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return seconds, cpu


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
