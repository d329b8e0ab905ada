"""From video files to a compute-optimal frontier: the whole system on a small synthetic world.

Example:
    python -m tools.study --out runs/study

Writes clips, pretrains a small encoder and language models, trains and evaluates a star and an
isoFLOP sweep, fits the scaling laws and writes OUT/runs.csv, OUT/report.html and OUT/figures.
Interrupted anywhere, the same command continues. Numbers depend on the study alone (its seed is an
option: --set seed=1), not on --workers. Other fits or further runs take over what is trained.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import tyro

from vvlm_jax.config import ConfigError
from vvlm_jax.override import override, to_json

from .common import die_in_one_line, load_config, own_command, shipped

StudyConfig = shipped("study").StudyConfig


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.study`."""

    config: Path = Path("study")
    """A Python file with `config() -> StudyConfig`, or a shipped one: study_mini takes a few
    minutes."""
    out: Path = Path("runs/study")
    """Where everything goes. Prepared models and finished runs are kept in OUT/work."""
    workers: int = 0
    """Worker processes, one core each; 0 takes all cores. With accelerators they share those, and
    0 takes one worker.
    """
    set: tuple[str, ...] = ()
    """Overrides of the study, such as seed=1 resamples=100."""


def main(args: Args) -> None:
    """Checks the study and runs every phase that is not done yet."""
    from vvlm_jax.sweep.launch import local

    from . import _study_jobs as jobs

    study = override(load_config(args.config, StudyConfig), args.set)
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: must be 0 (all cores) or above")
    shares = local.shares(args.workers)
    jobs.check(study)
    compiled = str((args.out / "work" / "compiled").absolute())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    work = args.out / "work" / content_hash(study)
    work.mkdir(parents=True, exist_ok=True)
    with claimed(work):
        run_phases(study, work, args.out, shares)


def run_phases(study: StudyConfig, work: Path, out: Path, shares) -> None:
    """Data, preparation, sweep, fits and report; `work` keeps what was made, `out` gets results."""
    from vvlm_jax.sweep.launch import local
    from vvlm_jax.sweep.table import collect

    from . import _study_jobs as jobs
    from . import _study_report

    store, clock = jobs.create(study, work), Clock(work / "phases.json")
    (work / "study.json").write_text(to_json(study))
    for id, state in store.states().items():
        if state.phase == "failed":  # the same command tries again
            store.retry(id)

    def look(states) -> str | None:
        phase, before = jobs.phase(store, states), clock.phase
        clock.switch(phase)
        return f"— {phase}" if phase not in (None, before) else None

    note(f"{len(store.runs)} runs, {len(store.jobs)} jobs, {len(shares)} at a time, in {work}")
    try:
        if not local.drive(store, own_command("sweep", "work", str(store.path)), shares, look):
            sys.exit(1)
    finally:
        clock.switch(None)
    note("— fits and report")
    with clock("fits and report", whole=True):
        points, states = jobs.sweep(study, str(work)).points, store.states()
        rows, results = collect(store, states).rows, jobs.results(store, states)
        cost, domain = jobs.study_cost(study), jobs.study_domain(study)
        _study_report.write(study, points, rows, results, work, out, cost, domain)
    shutil.copy(work / "phases.json", out / "phases.json")
    note(f"report: {out / 'report.html'}")


# --- the content hash and the clock ---


LATER = {
    *("num_frames_levels", "tokens_levels", "num_examples", "isoflop_examples", "budgets"),
    *("domain_frames", "domain_tokens", "tolerance", "max_per_curve", "resamples", "starts"),
}
"""Which runs there are, and how they are fitted: no run's own result depends on these."""


def content_hash(study: StudyConfig) -> str:
    """Names what prepared models and runs depend on: the study's numbers and the code that trains.

    A study that only adds runs, or fits them differently, shares the folder.
    """
    values = {k: v for k, v in dataclasses.asdict(study).items() if k not in LATER}
    digest = hashlib.sha256(json.dumps(values).encode())
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


@contextlib.contextmanager
def claimed(work: Path):
    """Holds a study's folder; ConfigError while another process does."""
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{work}: another study is at work there; wait, or choose another --out"
            ) from None
        yield


def note(text: str) -> None:
    """One line of the log."""
    print(text, file=sys.stderr, flush=True)


class Clock:
    """Wall seconds by phase and peak memory, added up over interrupted calls, in phases.json."""

    def __init__(self, file: Path):
        self.file, self.phase = file, None
        self.phases = json.loads(file.read_text())["seconds"] if file.exists() else {}

    def switch(self, phase: str | None, whole: bool = False) -> None:
        """Ends the phase that is timed and begins another one, unless it is the same; None begins
        none. A phase that always starts afresh is taken `whole`.
        """
        if phase == self.phase:
            return
        if self.phase is not None:
            seconds = self.earlier + time.monotonic() - self.start
            self.phases[self.phase] = round(seconds, 1)
            self._write()
        self.phase, self.start = phase, time.monotonic()
        self.earlier = 0 if whole else self.phases.get(phase, 0)

    @contextlib.contextmanager
    def __call__(self, phase: str, whole: bool = False):
        """`with clock("phase"):` times it."""
        self.switch(phase, whole)
        try:
            yield
        finally:
            self.switch(None)

    def _write(self):
        """Makes phases.json."""
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


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))


if __name__ == "__main__":
    cli()
