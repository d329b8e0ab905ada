"""Fit a scaling law to a table of runs, with bootstrap members, and say how far to trust it.

Examples:
    vvlm fit runs.csv --examples num_examples --metric avg --out runs/law
    vvlm fit fitting/data/li2024.csv --factors lm_params,visual_tokens \\
        --error error --scale 1 --form li --space linear --out runs/li

RUNS is a CSV (or .csv.gz, .parquet, .xlsx) with a header and one line a run; lines that start with
# are comments. Name the columns that make up a configuration (--factors), the number of training
examples if there is one (--examples), and a score (higher is better) or an error; a law describes
the error, scale - score; a loss (--target loss) has no scale. --where, --train and --test select
runs by conditions such as "N<5e8 and sweep=star" (N, T, V, n are the default columns).

Prints the fit report and writes OUT/fit.json, which holds all that is needed to predict and to
audit; `vvlm plan OUT` and `fitting.BaggedFit.load(OUT)` read it. --compare asks which
form describes runs that it has not seen, --ablate what each option of the fit is worth; --report
draws it all on OUT/report.html.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from fitting.config import FACTORS, FitConfig
from fitting.cost import PAPER
from fitting.fit_folder import folder_of_each, prepare, remove_stale
from fitting.forms import PAPER_FORMS, get_form, usable_forms
from fitting.runs import RunTable
from vvlm_jax.progress import live

from . import fit_checks, fit_flags
from .arguments import read_options
from .common import check_is_here, check_positive, die_in_one_line, flag, write_csv
from .fit_flags import Condition, Cost, Data, FitFlags, Flag, Rows, Ties
from .fit_profile import write_profiles

FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Page:
    """A page with figures; its costs are those of equation 1 unless said."""

    report: Flag = False
    """Write OUT/report.html and OUT/figures: the runs, the law, its frontier, where to doubt."""
    vision_params: float = PAPER.vision_params
    """x_M, parameters of the vision model."""
    features: int = PAPER.features_per_frame
    """x_W, features the vision model computes per frame."""
    cost: Cost = None
    """FLOPs of an example in place of equation 1, such as "2*T*V*N"."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm fit`."""

    data: Data
    rows: Rows
    fit: tyro.conf.FlagCreatePairsOff[FitFlags]
    ties: Ties
    page: Page
    out: Path = Path("runs/fit")
    """Folder for fit.json, compare.csv, ablate.csv and report.html."""
    compare: Flag = False
    """Which form? Table 2: random folds, --train and --test, a level or the largest n left out."""
    ablate: Flag = False
    """What is each option worth? Tables 8 and 9: the same for one changed at a time."""
    profile: Annotated[str | None, tyro.conf.arg(metavar="NAME,...|all")] = None
    """Profile-likelihood intervals of these exponents, and of the floor: text, CSV, figure."""
    train: Condition = None
    """Runs to fit when the --test runs are predicted, such as "N<5e8"."""
    test: Condition = None
    """Runs to predict from the --train runs, such as "N>=5e8 and sweep=isoflop"."""


def main(args: Args) -> None:
    """Read the runs, fit the laws, print and write what was found."""
    check_is_here("--out", args.out)
    table, config = (
        fit_flags.read_table(args.data, args.rows),
        fit_flags.fit_config(args.fit, args.ties.tie, args.data.columns),
    )
    if (args.train is None) != (args.test is None):
        raise ValueError("--train and --test go together, such as --train sweep=star --test ...")
    check_positive(args.page, "vision_params", "features")
    cost = fit_flags.page_cost(args.page.cost, args.page.vision_params, args.page.features)
    check_runs(config, table, args)
    with flag(f"--group {args.data.group}:"):
        tables = folder_of_each(args.out, table, bool(args.data.group))
    for one in tables.values():
        fit_checks.check_enough(one, config)
    folders = {args.out, *tables}
    for folder in folders:
        prepare(folder)
    from fitting.fits import fit_many
    from fitting.lack_of_fit import judged
    from fitting.splits import column_split

    for one in tables.values() if args.train else ():
        column_split(one, args.train, args.test)  # a bad split is known before the work
    warn(config, table, tables)
    with live("fit") as say:
        laws = fit_many([(one, None) for one in tables.values()], config, on_progress=say)
    laws = [judged(law, one) for law, one in zip(laws, tables.values(), strict=True)]
    for folder in folders:
        remove_stale(folder)
    fits = []
    for (folder, one), law in zip(tables.items(), laws, strict=True):
        print(law.report())
        law.save(folder)
        print(f"\n{folder / 'fit.json'}")
        if args.profile:
            write_profiles(folder, law.lead, args.profile)
        fits.append((one, law, *validate(one, config, args, folder, cost)))
    if args.page.report:
        from fitting.report.fitted import Fitted, write_fits

        page, doubts = write_fits(args.out, table, [Fitted(*fit) for fit in fits], cost)
        print(f"\n{page}" + f" ({doubts} warnings)" * bool(doubts))


