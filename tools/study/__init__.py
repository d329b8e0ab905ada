"""From video files to a decision that is put to the test: the whole system on synthetic clips.

Example:
    vvlm study --out runs/study
    vvlm study --config study_mini --out runs/mini

Writes clips, pretrains small models (or takes shipped ones), trains and evaluates a star and an
isoFLOP sweep, and fits a law. The law names the best configuration at two budgets no run has seen;
that and its rivals are then trained on new seeds and questions. OUT gets runs.csv, verdict.json
(the outcome as numbers) and report.html, which opens with the outcome: confirmed, refuted or not
resolved. The rule is fixed in the config, `--set decision.seeds=5` and the like change it.
After an interruption the same command continues. Results depend on the study's options (--set
seed=1), not on --workers. A study with other fits or further runs reuses what is trained.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError
from vvlm_jax.override import override, to_json

from ..arguments import read_options
from ..common import die_in_one_line, load_config, own_command, shipped

study_lib = shipped("study")
StudyConfig = study_lib.StudyConfig
FITS = 30.0
"""Seconds that fits or the report take, about, for the estimate of the time left."""


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
    from_scratch: bool = False
    """Train the encoder and the language models too, in place of the shipped ones."""
    parts: Path | None = None
    """Folder of pretrained parts to start from, in place of the shipped ones."""
    make_parts: Path | None = None
    """Only train the parts, and write them to this folder: configs/parts holds the shipped ones."""
    set: tuple[str, ...] = ()
    """Overrides of the study, such as seed=1 resamples=100."""


def main(args: Args) -> None:
    """Check the study and run every phase that is not done yet."""
    from vvlm_jax.sweep.launch import local

    from . import parts
    from .check import check
    from .folder import content_hash, locked

    study = override(load_config(args.config, StudyConfig), args.set)
    if args.workers < 0:
        raise ConfigError(f"--workers {args.workers}: must be 0 (all cores) or above")
    shares = local.shares(args.workers)
    check(study)
    if args.from_scratch and args.parts:
        raise ConfigError("--parts: is not for --from-scratch, which makes them")
    found = None if args.from_scratch or args.make_parts else parts.find(study, args.parts)
    compiled = str((args.out / "work" / "compiled").absolute())
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    work = args.out / "work" / content_hash(study, found)
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        if args.make_parts:
            make_parts(study, work, args.make_parts, shares)
        else:
            run_phases(study, work, args.out, shares, found)


def make_parts(study: StudyConfig, work: Path, out: Path, shares) -> None:
    """Train the encoder and the language models, and write them as files to ship."""
    from vvlm_jax.sweep.phases import Clock

    from . import jobs, parts

    drive(jobs.preparing(study, work), Clock(work / "phases.json"), shares)
    note(f"parts: {parts.pack(study, work, out)}")


def run_phases(study: StudyConfig, work: Path, out: Path, shares, parts=None) -> None:
    """Write data, train, evaluate, fit, test the decision, report.

    `work` keeps models and runs, `out` gets the results.
    """
    from fitting.report.processes import pool
    from fitting.runs import read_runs, write_runs
    from vvlm_jax.sweep.phases import Clock
    from vvlm_jax.sweep.table import collect

    from . import jobs, laws, outcome, page, progress, verdict
    from .results import results

    clock = Clock(work / "phases.json")
    (work / "study.json").write_text(to_json(study))
    file, ahead = out / "runs.csv", progress.jobs_ahead(study, str(work))
    store = drive(jobs.create(study, work, parts=parts), clock, shares, ahead, after=2 * FITS)
    with clock("law", whole=True), progress.ticking("law") as say, pool(2) as run:
        write_runs(file, collect(store, store.states()).rows)
        analysis = laws.law(study, read_runs(file), run, say)
        choices = laws.choose(study, analysis, work / "decision.json")
    if tested := [one.x for choice in choices for one in choice.tested]:
        store = drive(jobs.create(study, work, tested, parts), clock, shares, after=FITS)
    with clock("report", whole=True), progress.ticking("report"):
        states = store.states()
        write_runs(file, collect(store, states).rows)
        table, points = read_runs(file), study_lib.sweep(study, str(work)).points
        found = verdict.make(study, analysis, table, choices, work)
        page.write(study, points, table, results(store, states), analysis, found, work, out)
    seconds = {
        name: {"wall": wall, "cpu": clock.cpu.get(name)} for name, wall in clock.phases.items()
    }
    atomic.write_text(
        out / "verdict.json", json.dumps(found | {"seconds": seconds}, indent=1) + "\n"
    )
    shutil.copy(work / "phases.json", out / "phases.json")
    for sentence in outcome.sentences(found):
        note(sentence)
    note(f"report: {out / 'report.html'}")


def drive(store, clock, shares, ahead=(), after: float = 0.0):
    """Run a store's jobs with progress and return it; end the process where some failed."""
    from vvlm_jax.sweep.launch import local

    from . import jobs, progress

    for id, state in store.states().items():
        if state.phase == "failed":  # running the command again retries
            store.retry(id)

    def look(states) -> str | None:
        phase, before = jobs.phase(store, states), clock.phase
        clock.switch(phase)
        return f"— {phase}" if phase not in (None, before) else None

    line = progress.Progress(store, len(shares), ahead, after)
    note(f"{line.total} runs, {len(store.jobs)} jobs, {len(shares)} at a time, in {store.path}")
    worker = own_command("sweep", "work", str(store.path))
    try:
        if not local.drive(store, worker, shares, look, line):
            sys.exit(1)
    finally:
        clock.switch(None)
    return store


def note(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
