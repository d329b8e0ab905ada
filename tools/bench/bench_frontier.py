"""Compare the exact frontier with brute force: seconds, memory, and whether they agree.

Example:
    python -m tools.bench.bench_frontier

The bar: 300 budgets x 200 data sizes x 100 members over 5 x 128 x 28 configurations with the median
of the members, at most 5 s on 2 cores, under 2 GiB, equal to brute force. The law is fitted to a
synthetic twin of the paper's 88 runs (1% noise); what it says is not a result. Brute force is
np.median over the whole grid for each data size, and a scan of the affordable for each budget.
"""

import dataclasses
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from fitting import formatting
from fitting.cost import PAPER
from fitting.elasticities import elasticity
from fitting.frontiers import frontier, member_frontiers
from fitting.runs import RunTable
from fitting.sweeps import PAPER_ISOFLOP, PAPER_STAR, Domain, star_sweep
from tools.arguments import read_options
from tools.common import die_in_one_line

NOISE = 0.01
LEVELS = (1e9, 2.8e9, 7.5e9, 2e10, 7e10), range(1, 129), [side * side for side in range(1, 29)]


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_frontier`."""

    law: Path | None = None
    """Folder of a law that `vvlm fit` wrote; by default the twin is fitted first, unmeasured."""
    repeats: int = 3
    """Repetitions of each measurement, of which the median counts; brute force runs once."""
    quick: bool = False
    """30 budgets x 10 data sizes."""


def main(args: Args) -> None:
    """Print a table and whether both agree."""
    from fitting.config import FitConfig
    from fitting.fits import fit
    from fitting.law import BaggedFit

    law = BaggedFit.load(args.law) if args.law else fit(twin(), FitConfig(starts=50))
    domain = Domain(*LEVELS)
    budgets = np.linspace(1e12, 100e12, 30 if args.quick else 300)
    sizes = np.linspace(1e6, 10e6, 10 if args.quick else 200)
    task = (law, domain, PAPER, budgets, sizes)
    print(
        f"{len(budgets)} budgets x {len(sizes)} data sizes x {len(law.theta)} members over "
        f"{len(domain.configurations()):,} configurations; {law.config.form}, numpy "
        f"{np.__version__}"
    )
    rows, best = [], None
    for name, work in (
        ("frontier of the bag", lambda: frontier(*task)),
        ("frontiers of the members", lambda: member_frontiers(*task)),
        ("elasticity, bag and members", lambda: elasticity(*task[:4], sizes[::2], 5e6)),
    ):
        found, walls, busy = measure(work, args.repeats)
        best = best or found
        rows.append((name, *map(formatting.number, (walls, busy, peak_gib()))))
    (error, index), walls, busy = measure(lambda: brute_force(*task), 1)
    rows.append(("brute force", *map(formatting.number, (walls, busy, peak_gib()))))
    print(formatting.aligned(("", "seconds", "CPU seconds", "peak GiB so far"), rows))

    np.testing.assert_allclose(best.error, error, rtol=1e-12)
    same = (best.x == domain.configurations()[index]).all(axis=-1)
    print(f"errors equal to 1e-12; x* the same in {same.sum()} of {same.size}")
    if not same.all():
        sys.exit("x* differs from brute force")


def twin(seed: int = 0) -> RunTable:
    """Return synthetic errors of a known law on the paper's 88 runs, with 1% noise from `seed`."""
    points = star_sweep(*PAPER_STAR) + PAPER_ISOFLOP
    error = twin_law(np.array([p.x for p in points]), np.array([p.num_examples for p in points]))
    error *= np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(points)))
    return RunTable.from_rows(
        p._asdict() | {"run_id": p.run_id, "metric": "synthetic", "score": 100 - e}
        for p, e in zip(points, error.tolist(), strict=True)
    )


def twin_law(x, n) -> np.ndarray:
    """Return the twin's error [...] without noise, at x [..., 3] and n [...]."""
    lm, frames, tokens = np.moveaxis(x / [4e9, 16.0, 60.0], -1, 0)
    data = (n / 8e5) ** -0.6
    error = 20 + 9 * lm**-0.25 + 5 * frames**-0.4 + 3 * tokens**-0.2
    return error + data * (4 + 2 * lm**0.5 + 1.5 * frames**0.3 + 2.5 * tokens**0.45)


def brute_force(law, domain, cost, budgets, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Return the least error [C, M] and the index [C, M] of its configuration, by brute force."""
    x = domain.configurations()
    cost_X = cost(x)
    order = np.argsort(cost_X, kind="stable")  # ties go to the cheaper
    error_CM = np.empty((len(budgets), len(sizes)))
    index_CM = np.empty(error_CM.shape, int)
    for m, n in enumerate(sizes):
        error_X = np.median(law.predict_members(x, n), axis=0)[order]
        for c, budget in enumerate(budgets):
            found = np.where(cost_X[order] <= budget, error_X, np.inf).argmin()
            error_CM[c, m], index_CM[c, m] = error_X[found], order[found]
    return error_CM, index_CM


def measure(work, repeats: int):
    """Return (result, median wall seconds, median CPU seconds of all threads)."""
    walls, busy, found = [], [], None
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        found = work()
        walls.append(time.perf_counter() - wall)
        busy.append(time.process_time() - cpu)
    return found, statistics.median(walls), statistics.median(busy)


def peak_gib() -> float:
    """Return the peak memory of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
