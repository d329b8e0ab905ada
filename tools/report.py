"""Draw all that the paper shows from a table of runs: a page, and each figure and table as files.

Examples:
    vvlm report runs.csv --out runs/report
    vvlm report sweeps/star --metric avg --vision-params 4.3e8 --features 768

RUNS is a table of runs (run_id, sweep, lm_params, num_frames, tokens_per_frame, num_examples,
metric, score; a CSV, or Parquet if pyarrow is installed), a folder with runs.csv, or the store of a
sweep (or gs://BUCKET/FOLDER, s3://…), finished or not: its scores so far go into OUT/runs.csv.
Costs follow equation 1 with the store's encoder, else the paper's, or --vision-params, --features.
Writes OUT/report.html, which needs no network and no other file: what to deploy at each budget and
how sure that is, Figures 1 to 10, Tables 2, 8, 9 and 10, one metric at a time. OUT/figures and
OUT/tables hold the same as SVG and CSV, OUT/laws the fitted laws, which the same command uses again
if the runs are unchanged. Where the runs do not support a figure, the page says why.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fitting.config import FitConfig
from fitting.cost import PAPER, CostConstants
from fitting.forms import FORMS, PAPER_FORMS, get_form
from fitting.runs import RunTable, write_runs
from vvlm_jax.progress import Progress, printable

from .arguments import read_options
from .common import check_is_here, check_positive, die_in_one_line
from .fit_flags import Cost, FitFlags, Flag, Rows, fit_config, page_cost

QUICK = {"resampling": "none", "starts": 50}  # Tables 2 and 8: single fits
QUICK_BAG = {"resamples": 20, "starts": 50}  # Table 9


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm report`."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS")]
    """The table of runs, a sweep's store, or a folder with runs.csv or runs.parquet."""
    rows: tyro.conf.OmitArgPrefixes[Rows]
    out: Path = Path("runs/report")
    """Folder for report.html, figures, tables and laws."""
    metric: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Report on this metric only; by default on all."""
    appendix: Literal["none", "quick", "full"] = "quick"
    """Tables 2, 8, 9, 10: quick (single fits; 8, 9, 10 for one metric), full (all bagged), none."""
    form: str = FitFlags.form
    """Form of the laws, as of `vvlm fit`: auto, or add-interact for the paper's."""
    resamples: int = FitConfig.resamples
    """Bootstrap resamples of each law."""
    starts: int = FitConfig.starts
    """Random starts of each resample."""
    resampling: str = FitConfig.resampling
    """iid, stratified (keeps all levels), wild (signs of residuals), bayesian (weights)."""
    seed: int = FitConfig.seed
    """Seed of resamples, starts and folds."""
    scale: float | None = None
    """Best possible score, 100 or 1; needed if no score is above 1."""
    synthetic: Flag = False
    """Mark page, figures and CSVs as synthetic; not needed if the table says so itself."""
    vision_params: float | None = None
    """x_M of equation 1, parameters of the vision model; by default the store's, else 4.3e8."""
    features: int | None = None
    """x_W of equation 1, features the vision model computes per frame; else 768."""
    cost: Cost = None
    """FLOPs of an example in place of equation 1, such as "2*T*V*N"."""
    workers: int = 0
    """Processes; 0 means one per core."""


def main(args: Args) -> None:
    """Read the runs, fit, draw and write."""
    from fitting.report import results, text

    store = open_store(args.runs)
    settings = settings_of(args, store and store.encoder)
    if store:
        path, table = args.runs, collected(store).select(metric=args.metric)
    else:
        path = results.table_file(args.runs)
        table = results.in_percent(args.rows.read(path, metric=args.metric, scale=args.scale))
    args.rows.check(table)
    mark = text.SYNTHETIC if args.synthetic or results.is_synthetic(path, table) else ""
    settings = dataclasses.replace(settings, mark=mark)
    make_folder(args.out)
    if store:
        write_runs(args.out / "runs.csv", table)
    for line in table.notes:
        print(printable(f"warning: {line}"), file=sys.stderr)
    metrics = text.in_order(table.metrics)
    subjects = [results.subject(table.take(table.metric == m), settings.law) for m in metrics]
    page = write(args, table, subjects, settings)
    print(f"{page}: {len(table)} scores of {len(subjects)} metrics{' (synthetic)' * bool(mark)}")


