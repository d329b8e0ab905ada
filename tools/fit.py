"""Fit a scaling law to a table of runs, with bootstrap members, and say how far to trust it.

Examples:
    python -m tools.fit runs.csv --examples num_examples --metric avg --out runs/law
    python -m tools.fit fitting/data/li2024.csv --factors lm_params,visual_tokens \\
        --error error --scale 1 --form li --space linear --out runs/li

RUNS.csv has a header and one line a run; lines that start with # are comments. Name the columns
that make up a configuration (--factors), the number of training examples if there is one
(--examples), and a score (higher is better) or an error; a law describes the error, scale - score.
Other columns can select runs (--train, --test, --group).

Prints the fit report and writes OUT/fit.json, which holds all that is needed to predict and to
audit; `python -m tools.plan OUT` and `fitting.BaggedFit.load(OUT)` read it. --compare asks which
form describes runs that it has not seen, --ablate what each option of the fit is worth; --report
draws it all on OUT/report.html.
"""

import contextlib
import csv
import dataclasses
import math
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fitting import formatting
from fitting.config import FitConfig
from fitting.cost import PAPER, CostConstants
from fitting.forms import FORMS, PAPER_FORMS, get_form
from fitting.runs import FACTORS, RunTable, read_runs
from vvlm_jax.progress import Progress

from .common import die_in_one_line

