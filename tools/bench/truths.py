"""Make synthetic tables of the paper's 88 runs from six truths, of which one is in the family.

Three truths break the form of the law (a cross term, a broken power law, accuracy that is logistic
in the logs), two break the noise (its size differs between runs, heavy tails). Parameters are
invented; nothing here was measured on a model.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fitting.runs import RunTable
from fitting.sweeps import PAPER_ISOFLOP, PAPER_STAR, star_sweep

NOISE = 0.01
"""Standard deviation of the log error, in every truth but one."""
UNITS = (3.5e9, 14.0, 55.0)
EXAMPLES = 9e5
POINTS = (*star_sweep(*PAPER_STAR), *PAPER_ISOFLOP)


class Truth(NamedTuple):
    """How errors come about.

    Attributes:
      error: x [..., 3], n [...] -> error [...] in points of 100, without noise.
      noise: (rng, number of runs) -> (log noise [R], its standard deviation [R]).
    """

    error: Callable
    noise: Callable


def family(x, n) -> np.ndarray:
    """Return an error of the form add-interact (equation 3)."""
    lm, frames, tokens, data = _normalised(x, n)
    error = 18 + 8 * lm**-0.3 + 6 * frames**-0.5 + 4 * tokens**-0.25
    return error + data**-0.45 * (3 + 2.5 * lm**0.4 + 1.5 * frames**0.4 + 2 * tokens**0.5)


def cross(x, n) -> np.ndarray:
    """Return `family` plus a cross term: few frames and few tokens hurt each other."""
    _, frames, tokens, _ = _normalised(x, n)
    return family(x, n) + 1.6 * frames**-0.55 * tokens**-0.45


def broken(x, n) -> np.ndarray:
    """Return a law whose frames and examples gain less beyond a break."""
    lm, frames, tokens, data = _normalised(x, n)
    fall = frames**-0.65 * (1 + (frames / 1.1) ** 4) ** (0.35 / 4)
    slow = data**-0.55 * (1 + (data / 1.2) ** 4) ** (0.25 / 4)
    error = 18 + 8 * lm**-0.3 + 6 * fall + 4 * tokens**-0.25
    return error + slow * (3 + 2.5 * lm**0.4 + 1.5 * frames**0.4 + 2 * tokens**0.5)


def logistic(x, n) -> np.ndarray:
    """Return 100 - accuracy, logistic in the logs with mild curvature."""
    lm, frames, tokens, data = (np.log(v) for v in _normalised(x, n))
    logit = 0.4 + 0.32 * lm + 0.4 * frames - 0.055 * frames**2 + 0.3 * tokens - 0.04 * tokens**2
    return 100 / (1 + np.exp(logit + 0.18 * data))


def _normalised(x, n):
    return *np.moveaxis(np.asarray(x, float) / UNITS, -1, 0), np.asarray(n, float) / EXAMPLES


def _even(rng, runs: int):
    return NOISE * rng.standard_normal(runs), np.full(runs, NOISE)


def _uneven(rng, runs: int):
    """Return noise of 0.5% for half of the runs and of 2% for the others."""
    spread_R = np.where(rng.permutation(runs) < runs // 2, 0.005, 0.02)
    return spread_R * rng.standard_normal(runs), spread_R


def _heavy(rng, runs: int):
    """Return t noise with 3 degrees of freedom and the same standard deviation."""
    return NOISE / np.sqrt(3) * rng.standard_t(3, runs), np.full(runs, NOISE)


TRUTHS = {
    "family": Truth(family, _even),
    "cross": Truth(cross, _even),
    "broken": Truth(broken, _even),
    "logistic": Truth(logistic, _even),
    "uneven": Truth(family, _uneven),
    "heavy": Truth(family, _heavy),
}


def make_table(name: str, seed: int, points=POINTS) -> RunTable:
    """Return a table of synthetic scores of a truth, with noise from `seed`."""
    truth = TRUTHS[name]
    x, n = np.array([p.x for p in points]), np.array([p.num_examples for p in points])
    noise_R, _ = truth.noise(np.random.default_rng([seed, list(TRUTHS).index(name)]), len(points))
    error_R = truth.error(x, n) * np.exp(noise_R)
    return RunTable.from_rows(
        {f: getattr(p, f) for f in ("sweep", "lm_params", "num_frames", "tokens_per_frame")}
        | {"num_examples": p.num_examples, "run_id": p.run_id, "metric": "synthetic"}
        | {"score": 100 - error}
        for p, error in zip(points, error_R.tolist(), strict=True)
    )
