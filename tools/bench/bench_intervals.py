"""Measure the coverage of 90% intervals where runs share a cause, differ in noise, or stand alone.

Examples:
    python -m tools.bench.bench_intervals --tables 100
    python -m tools.bench.bench_intervals --cases clusters --tables 20

Synthetic tables, each with noise of its own, of three kinds:

- clusters: 14 trainings of 7 sizes, 8 checkpoints each; all checkpoints of a training share an
  offset of 2%, beside 0.5% of their own. Fitted with and without --cluster.
- noise: the paper's 88 runs, every other one known to 5%, the others to 0.3%, and 0.5% of each
  training. Fitted plainly, with --weights 1/sigma^2, and with --noise.
- strata: 40 runs of 39 levels, so that 38 have a single run. Fitted with each resampling.

Printed: how often the interval of the law holds the truth, and that of a new run the new run's
error (of a new cluster; noisy and precise runs apart), ± the standard error over tables.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from fitting import formatting
from fitting.config import RESAMPLINGS, FitConfig
from fitting.runs import RunTable
from fitting.sweeps import PAPER_ISOFLOP, PAPER_STAR, star_sweep
from tools.arguments import read_options
from tools.common import die_in_one_line
from vvlm_jax.progress import Progress

LEVEL = 0.9
CASES = ("clusters", "noise", "strata")
KINDS = tuple(kind for kind in RESAMPLINGS if kind != "none")
SHARED, OWN = 0.02, 0.005  # relative noise of a training, and of a run
NOISY, PRECISE = 0.05, 0.003


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_intervals`."""

    cases: str = ",".join(CASES)
    """Which kinds of tables."""
    tables: int = 100
    """Synthetic tables of each kind, each with its own noise."""
    resamples: int = 100
    """Members of each fit."""
    starts: int = 50
    """Random starts of each member."""
    batch: int = 10
    """Tables fitted at once."""
    quick: bool = False
    """3 tables, 20 resamples x 20 starts."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A synthetic table, what is true of it, and the new runs to predict."""

    table: RunTable
    form: str
    truth: np.ndarray  # [R], without noise
    new: np.ndarray  # [R], errors of new runs at the same configurations
    noise: np.ndarray | None  # [R], known of the new runs
    groups: dict[str, np.ndarray]  # name -> bool [R]


def main(args: Args) -> None:
    """Print a table of coverage for each kind."""
    if args.quick:
        args = dataclasses.replace(args, tables=3, resamples=20, starts=20)
    for case in args.cases.split(","):
        if case not in CASES:
            raise ValueError(f"--cases {case}: there are {', '.join(CASES)}")
        makers = list(ways(case))
        bar, rows, groups = Progress(case, len(makers) * args.tables, "fits"), [], ()
        for done, (name, change, kind) in enumerate(makers):
            config = FitConfig(
                resamples=args.resamples, starts=args.starts, resampling=kind, form="add"
            )
            found = []
            for first in range(0, args.tables, args.batch):
                seeds = range(first, min(first + args.batch, args.tables))
                some, groups = covered(case, change, config, seeds)
                found += some
                bar.update(done * args.tables + len(found))
            rows.append((name, kind, *cells(np.array(found))))
        bar.close()
        print(f"{case}: share of {LEVEL:.0%} intervals that hold over {args.tables} tables, %")
        print(formatting.aligned(("fitted", "resampling", "law", *groups, "width of law"), rows))
        print()


def ways(case: str) -> Iterator[tuple]:
    """Yield (name, changes of the table, resampling) of each way to fit a kind of tables."""
    if case == "strata":
        yield from (("as is", {}, kind) for kind in KINDS)
        return
    if case == "clusters":
        yield "without --cluster", dict(cluster=None), "iid"
        yield from (("--cluster", {}, kind) for kind in KINDS)
        return
    yield "plainly", dict(noise=None), "iid"
    yield "--weights", dict(noise=None, weights=True), "iid"
    yield from (("--noise", {}, kind) for kind in KINDS)


