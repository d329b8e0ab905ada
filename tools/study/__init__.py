"""From video files to a compute-optimal frontier: the whole system on small synthetic clips.

Example:
    vvlm study --out runs/study
    vvlm study --config study_mini --out runs/mini

Writes clips, pretrains a small encoder and language models, trains and evaluates a star and an
isoFLOP sweep, fits the scaling laws and writes OUT/runs.csv, OUT/report.html and OUT/figures.
After an interruption the same command continues. Results depend on the study's options (--set
seed=1), not on --workers. A study with other fits or further runs reuses what is trained.
"""

import dataclasses
import os
import shutil
import sys
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.override import override, to_json

from ..arguments import read_options
from ..common import die_in_one_line, load_config, own_command, shipped

study_lib = shipped("study")
StudyConfig = study_lib.StudyConfig


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm study`."""

    config: Path = Path("study")
    """A Python file with `config() -> StudyConfig`, or a shipped study: study, study_mini."""
    out: Path = Path("runs/study")
    """Folder for results; models and runs are kept in OUT/work."""
    workers: int = 0
    """Worker processes: one core each, or a share of the accelerators. 0 means one per core, or
    one with all accelerators."""
    set: tuple[str, ...] = ()
    """Overrides of the study, such as seed=1 resamples=100."""


def main(args: Args) -> None:
    """Check the study and run every phase that is not done yet."""
    from vvlm_jax.sweep.launch import local

    from .check import check
    from .folder import content_hash, locked

    study = override(load_config(args.config, StudyConfig), args.set)
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: must be 0 (all cores) or above")
    shares = local.shares(args.workers)
    check(study)
    compiled = str((args.out / "work" / "compiled").absolute())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    work = args.out / "work" / content_hash(study)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        run_phases(study, work, args.out, shares)


def run_phases(study: StudyConfig, work: Path, out: Path, shares) -> None:
    """Write data, train, evaluate, fit and report; `work` keeps models, `out` gets the results."""
    from vvlm_jax.sweep.launch import local
    from vvlm_jax.sweep.phases import Clock
    from vvlm_jax.sweep.table import collect

    from . import jobs, page
    from .results import results

    store, clock = jobs.create(study, work), Clock(work / "phases.json")
    (work / "study.json").write_text(to_json(study))
    for id, state in store.states().items():
        if state.phase == "failed":  # running the command again retries
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
        points, states = study_lib.sweep(study, str(work)).points, store.states()
        rows, found = collect(store, states).rows, results(store, states)
        cost, domain = study_lib.inference_cost(study), study_lib.domain(study)
        page.write(study, points, rows, found, work, out, cost, domain)
    shutil.copy(work / "phases.json", out / "phases.json")
    note(f"report: {out / 'report.html'}")


def note(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