def check_runs(config: FitConfig, table: RunTable, args: Args) -> None:
    """Raise ValueError for a form that does not suit the table, or too few runs to validate."""
    path, named = args.data.runs, () if config.is_auto else config.forms
    with flag(f"{path}: form"):
        for one in named:
            get_form(one.form).check_examples(table.n is not None)
    for value in table.metrics if args.compare or args.ablate else ():
        runs = int((table.metric == value).sum())
        if runs < FOLDS:
            raise ValueError(
                f"{path}: {runs} runs of {value}; --compare and --ablate need {FOLDS} or more"
            )


def warn(config: FitConfig, table: RunTable, tables: dict[Path, RunTable]) -> None:
    """Print what a reader should know before the fit: odd rows, few runs, an unused column."""
    for text in table.notes:
        print(f"warning: {text}", file=sys.stderr)
    if "num_examples" in table.columns and any(get_form(c.form).has_n for c in config.forms):
        print("note: a law without n; --examples num_examples names the column", file=sys.stderr)
    for one in tables.values():
        fit_checks.warn_if_few(one.source, len(one), config, one)


def validate(table: RunTable, config: FitConfig, args: Args, folder: Path, cost):
    """Print and write what --compare, --ablate, --train and --test ask for.

    Returns:
      The `Comparison` of forms and the `Ablation`, each None if not asked for.
    """
    from fitting import ablations, validation
    from fitting import validation_text as text
    from fitting.mixing import suiting

    if not (args.compare or args.ablate or args.train):
        return None, None
    found, ablation, asked = None, None, dict(seed=config.seed, train=args.train, test=args.test)
    if args.train:
        split = validation.column_split(table, args.train, args.test)
        fit_checks.warn_if_few(args.train, int(split.train.sum()), config, table)
    if args.compare:
        names = usable_forms(PAPER_FORMS, table.n is not None)
        configs = {name: config.replace(form=name) for name in names + suiting(config, table)}
        with live("compare") as say:
            price = cost(table.x) if table.factors == FACTORS else None
            found = validation.compare(table, configs, cost=price, on_progress=say, **asked)
        print(f"\n{text.forms_text(found)}\n\n{folder / 'compare.csv'}")
        write_csv(folder / "compare.csv", found.rows())
    if args.ablate:
        with live("ablate") as say:
            ablation = ablations.ablate(table, config, on_progress=say, **asked)
        print(f"\n{text.ablation_text(ablation)}\n\n{folder / 'ablate.csv'}")
        write_csv(folder / "ablate.csv", ablation.rows())
    if not (args.compare or args.ablate):
        with live("test") as say:
            _, (test,) = validation.validate(table, config, [split], whole=False, on_progress=say)
        print(f"\n{text.test_text(test, table)}\n\n{folder / 'test.csv'}")
        write_csv(folder / "test.csv", test.rows(table))
    return found, ablation


def cli() -> None:
    """Read the command line and run the command."""
    kind = tyro.conf.OmitArgPrefixes[Args]
    die_in_one_line(
        lambda: main(read_options(kind, __doc__, registry=fit_flags.READERS)), continues=False
    )


if __name__ == "__main__":
    cli()