def covered(case: str, change: dict, config: FitConfig, seeds) -> tuple[list, tuple]:
    """Return, per table, [law, new run in each group, width of the law], and the groups' names."""
    from fitting.fits import fit_many
    from fitting.intervals import prediction_interval

    made = [MAKERS[case](seed) for seed in seeds]
    tables = []
    for one in made:
        changes = dict(change)
        if changes.pop("weights", False):
            changes["weights"] = (one.table.noise / one.table.error) ** -2.0
        tables.append(dataclasses.replace(one.table, **changes))
    config = config.replace(form=made[0].form)
    found = []
    for one, law in zip(made, fit_many([(t, None) for t in tables], config), strict=True):
        x, n = one.table.x, one.table.n
        low, high = law.interval(x, n, LEVEL)
        width = np.median((high - low) / one.truth)
        of_law = np.mean((low <= one.truth) & (one.truth <= high))
        known = one.noise if law.runs.noise is not None else None
        low, high = prediction_interval(law, x, n, LEVEL, noise=known)
        inside = (low <= one.new) & (one.new <= high)
        found.append([of_law, *(inside[rows].mean() for rows in one.groups.values()), width])
    return found, tuple(f"new run{name}" for name in made[0].groups)


def clusters(seed: int) -> Made:
    """Return 14 trainings of 8 checkpoints each, of which each training's share an offset."""
    rng = np.random.default_rng([seed, 1])
    size = np.repeat(np.geomspace(1e8, 1e10, 7), 2)
    training, checkpoint = np.divmod(np.arange(14 * 8), 8)
    x, n = size[training, None], np.geomspace(1e5, 1e7, 8)[checkpoint]
    truth = 20 + 15 * (x[:, 0] / 1e9) ** -0.35 + 10 * (n / 1e6) ** -0.4

    def noise():
        offset = SHARED * rng.standard_normal(14)[training]
        return truth * np.exp(offset + OWN * rng.standard_normal(len(n)))

    labels = np.char.add("training ", training.astype(str))
    table = table_of(noise(), x, n, cluster=labels)
    return Made(table, "add", truth, noise(), None, {"": np.ones(len(n), bool)})


def noisy(seed: int) -> Made:
    """Return the paper's 88 runs, every other one of a noisy evaluation; its noise is known."""
    rng = np.random.default_rng([seed, 2])
    points = star_sweep(*PAPER_STAR) + PAPER_ISOFLOP
    x = np.array([point.x for point in points], float)
    n = np.array([point.num_examples for point in points], float)
    truth = 20 + 9 * (x[:, 0] / 4e9) ** -0.25 + 5 * (x[:, 1] / 16) ** -0.4
    truth += 3 * (x[:, 2] / 60) ** -0.2 + 4 * (n / 8e5) ** -0.6
    of_evaluation = np.where(rng.permutation(len(n)) % 2, NOISY, PRECISE)

    def error():
        spread = np.hypot(of_evaluation, OWN)
        return truth * (1 + spread * rng.standard_normal(len(n)))

    measured = error()
    table = table_of(measured, x, n, noise=of_evaluation * measured)
    groups = {", noisy": of_evaluation == NOISY, ", precise": of_evaluation == PRECISE}
    return Made(table, "add", truth, error(), of_evaluation * truth, groups)


def strata(seed: int) -> Made:
    """Return 40 runs at 39 levels of one factor."""
    rng = np.random.default_rng([seed, 3])
    x = np.geomspace(1e8, 1e10, 39)
    x = np.append(x, x[20])[:, None]
    truth = 20 + 15 * (x[:, 0] / 1e9) ** -0.4
    error, new = truth * np.exp(0.01 * rng.standard_normal((2, 40)))
    return Made(table_of(error, x), "add", truth, new, None, {"": np.ones(40, bool)})


MAKERS = {"clusters": clusters, "noise": noisy, "strata": strata}


def table_of(error, x, n=None, **fields) -> RunTable:
    """Return a table of synthetic runs."""
    count = len(error)
    return RunTable(
        factors=tuple(f"x{k + 1}" for k in range(x.shape[1])),
        x=x,
        examples=None if n is None else "n",
        n=n,
        error=error,
        scale=100.0,
        weights=np.ones(count),
        run_id=np.array([f"run {r + 1}" for r in range(count)]),
        metric=np.full(count, "synthetic"),
        columns={},
        source="synthetic",
        **fields,
    )


def cells(found: np.ndarray) -> list[str]:
    """Return means ± standard errors over tables, in percent."""
    spread = found.std(axis=0, ddof=1) / np.sqrt(len(found)) if len(found) > 1 else 0 * found[0]
    texts = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(found.mean(0), spread, strict=True)]
    return [*texts[:-1], f"{100 * found[:, -1].mean():.2f}%"]


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