def write(args: Args, table: RunTable, subjects, settings) -> Path:
    """Compute in several processes and write the page; return its path."""
    from fitting.report.compute import compute
    from fitting.report.page import write_page
    from fitting.report.processes import pool
    from fitting.report.text import file_names

    slugs, bars = file_names([one.metric for one in subjects]), []

    def show(done: int, total: int) -> None:
        bars[:] = bars or [Progress("report", total, "jobs")]
        bars[0].update(done)

    folders = {metric: args.out / "laws" / slug for metric, slug in slugs.items()}
    full = args.appendix == "full"
    with pool(args.workers or len(os.sched_getaffinity(0))) as run:
        results = compute(
            subjects, settings, folders, every_appendix=full, run=run, on_progress=show
        )
    bars[0].close()
    runs = f"{Path(table.source).name}: {len(set(table.run_id))} runs, {len(subjects)} metrics"
    title = "Inference compute-optimal video VLMs: what the runs say"
    notes = ["The laws are in laws/; vvlm plan answers further questions from them."]
    return write_page(args.out, table, results, settings, title=title, subtitle=runs, notes=notes)


def settings_of(args: Args, encoder: dict | None):
    """Return the report's `Settings`; costs follow the flags, else `encoder`, else the paper.

    Raises ValueError that names the flag.
    """
    from fitting.report.results import Settings

    if args.resampling == "none":
        raise ValueError("--resampling none: a report needs bootstrap members")
    if args.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {args.workers}")
    names = ("form", "resamples", "starts", "resampling", "seed")
    law = fit_config(FitFlags(**{n: getattr(args, n) for n in names}, units="geomean"))
    for name in (one.form for one in law.forms if not get_form(one.form).has_n):
        there = ", ".join(other for other, form in FORMS.items() if form.has_n)
        raise ValueError(f"--form {name} has no number of examples; choose one of {there}")
    check, bag = {
        "none": (None, None),
        "quick": (law.replace(**QUICK), law.replace(**QUICK_BAG)),
        "full": (law, law),
    }[args.appendix]
    known = CostConstants(**encoder) if encoder else PAPER
    check_positive(args, "vision_params", "features")
    vision = known.vision_params if args.vision_params is None else args.vision_params
    features = known.features_per_frame if args.features is None else args.features
    cost = page_cost(args.cost, vision, features)
    forms = tuple(dict.fromkeys((*PAPER_FORMS, *(one.label for one in law.forms))))
    return Settings(law, check, bag, cost, skipped="Left out by --appendix none.", forms=forms)


def open_store(path: Path):
    """Open the store of a sweep; return None if there is none. Addresses are those of stores."""
    from vvlm_jax.storage import bucket
    from vvlm_jax.sweep.store import sweep_json
    from vvlm_jax.sweep.store.store import Store

    if bucket.is_url(path) or (path / sweep_json.FILE).is_file():
        return Store.open(path)
    return None


def collected(store) -> RunTable:
    """Return the scores that a sweep has so far; a note says how many are missing."""
    from vvlm_jax.sweep.table import gather

    found = gather(store)
    for line in found.missing_lines():
        print(printable(line), file=sys.stderr)
    table, notes = RunTable.from_rows(found.rows, store.path), ()
    if count := len(found.missing):
        what, why = found.missing[0]
        notes = (f"{store.path}: {count} scores are missing, the first is {what}: {why}",)
    return dataclasses.replace(table, notes=(*notes, *table.notes))


def make_folder(folder: Path) -> None:
    """Create OUT before the work, so that a bad --out is reported at once."""
    check_is_here("--out", folder)
    try:
        for name in ("figures", "tables", "laws"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"--out {folder}: {e.strerror}") from None
    if (folder / "report.html").is_dir():
        raise ValueError(f"--out {folder}: report.html is a folder; a file will be written there")


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