STALE = ("report.html", "compare.csv", "ablate.csv")  # beside fit.json; made anew when asked for
FOLDS = 5
Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]
Rows = Annotated[str | None, tyro.conf.arg(metavar="COLUMN=VALUE")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Data:
    """Which columns of the table mean what."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS.csv")]
    """The table of runs."""
    factors: Annotated[str, tyro.conf.arg(metavar="COLUMN,...")] = ",".join(FACTORS)
    """Columns x_1, x_2 ... of a configuration: any number, positive."""
    examples: Column = None
    """Column of the number of training examples n; left out, the law has no n."""
    score: Column = None
    """Column of scores, 0 to --scale, higher is better; 'score' if there is no --error."""
    error: Column = None
    """Column of errors, in place of a score."""
    scale: Literal["100", "1"] | None = None
    """The error of a complete failure; 100, but values never above 1 need it said."""
    metric: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Keeps the rows with this value in the column 'metric'."""
    group: Column = None
    """Fits each value of this column, such as 'metric': one batch, a folder OUT/VALUE each."""
    weights: Column = None
    """Column of the runs' weights."""


@dataclasses.dataclass(frozen=True)
class Law:
    """How the law is fitted; the defaults are the paper's but for the cap and the solver."""

    form: str = FitConfig.form
    """mult, add, add-interact-s, add-interact (equation 3), or another of fitting/forms.py."""
    resamples: int = FitConfig.resamples
    """Bootstrap resamples; each gives one member of the bag."""
    starts: int = FitConfig.starts
    """Random starts of each resample; the best optimum is kept."""
    seed: int = FitConfig.seed
    """Of resamples, starts and folds: the same seed, the same fit."""
    resampling: str = FitConfig.resampling
    """iid, stratified (keeps all levels), wild (signs of residuals), bayesian (weights), none."""
    aggregate: str = FitConfig.aggregate
    """How members become one prediction: median or mean."""
    loss: str = FitConfig.loss
    """mse or huber."""
    huber_delta: float = FitConfig.huber_delta
    """Residual from which huber grows linearly, in log error (or error, with --space linear)."""
    space: str = FitConfig.space
    """Residuals of the log error (log, equation 7) or of the error itself (linear)."""
    init: str = FitConfig.init
    """Starts: coefficient, log-coefficient (what is uniform), zero, projected (solved for)."""
    solver: str = FitConfig.solver
    """lm (second order, fast) or lbfgs (the paper's procedure, slow)."""
    exponent_cap: Annotated[str, tyro.conf.arg(metavar="NUMBER|none")] = "4"
    """Largest |exponent|; none is the paper's, and lets members run away off the levels."""
    bound_exponents: Flag = False
    """Keeps exponents at 0 or above."""
    free_floor: Flag = False
    """Lets the floor go negative; needs --space linear."""
    units: Annotated[str | None, tyro.conf.arg(metavar="geomean|COLUMN=NUMBER,...")] = None
    """Of starts and parameters; unless said, lm_params=1e9,num_examples=1e6 and 1 elsewhere."""


@dataclasses.dataclass(frozen=True)
class Page:
    """A page with figures; its costs are those of equation 1."""

    report: Flag = False
    """Write OUT/report.html and OUT/figures: the runs, the law, its frontier, where to doubt."""
    vision_params: float = PAPER.vision_params
    """x_M, parameters of the vision model."""
    features: int = PAPER.features_per_frame
    """x_W, features the vision model computes per frame."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.fit`."""

    data: Data
    fit: Law
    page: Page
    out: Path = Path("runs/fit")
    """Folder for fit.json, compare.csv, ablate.csv and report.html."""
    compare: Flag = False
    """Which form? Table 2: random folds, --train and --test, a level or the largest n left out."""
    ablate: Flag = False
    """What is each option worth? Tables 8 and 9: the same for one changed at a time."""
    train: Rows = None
    """Runs to fit when the --test runs are predicted, such as sweep=star."""
    test: Rows = None
    """Runs to predict from the --train runs, such as sweep=isoflop."""


def main(args: Args) -> None:
    """Reads, fits, prints and writes."""
    table, config = read_table(args.data), fit_config(args.fit)
    if (args.train is None) != (args.test is None):
        raise ValueError("--train and --test go together, such as --train sweep=star --test ...")
    cost = page_cost(args.page)
    check_form(config, table, args)
    tables = tables_by_folder(table, args)
    for folder in {args.out, *tables}:
        make_folder(folder)
    from fitting.fits import fit_many
    from fitting.validation import column_split

    if args.train:
        for one in tables.values():
            column_split(one, args.train, args.test)  # a bad split is known before the work
    for text in table.notes:
        print(f"warning: {text}", file=sys.stderr)
    if "num_examples" in table.columns and get_form(config.form).has_n:
        print("note: a law without n; --examples num_examples names the column", file=sys.stderr)
    for one in tables.values():
        say_if_few(one.source, len(one), config, one)
    with live("fit") as say:
        laws = fit_many([(one, None) for one in tables.values()], config, on_progress=say)
    fits = []
    for folder in {args.out, *tables}:
        remove_stale(folder)
    for (folder, one), law in zip(tables.items(), laws, strict=True):
        print(law.report())
        law.save(folder)
        print(f"\n{folder / 'fit.json'}")
        fits.append((one, law, *judge(one, config, args, folder)))
    if args.page.report:
        from fitting.report.fitted import Fitted, write_fits

        page, doubts = write_fits(args.out, table, [Fitted(*fit) for fit in fits], cost)
        print(f"\n{page}" + f" ({doubts} warnings)" * bool(doubts))


def read_table(data: Data) -> RunTable:
    """The runs that the options name. ValueError where they hold several metrics to choose from."""
    options = dataclasses.asdict(data) | {
        "factors": tuple(name.strip() for name in data.factors.split(",") if name.strip()),
        "scale": None if data.scale is None else float(data.scale),
    }
    table = read_runs(options.pop("runs"), **options)
    if len(table.metrics) > 1 and not data.group:
        raise ValueError(
            f"{data.runs}: metrics {', '.join(table.metrics)}; choose one with --metric, or fit "
            "each with --group metric"
        )
    return table


def fit_config(law: Law) -> FitConfig:
    """The options of the fit; ValueError names the flag."""
    values = dataclasses.asdict(law)
    values["exponent_cap"] = None
    if law.exponent_cap != "none":
        values["exponent_cap"] = number("--exponent-cap", law.exponent_cap, " or none")
    if law.units not in (None, "geomean"):
        pairs = [part.partition("=") for part in law.units.split(",")]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError(f"--units {law.units}: write geomean, or COLUMN=NUMBER with commas")
        values["units"] = {name.strip(): number("--units", unit) for name, _, unit in pairs}
    get_form(law.form)
    try:
        return FitConfig(**values)
    except ValueError as e:
        flags = re.sub(r"FitConfig\.(\w+)", lambda m: "--" + m[1].replace("_", "-"), str(e))
        flags = flags.replace("space='linear'", "--space linear").replace("or None", "or none")
        raise ValueError(flags) from None


def page_cost(page: Page) -> CostConstants:
    """Equation 1; ValueError names the flag."""
    for name in ("vision_params", "features"):
        value = getattr(page, name)
        if not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be a positive number, got {value:g}")
    return CostConstants(page.vision_params, page.features)


def number(flag: str, text: str, also: str = "") -> float:
    """The text as a number; ValueError names the flag."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{flag}: {text!r} is no number{also}") from None


def tables_by_folder(table: RunTable, args: Args) -> dict[Path, RunTable]:
    """The whole table in the --out folder, or each group in a folder of its name."""
    if not args.data.group:
        return {args.out: table}
    names = {value: re.sub(r"[^\w.-]+", "_", value).strip(".") or "_" for value in table.metrics}
    if len(set(names.values())) < len(names):
        raise ValueError(
            f"--group {args.data.group}: two of {', '.join(names)} make the same folder"
        )
    return {args.out / name: table.take(table.metric == value) for value, name in names.items()}


def check_form(config: FitConfig, table: RunTable, args: Args) -> None:
    """ValueError before the work: a form and a table that do not go together, too few runs."""
    form, path = get_form(config.form), args.data.runs
    if table.n is None and form.frontier_moves:
        there = ", such as num_examples" if "num_examples" in table.columns else ""
        without = ", ".join(f.name for f in FORMS.values() if not f.frontier_moves)
        raise ValueError(
            f"{path}: form {form.name!r} needs the number of examples: give --examples COLUMN"
            f"{there}; forms that can do without: {without}"
        )
    if table.n is not None and not form.has_n:
        raise ValueError(
            f"{path}: form {form.name!r} has no number of examples; leave --examples out"
        )
    for value in table.metrics if args.compare or args.ablate else ():
        runs = int((table.metric == value).sum())
        if runs < FOLDS:
            raise ValueError(
                f"{path}: {runs} runs of {value}; --compare and --ablate need {FOLDS} or more"
            )


def say_if_few(what: str, runs: int, config: FitConfig, table: RunTable) -> None:
    """A warning where runs do not outnumber parameters: nothing is left to check the law."""
    count = len(get_form(config.form).parameters(len(table.factors), table.n is not None))
    if runs <= count:
        print(f"warning: {what}: {runs} runs for {count} parameters", file=sys.stderr)


def make_folder(folder: Path) -> None:
    """Before the work, so that a bad --out is known at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"--out {folder}: {e.strerror}") from None
    for path in (folder / name for name in ("fit.json", *STALE)):
        if path.is_dir():
            raise ValueError(f"--out {folder}: {path.name} is a folder there; a file goes here")
    if (folder / "figures").is_file():
        raise ValueError(f"--out {folder}: figures is a file there; a folder goes here")


