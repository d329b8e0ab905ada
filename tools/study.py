"""From video files to a compute-optimal frontier: the whole system on a small synthetic world.

Example:
    python -m tools.study --out runs/study

Writes clips, pretrains a small encoder and language models, trains and evaluates a star and an
isoFLOP sweep, fits the scaling laws and writes OUT/runs.csv, OUT/report.html and OUT/figures.
Interrupted anywhere, the same command continues. Numbers depend on --seed alone, not on --workers.
"""

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import tyro

from configs.study import StudyConfig
from tools._shared import die_in_one_line, load_config
from vvlm_jax.config import override, to_json


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.study`."""

    config: Path = Path("configs/study.py")
    """A Python file with `config() -> StudyConfig`; configs/study_mini.py takes a few minutes."""
    out: Path = Path("runs/study")
    """Where everything goes. Prepared models and finished runs are kept in OUT/work."""
    workers: int = 0
    """Worker processes, one core each; 0 takes all cores."""
    set: tuple[str, ...] = ()
    """Overrides of the study, such as seed=1 resamples=100."""


def main(args: Args) -> None:
    """Runs every phase that is not done yet."""
    from tools import _study_jobs as jobs
    from tools import _study_report

    study = override(load_config(args.config, StudyConfig), args.set)
    workers = args.workers or len(os.sched_getaffinity(0))
    work = args.out / "work" / content_hash(study)
    compiled = str((args.out / "work" / "compiled").absolute())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    folder = str(work)
    specs = jobs.sweep_specs(study, folder)
    jobs.check(study, specs)
    work.mkdir(parents=True, exist_ok=True)
    (work / "study.json").write_text(to_json(study))
    clock = Clock(work / "phases.json")

    with clock("videos, pictures and stories"):
        launch_phase(jobs.data_jobs(study, folder), workers)
    with clock("pretrained encoder and language models"):
        launch_phase(jobs.pretrain_jobs(study, folder), workers)
        launch_phase(jobs.projector_jobs(study, folder), workers)
    with clock("sweep and evaluation"):
        note(f"{len(specs)} runs, {workers} at a time")
        launch_phase(jobs.sweep_jobs(specs, folder), workers)
        launch_phase(jobs.control_jobs(specs, folder), workers)
    with clock("fits and report"):
        cost, domain = jobs.study_cost(study), jobs.study_domain(study)
        _study_report.write(study, specs, jobs.star_center(specs), work, args.out, cost, domain)
    clock.finish()
    shutil.copy(work / "phases.json", args.out / "phases.json")
    note(f"report: {args.out / 'report.html'}")


# --- the content hash and the clock ---


def content_hash(study: StudyConfig) -> str:
    """Names what the prepared models and runs depend on: the study's numbers and the code that
    trains.
    """
    digest = hashlib.sha256(to_json(study).encode())
    root = Path(__file__).parent.parent
    for pattern in (
        "vvlm_jax/**/*.py",
        "configs/study.py",
        "tools/_study_jobs.py",
        "fitting/sweeps.py",
        "fitting/cost.py",
    ):
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def note(text: str) -> None:
    """One line of the log."""
    print(text, file=sys.stderr, flush=True)


class Clock:
    """Wall seconds by phase and peak memory, added up over interrupted calls, in phases.json."""

    def __init__(self, file: Path):
        self.file = file
        self.phases = json.loads(file.read_text())["seconds"] if file.exists() else {}

    def __call__(self, phase: str):
        """`with clock("phase"):` times it."""
        self.phase = phase
        return self

    def __enter__(self):
        note(f"— {self.phase}")
        self.start = time.monotonic()

    def __exit__(self, *_):
        seconds = time.monotonic() - self.start
        self.phases[self.phase] = round(self.phases.get(self.phase, 0) + seconds, 1)
        self.finish()

    def finish(self):
        """Writes phases.json."""
        peak = {
            who: resource.getrusage(which).ru_maxrss // 1024
            for who, which in (
                ("driver", resource.RUSAGE_SELF),
                ("largest worker", resource.RUSAGE_CHILDREN),
            )
        }
        self.file.write_text(
            json.dumps({"seconds": self.phases, "peak_memory_mib": peak}, indent=1) + "\n"
        )


def launch_phase(jobs, workers: int) -> None:
    """Runs the jobs that are not finished, with one live line for all of them."""
    from vvlm_jax.sweep import launch
    from vvlm_jax.train.metrics import duration

    total, left = len(jobs), sum(job.cost for job in jobs)
    todo = [job for job in jobs if not job.function(job.argument, check=True)]
    finished = total - len(todo)
    left = sum(job.cost for job in todo)
    work, start, live = left, time.monotonic(), sys.stderr.isatty()
    costs, share = {job.name: job.cost for job in todo}, {}

    def on_update(name, message):
        nonlocal finished, left
        if message is None:
            finished, left = finished + 1, left - costs[name]
            share.pop(name, None)
            if not live:
                note(f"{finished}/{total} {name}")
        else:
            share[name] = message[0]
        doing = sum(costs[n] * part for n, part in share.items())
        done = work - left + doing
        if live and done > 0:
            seconds = (time.monotonic() - start) * (left - doing) / done
            text = message[1] if message else "done"
            print(
                f"\r\x1b[K{finished}/{total} · {name} · {text} · {duration(seconds)} left",
                end="",
                file=sys.stderr,
                flush=True,
            )

    launch.run_local(todo, workers, on_update)
    if live:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))
