"""Write docs/example.csv, 88 synthetic runs, and docs/frontier.png, the frontier of their law.

    python docs/example.py

The runs have the design of the paper's Table 6 (a star and isoFLOP curves). Their scores follow the
law in `error`, with 1% noise. They are not measurements.
"""

from pathlib import Path

import numpy as np

import fitting
from fitting import cost, sweeps
from fitting.figures import frontier_paths
from fitting.frontiers import frontier
from fitting.runs import write_runs

HERE = Path(__file__).parent
NOISE = 0.01
"""Standard deviation of the relative noise on the error."""


def error(lm_params, num_frames, tokens_per_frame, num_examples):
    """Return the noise-free error, 0 to 100: a sum of powers and a floor of 20 points."""
    N, T, V, n = lm_params / 4e9, num_frames / 16, tokens_per_frame / 60, num_examples / 8e5
    of_size = 5 * N**-0.3 + 7 * T**-0.5 + 8 * V**-0.4
    of_data = (4 + 2 * N**0.5 + 1.5 * T**0.3 + 2.5 * V**0.45) * n**-0.6
    return 20 + of_size + of_data


def rows():
    """Yield the runs: the star of Table 6, then its isoFLOP curves."""
    points = sweeps.star_sweep(*sweeps.PAPER_STAR) + sweeps.PAPER_ISOFLOP
    noise = NOISE * np.random.default_rng(0).standard_normal(len(points))
    for point, ripple in zip(points, noise, strict=True):
        score = 100 - error(*point.x, point.num_examples) * np.exp(ripple)
        factors = dict(zip(sweeps.FACTORS, point.x, strict=True))
        yield dict(
            run_id=point.run_id, sweep=point.sweep, **factors,
            num_examples=point.num_examples, metric="avg", score=round(score, 3),
        )  # fmt: skip


def main() -> None:
    """Write both files beside this one."""
    write_runs(HERE / "example.csv", rows())
    law = fitting.fit(fitting.read_runs(HERE / "example.csv"), fitting.FitConfig(form="auto"))
    domain = sweeps.PAPER_DOMAIN
    budgets = np.geomspace(1e12, 1e14, 300)
    best = frontier(law, domain, cost.PAPER, budgets, [1e6, 2e6, 4e6])
    figure = frontier_paths(best, law.factors)
    figure.suptitle("synthetic example: docs/example.csv")
    figure.savefig(HERE / "frontier.png", dpi=80)


if __name__ == "__main__":
    main()
