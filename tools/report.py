"""Draw all that the paper shows from a table of runs: a page, and each figure and table as files.

Examples:
    python -m tools.report runs.csv --out runs/report
    python -m tools.report sweeps/star --metric avg --vision-params 4.3e8 --features 768

RUNS is a table of runs (run_id, sweep, lm_params, num_frames, tokens_per_frame, num_examples,
metric, score; a CSV, or Parquet where pyarrow is installed), a folder with runs.csv, or a sweep's
store (a folder, or gs://BUCKET/FOLDER, s3://…), which need not be over: the scores that are there
are collected, into OUT/runs.csv. Costs are those of equation 1 with the encoder of the sweep, if
RUNS is a store, else of the paper, unless --vision-params and --features name another.
Writes OUT/report.html, which needs no network and no other file: what to deploy at each budget and
how sure that is, Figures 1 to 10, Tables 2, 8, 9 and 10, a metric at a time. OUT/figures and
OUT/tables hold the same as SVG and CSV, OUT/laws the fitted laws; the same command takes up laws
that are there. Where the runs do not support a figure, the page says why.
"""

import dataclasses
import itertools
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro

from fitting.config import FitConfig
from fitting.cost import PAPER, CostConstants
from fitting.forms import FORMS, get_form
from fitting.runs import FACTORS, RunTable, read_runs, write_runs
from vvlm_jax.progress import Progress, printable

from . import _report_jobs as work
from ._report_jobs import Settings, Subject
from .common import check_is_here, check_positive, die_in_one_line