def remove_stale(folder: Path) -> None:
    """What an earlier fit left beside its fit.json tells of another law."""
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    for figure in (folder / "figures").glob("*.*"):
        if figure.suffix in (".png", ".svg", ".csv"):
            figure.unlink()


@contextlib.contextmanager
def live(title: str):
    """A progress line while the block runs; what it gives is called with (label, done, total)."""
    bars = []

    def say(*progress):
        *label, done, total = progress
        name = " ".join([title, *label])
        if not bars or bars[-1].title != name:
            bars.append(Progress(name, total, "fits"))
        bars[-1].total = total
        bars[-1].update(done)

    yield say
    for bar in bars[-1:]:
        bar.close()


# --- which law to trust ---


def judge(table: RunTable, config: FitConfig, args: Args, folder: Path):
    """Prints what --compare, --ablate, --train and --test ask for, and writes the tables.

    Returns the `Comparison` of forms and the `Ablation`, each None if not asked for.
    """
    from fitting import validation

    found, ablation, asked = None, None, dict(seed=args.fit.seed, train=args.train, test=args.test)
    scale = f"MSE on the scale 0 to {table.scale:g}"
    if args.train and (args.compare or args.ablate):
        split = validation.column_split(table, args.train, args.test)
        say_if_few(args.train, int(split.train.sum()), config, table)
    if args.compare:
        names = [
            name for name in PAPER_FORMS if table.n is not None or not FORMS[name].frontier_moves
        ]
        names = dict.fromkeys((*names, config.form))
        configs = {name: config.replace(form=name) for name in names}
        with live("compare") as say:
            found = validation.compare(table, configs, on_progress=say, **asked)
        print(f"\nForms on runs they have not seen, {table.metrics[0]}; {scale}, E% relative.\n")
        print(comparison_text(found))
        write_rows(folder / "compare.csv", found.rows())
    if args.ablate:
        with live("ablate") as say:
            ablation = validation.ablate(table, config, on_progress=say, **asked)
        print(f"\nOne option at a time, {config.form} on {table.metrics[0]}; {scale}.\n")
        print(comparison_text(ablation.variations))
        print("\nFewer members, and their mean (of the fits as asked).\n")
        print(bagging_text(ablation))
        write_rows(folder / "ablate.csv", ablation.rows())
    if args.train and not (args.compare or args.ablate):
        with live("test") as say:
            split = [validation.column_split(table, args.train, args.test)]
            say_if_few(args.train, int(split[0].train.sum()), config, table)
            _, (test,) = validation.validate(table, config, split, whole=False, on_progress=say)
        print(f"\n{test.name}: {test.train.sum()} runs predict {test.test.sum()}; {scale}.")
        print(formatting.aligned(("MSE", "E%", "R²"), [score_cells(test.score)]))
    return found, ablation


