"""Measure how often a 90% interval contains the truth, by resampling mode, on synthetic twins.

Example:
    python -m tools.bench.bench_coverage --tables 5

Many tables of the paper's 88 runs are made from one known law, with 1% noise each of its own. Every
table is fitted with every kind of resampling. Two questions: does the interval over members hold
the law's own error, and does the prediction interval (members and run noise) hold a new run's?
Asked at the runs' own configurations and data sizes, and elsewhere: at configurations up to 100
TFLOPs for n = 1, 2 and 5 million, most of which no sweep has touched. 90% is what an honest
interval reaches.
"""

import dataclasses

import numpy as np

from fitting import formatting
from fitting.config import RESAMPLINGS, FitConfig
from fitting.cost import PAPER
from fitting.sweeps import PAPER_DOMAIN
from tools.arguments import read_options
from tools.bench.bench_frontier import NOISE, twin, twin_law
from tools.common import die_in_one_line
from vvlm_jax.progress import Progress

SIZES = 1e6, 2e6, 5e6
LEVEL = 0.9
EVERY = 37
"""Only every 37th configuration within the budget is tested."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_coverage`."""

    tables: int = 100
    """Synthetic tables, each with its own noise."""
    resamples: int = 100
    """Members of each fit."""
    starts: int = 100
    """Random starts of each member."""
    batch: int = 5
    """Tables fitted at once."""
    form: str = "add-interact"
    """The law that is fitted; the tables come from an add-interact law."""
    quick: bool = False
    """3 tables, 20 resamples x 20 starts."""


def main(args: Args) -> None:
    """Print a line for each kind of resampling."""
    if args.quick:
        args = dataclasses.replace(args, tables=3, resamples=20, starts=20)
    kinds = [kind for kind in RESAMPLINGS if kind != "none"]
    bar, rows = Progress("coverage", len(kinds) * args.tables, "fits"), []
    for done, kind in enumerate(kinds):
        config = FitConfig(
            form=args.form, resamples=args.resamples, starts=args.starts, resampling=kind
        )
        found = []
        for first in range(0, args.tables, args.batch):
            seeds = range(first, min(first + args.batch, args.tables))
            found += covered(config, seeds)
            bar.update(done * args.tables + len(found))
        rows.append((kind, *cells(np.array(found))))
    bar.close()
    print(
        f"share of {LEVEL:.0%} intervals that hold, ± its standard error over {args.tables} "
        f"synthetic tables; {args.form}, {args.resamples} resamples x {args.starts} starts"
    )
    headers = ("resampling", "law, at runs", "law, elsewhere", "new run, at runs", "new run, else")
    print(formatting.aligned((*headers, "width / true"), rows))


def covered(config: FitConfig, seeds) -> list[list[float]]:
    """Return [law at runs, law elsewhere, run at runs, run elsewhere, width ratio] per table."""
    from fitting.fits import fit_many
    from fitting.intervals import prediction_interval

    tables = [twin(seed) for seed in seeds]
    laws = fit_many([(table, None) for table in tables], config)
    asked = [(tables[0].x, tables[0].n), elsewhere()]
    found = []
    for seed, law in zip(seeds, laws, strict=True):
        noise = np.random.default_rng([seed, 1])
        of_law, of_runs = [], []
        for x, n in asked:
            truth = twin_law(x, n)
            low, high = law.interval(x, n, LEVEL)
            of_law.append(np.mean((low <= truth) & (truth <= high)))
            new = truth * np.exp(NOISE * noise.standard_normal(truth.shape))
            low, high = prediction_interval(law, x, n, LEVEL)
            of_runs.append(np.mean((low <= new) & (new <= high)))
        # Relative to the interval if the law were known, which is run noise alone.
        width = np.median((high - low) / (2 * 1.645 * NOISE * truth))
        found.append([*of_law, *of_runs, float(width)])
    return found


def elsewhere():
    """Return (x [X, 3], n [X]): configurations up to 100 TFLOPs at three data sizes."""
    x = PAPER_DOMAIN.configurations()
    x = x[PAPER(x) <= 100e12][::EVERY]
    return np.tile(x, (len(SIZES), 1)), np.repeat(SIZES, len(x))


def cells(found_S5: np.ndarray) -> list[str]:
    """Return means ± standard errors over tables, in percent; the last column is a ratio."""
    mean, spread = found_S5.mean(axis=0), np.zeros(5)
    if len(found_S5) > 1:
        spread = found_S5.std(axis=0, ddof=1) / np.sqrt(len(found_S5))
    texts = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(mean[:4], spread[:4], strict=True)]
    return [*texts, f"{mean[4]:.2f}"]


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