SYNTHETIC = "Synthetic data: made up by a program, not measured."
QUICK = {"resampling": "none", "starts": 50}  # of checks: one fit each
AS_ASKED = "as asked"  # of Tables 8 and 9, as `fitting.ablations.variations` names it
QUICK_BAG = {"resamples": 20, "starts": 50}  # of Table 9


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.report`."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS")]
    """The table of runs, a sweep's store, or a folder with runs.csv or runs.parquet."""
    out: Path = Path("runs/report")
    """Folder for report.html, figures, tables and laws."""
    metric: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Reports on this metric alone; all of them by default."""
    appendix: Literal["none", "quick", "full"] = "quick"
    """Tables 2, 8, 9, 10: quick (single fits; 8, 9, 10 for one metric), full (all bagged), none."""
    form: str = FitConfig.form
    """Of the laws: mult, add, add-interact-s, add-interact, or another of fitting/forms.py."""
    resamples: int = FitConfig.resamples
    """Bootstrap resamples of each law."""
    starts: int = FitConfig.starts
    """Random starts of each resample."""
    resampling: str = FitConfig.resampling
    """iid, stratified (keeps all levels), wild (signs of residuals), bayesian (weights)."""
    seed: int = FitConfig.seed
    """Of resamples, starts and folds."""
    scale: float | None = None
    """100 or 1: the best score there could be, to be said where no score is above 1."""
    synthetic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Marks page, figures and CSVs as synthetic; a table that calls itself so needs no flag."""
    vision_params: float | None = None
    """x_M of equation 1, parameters of the vision model: by default a store's own, else 4.3e8."""
    features: int | None = None
    """x_W of equation 1, features the vision model computes per frame; else 768."""
    workers: int = 0
    """Processes; 0 for one a core."""


def main(args: Args) -> None:
    """Reads, fits, draws and writes."""
    store = open_store(args.runs)
    settings = settings_of(args, store and store.encoder)
    if store:
        path, table = args.runs, of_store(store)
        table = table.select(metric=args.metric)
    else:
        path = table_file(args.runs)
        table = read_runs(path, metric=args.metric, scale=args.scale, skip_missing=True)
        if table.scale == 1:
            table = dataclasses.replace(table, error=100 * table.error, scale=100.0)
    mark = SYNTHETIC if args.synthetic or is_synthetic(path, table) else ""
    settings = dataclasses.replace(settings, mark=mark)
    make_folder(args.out)
    if store:
        write_runs(args.out / "runs.csv", table)
    for text in table.notes:
        print(printable(f"warning: {text}"), file=sys.stderr)
    subjects = [
        work.subject(table.take(table.metric == metric), settings.law)
        for metric in in_order(table.metrics)
    ]
    slugs = file_names([subject.metric for subject in subjects])
    page = lay_out(table, compute(args, subjects, slugs, settings), slugs, settings)
    written = page.report.write(args.out, metric=page.first)
    remove_stale(args.out, page.report.files)
    print(f"{written}: {len(table)} scores of {len(subjects)} metrics{' (synthetic)' * bool(mark)}")


def settings_of(args: Args, encoder: dict | None) -> Settings:
    """How much to compute, and what a video costs: by the flags, by `encoder`, or by the paper's.
    ValueError names the flag.
    """
    form = get_form(args.form)
    if not form.has_n:
        there = ", ".join(name for name, one in FORMS.items() if one.has_n)
        raise ValueError(f"--form {args.form} has no number of examples; there are {there}")
    if args.resampling == "none":
        raise ValueError("--resampling none: how sure a law is takes members")
    if args.workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {args.workers}")
    names = ("form", "resamples", "starts", "resampling", "seed")
    try:
        law = FitConfig(**{name: getattr(args, name) for name in names}, units="geomean")
    except ValueError as e:
        text = re.sub(r"FitConfig\.(\w+)", lambda m: "--" + m[1].replace("_", "-"), str(e))
        raise ValueError(text) from None
    check, bag = {
        "none": (None, None),
        "quick": (law.replace(**QUICK), law.replace(**QUICK_BAG)),
        "full": (law, law),
    }[args.appendix]
    known = CostConstants(**encoder) if encoder else PAPER
    check_positive(args, "vision_params", "features")
    cost = CostConstants(
        known.vision_params if args.vision_params is None else args.vision_params,
        known.features_per_frame if args.features is None else args.features,
    )
    return Settings(law, check, bag, cost)


def open_store(path: Path):
    """The `Store` of a sweep that is there; None where none is. Addresses are those of stores."""
    from vvlm_jax.storage import bucket
    from vvlm_jax.sweep.store import sweep_json
    from vvlm_jax.sweep.store.store import Store

    if bucket.is_url(path) or (path / sweep_json.FILE).is_file():
        return Store.open(path)
    return None


def of_store(store) -> RunTable:
    """The scores that a sweep has by now, as its runs.csv would have them; a note says how many are
    missing.
    """
    from vvlm_jax.sweep.table import gather

    found = gather(store)
    for line in found.missing_lines():
        print(printable(line), file=sys.stderr)
    table, notes = RunTable.from_rows(found.rows, store.path), ()
    if count := len(found.missing):
        what, why = found.missing[0]
        notes = (f"{store.path}: {count} scores are missing, the first is {what}: {why}",)
    return dataclasses.replace(table, notes=(*notes, *table.notes))


def table_file(path: Path) -> Path:
    """The table in a folder; a file is itself."""
    if not path.is_dir():
        return path
    for name in ("runs.csv", "runs.parquet"):
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path}: a folder with neither a sweep's store nor runs.csv or runs.parquet")


def is_synthetic(path: Path, table: RunTable) -> bool:
    """Whether a table calls itself synthetic: in its name, a comment, a metric or a sweep."""
    words = [path.name, *table.metrics, *set(table.columns.get("sweep", ()))]
    if path.is_file() and path.suffix != ".parquet":
        with open(path, encoding="utf-8-sig") as file:
            words += [line for line in file if line.lstrip().startswith("#")]
    return any("synthetic" in word.lower() for word in words)


def make_folder(folder: Path) -> None:
    """Before the work, so that a bad --out is known at once."""
    check_is_here("--out", folder)
    try:
        for name in ("figures", "tables", "laws"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"--out {folder}: {e.strerror}") from None
    if (folder / "report.html").is_dir():
        raise ValueError(f"--out {folder}: report.html is a folder there; a file goes here")


def remove_stale(folder: Path, written) -> None:
    """Figures that an earlier report drew and this one did not."""
    for path in [*folder.glob("figures/figure[0-9]*.*"), *folder.glob("tables/*.csv")]:
        if f"{path.parent.name}/{path.name}" not in written:
            path.unlink()


def in_order(metrics) -> list[str]:
    """The mean of all first, as the paper has it, then by name."""
    return sorted(metrics, key=lambda name: (not is_mean(name), name))


def is_mean(metric: str) -> bool:
    """avg, Metrics/Avg, mean."""
    return re.split(r"\W", metric.lower())[-1] in ("avg", "average", "mean")


def file_names(metrics: list[str]) -> dict[str, str]:
    """metric -> a name for its files, letters, digits, _ and - alone, each another."""
    names = {}
    for metric in metrics:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", metric).strip("_") or "metric"
        name, count = stem, 1
        while name.lower() in (other.lower() for other in names.values()):
            count += 1
            name = f"{stem}-{count}"
        names[metric] = name
    return names


class Results(NamedTuple):
    """All that was computed.

    Attributes:
      subjects: a `Subject` a metric; `why` now also says which laws could not be fitted.
      findings: metric -> `Findings`.
      compared: metric -> `Comparison` of the forms, or None.
      appendix: Tables 8, 9 and 10, as in `appendix_tables`.
    """

    subjects: list[Subject]
    findings: dict
    compared: dict
    appendix: tuple[dict, dict, dict]


def compute(args: Args, subjects: list[Subject], slugs, settings: Settings) -> Results:
    """Laws, checks, frontiers and figures, shared among processes; laws are saved as they come."""
    ready = [subject for subject in subjects if not subject.why]
    folders = {s.metric: args.out / "laws" / slugs[s.metric] for s in subjects}
    laws = {s.metric: kept_law(folders[s.metric], s) or s.why for s in subjects}
    chosen = ready[:1] if args.appendix == "quick" else ready
    jobs = first_jobs(ready, chosen, laws, settings)
    bar = Progress("report", len(jobs) + len(subjects) + len(chosen), "jobs")
    ended = itertools.count(1)

    def on_done(key, value):
        bar.update(next(ended))
        if key[0] == "law":
            laws[key[1]] = value
            if not isinstance(value, str):
                value.save(folders[key[1]])

    bar.update(0)
    with work.crew(args.workers or len(os.sched_getaffinity(0))) as run:
        done = run(jobs, on_done)
        compared = {s.metric: forms_of(s, done) for s in ready} if settings.check else {}
        jobs = {}
        for s in subjects:
            law = laws[s.metric]
            jobs["metric", s.metric] = work.metric_job, s, law, compared.get(s.metric), settings
            if s in chosen and settings.check and s.one_n is None and not isinstance(law, str):
                jobs["table 10", s.metric] = work.sensitivity_job, s.table, law, settings.cost
        found = run(jobs, on_done)
    bar.close()
    failed = {metric: law for metric, law in laws.items() if isinstance(law, str)}
    subjects = [s._replace(why=failed.get(s.metric, "")) for s in subjects]
    findings = {s.metric: found["metric", s.metric] for s in subjects}
    return Results(subjects, findings, compared, appendix_tables(subjects, done, found))


def lay_out(table: RunTable, results: Results, slugs, settings: Settings):
    """The `Page`, filled; it opens with the first metric that has a law."""
    from ._report_checks import add_appendix, add_forms
    from ._report_page import Page

    subjects, findings, compared, appendix = results
    first = next((s.metric for s in subjects if not s.why), subjects[0].metric)
    title = "Inference compute-optimal video VLMs: what the runs say"
    subtitle = f"{Path(table.source).name}: {len(set(table.run_id))} runs, {len(subjects)} metrics"
    page = Page(subjects, findings, compared, first, settings, title, subtitle, slugs)
    page.summary()
    page.runs(table)
    page.laws()
    page.frontier()
    page.tasks(elasticity_figure(findings), vision_figure(table, settings.cost))
    add_forms(page, errors_figure(compared))
    add_appendix(page, *appendix)
    page.about(table.notes)
    return page


def first_jobs(ready, chosen, laws, settings: Settings) -> dict:
    """Forms on unseen runs, variations and Table 9, then laws; the short ones last."""
    from fitting.ablations import variations

    jobs = {}
    for name in reversed(work.PAPER_FORMS) if settings.check else ():
        tables = {s.metric: s.table for s in ready if name in s.forms}
        if tables:
            config = settings.check.replace(form=name)
            jobs["form", name] = work.entries_job, tables, name, config
    for s in chosen if settings.check else ():
        one = {s.metric: s.table}
        for name, config in variations(settings.check.replace(form=s.config.form)).items():
            if name != AS_ASKED or ("form", s.config.form) not in jobs:
                jobs["variation", s.metric, name] = work.entries_job, one, name, config
        if settings.bag != settings.check:
            bag = settings.bag.replace(form=s.config.form)
            jobs["bag", s.metric] = work.entries_job, one, AS_ASKED, bag
    for s in ready:
        if isinstance(laws[s.metric], str):
            jobs["law", s.metric] = work.law_job, s.table, s.config
    return jobs


def forms_of(subject: Subject, done: dict):
    """The metric's `Comparison` of forms."""
    entries = [
        entries[subject.metric]
        for name in work.PAPER_FORMS
        if subject.metric in (entries := done.get(("form", name), {}))
    ]
    return work.comparison(subject.table, entries)


def appendix_tables(subjects, done: dict, found: dict) -> tuple[dict, dict, dict]:
    """metric -> what Tables 8, 9 and 10 show, or why there is none."""
    eight, nine, ten = {}, {}, {}
    for subject in subjects:
        metric, form = subject.metric, subject.config.form
        entries = [v[metric] for key, v in done.items() if key[:2] == ("variation", metric)]
        asked = done.get(("form", form), {}).get(metric)
        if entries and asked is not None and not isinstance(asked, str):
            entries.insert(0, asked._replace(name=AS_ASKED))
        if entries:
            bag = done.get(("bag", metric), {metric: entries[0]})[metric]
            eight[metric] = work.comparison(subject.table, entries)
            nine[metric] = work.comparison(subject.table, [bag])
            if eight[metric] is None or nine[metric] is None:
                eight[metric] = next(text for text in [*entries, bag] if isinstance(text, str))
        if subject.one_n is not None:
            ten[metric] = f"All runs have n = {subject.one_n:g}; elasticity is change with n."
        elif ("table 10", metric) in found:
            ten[metric] = found["table 10", metric]
    return eight, nine, ten


def kept_law(folder: Path, subject: Subject):
    """The law of an earlier report of the same runs with the same options; None without one."""
    from fitting.law import BaggedFit, FittedRuns

    table = subject.table
    z = table.x if table.n is None else np.column_stack([table.x, table.n])
    try:
        law = BaggedFit.load(folder)
    except (ValueError, OSError):
        return None
    runs = FittedRuns(table.run_id, z, table.error, table.weights)
    same = law.config == subject.config and law.metric == subject.metric
    same &= law.examples == table.examples and list(law.runs.run_id) == list(runs.run_id)
    return law if same and law.runs.sha256 == runs.sha256 else None


# --- figures of several metrics ---


def elasticity_figure(findings: dict):
    """Draws Figure 5; a text says why it cannot be."""
    from fitting import figures

    changes = {
        metric: found.analysis.elasticity
        for metric, found in findings.items()
        if found.analysis is not None and found.analysis.elasticity is not None
    }
    if not changes:
        return "No metric has a law and runs of several n."
    return lambda: figures.elasticity_by_task(changes, FACTORS)


def errors_figure(compared: dict):
    """Draws Figure 3c; a text says why it cannot be."""
    from fitting import figures

    there = {metric: found for metric, found in compared.items() if found is not None}
    if not there:
        return "No form was tested on unseen runs."
    shapes = {(tuple(e.name for e in c.entries), c.splits) for c in there.values()}
    if len(shapes) > 1:
        return "The metrics were tested on different forms or splits; Table 2 has the numbers."
    return lambda: figures.errors_by_task(there)


def vision_figure(table: RunTable, cost: CostConstants):
    """Draws Figure 6; a text says why it cannot be."""
    from fitting import figures

    _, first = np.unique(table.x, axis=0, return_index=True)
    once = table.take(np.sort(first))
    for column, name in ((0, "language-model size"), (2, "number of visual tokens")):
        if len(np.unique(table.x[:, column])) < 2:
            return f"All runs have the same {name}."
    return lambda: figures.vision_share(cost, table.x[:, 0], table.x[:, 2], once)


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))


if __name__ == "__main__":
    cli()