def comparison_text(found) -> str:
    """One line an entry: random folds, the chosen split and AICc; then the MSE of all splits."""
    folds, chosen, basis = found.splits[0], found.extrapolation, found.entries[0].law.config
    headers = ["", "params", "CV MSE", "E%", "R²", "above best ± s.e."]
    headers += ["split MSE", "E%", "R²"] if chosen else []
    rows = []
    for entry in found.entries:
        above, spread = found.difference(entry.name, folds)
        cells = [entry.name, str(entry.num_parameters), *score_cells(entry.cross_validation)]
        cells.append("best" if entry.name == found.best else f"{above:.2g} ± {spread:.2g}")
        cells += score_cells(found.score(entry.name, chosen)) if chosen else []
        alike = (entry.law.config.space, entry.law.config.loss) == (basis.space, basis.loss)
        rows.append([*cells, formatting.number(entry.law.aicc, 4) if alike else "-"])
    others = [
        [f"{split}, {found.entries[0].validation(split).test.sum()} runs"]
        + [formatting.number(found.score(entry.name, split).mse) for entry in found.entries]
        for split in found.splits
    ]
    names = [entry.name for entry in found.entries]
    return (
        f"{formatting.aligned([*headers, 'AICc'], rows)}\n\n"
        f"{formatting.aligned(['MSE on runs not seen', *names], others)}"
    )


def bagging_text(ablation) -> str:
    """Table 9."""
    found = ablation.variations
    headers = ["members", "aggregate", "all runs MSE", "E%", "R²", "CV MSE", "E%", "R²"]
    headers += ["split MSE", "E%", "R²"] if found.extrapolation else []
    rows = []
    for line in ablation.bagging:
        scores = [line.train, line.cross_validation]
        scores += [line.extrapolation] if found.extrapolation else []
        rows.append([str(line.resamples), line.aggregate, *sum(map(score_cells, scores), [])])
    return formatting.aligned(headers, rows)


def score_cells(score) -> list[str]:
    """MSE, E% and R²."""
    return [
        formatting.number(score.mse),
        formatting.number(score.percent),
        formatting.number(score.r2),
    ]


def write_rows(path: Path, rows: list[dict]) -> None:
    """A CSV with every digit."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"\n{path}")


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(
        lambda: main(tyro.cli(tyro.conf.OmitArgPrefixes[Args], description=__doc__)),
        continues=False,
    )


if __name__ == "__main__":
    cli()
