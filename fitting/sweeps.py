"""Generators of sweeps: stars and isoFLOP curves, and the runs of the paper's Table 6.

A star varies one factor at a time around a centre, which shows the effect of each factor alone. An
isoFLOP sweep holds the inference cost fixed and trades the factors against each other, so that
each curve has an optimum. Both are deterministic and return `Point`s.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fitting.config import FACTORS


class Point(NamedTuple):
    """One run to train.

    Attributes:
      sweep: 'star', 'isoflop', or any name without a dash.
      lm_params: x_N, language-model parameters without the input embedding.
      num_frames: x_T, frames per video.
      tokens_per_frame: x_V, visual tokens per frame (a perfect square for a square grid).
      num_examples: n, finetuning examples.
      budget: target inference cost in FLOPs of an isoFLOP curve; None elsewhere.
      seed: of the training, for replicates; None is the seed of the training stage.
    """

    sweep: str
    lm_params: float
    num_frames: int
    tokens_per_frame: int
    num_examples: int
    budget: float | None = None
    seed: int | None = None

    @property
    def x(self) -> tuple[float, int, int]:
        """Return the configuration (x_N, x_T, x_V)."""
        return self.lm_params, self.num_frames, self.tokens_per_frame

    @property
    def run_id(self) -> str:
        """Return a stable name, e.g. `star-N1e9-T32-V196-n250000`; a point with a seed has `-seed1`
        at the end, and the budget is not part of the name.
        """
        return (
            f"{self.sweep}-N{_short(self.lm_params)}-T{_exact(self.num_frames)}"
            f"-V{_exact(self.tokens_per_frame)}-n{_exact(self.num_examples)}"
            + ("" if self.seed is None else f"-seed{self.seed}")
        )


@dataclass(frozen=True)
class Domain:
    """A discrete domain: every combination of the levels of the three factors."""

    lm_params: tuple
    num_frames: tuple
    tokens_per_frame: tuple

    def __post_init__(self):
        for name in FACTORS:
            levels = tuple(getattr(self, name))
            object.__setattr__(self, name, levels)
            if not levels or min(levels) <= 0 or len(set(levels)) != len(levels):
                raise ValueError(f"Domain.{name} needs distinct positive levels, got {levels}")

    @property
    def levels(self) -> tuple[tuple, tuple, tuple]:
        """Return the levels of the three factors, in factor order."""
        return self.lm_params, self.num_frames, self.tokens_per_frame

    def configurations(self) -> np.ndarray:
        """Return all combinations [X, 3], float64, the last factor varying fastest."""
        return np.array(list(itertools.product(*self.levels)), np.float64)


class StarPlan(NamedTuple):
    """Arguments of `star_sweep`."""

    center: tuple
    levels: Domain
    num_examples: tuple


def star_sweep(center, levels: Domain, num_examples, seeds=(None,)) -> tuple[Point, ...]:
    """Return a star: one factor varies at a time around the centre, for every data size.

    Args:
      center: (lm_params, num_frames, tokens_per_frame), always part of the sweep, once.
      levels: the values each factor takes; the centre's own value may be among them.
      num_examples: data sizes n.
      seeds: of the trainings; each configuration is trained once a seed. None leaves the seed to
        the training stage.

    Returns:
      len(seeds) x len(num_examples) x (1 + levels off the centre) points, none twice.
    """
    seeds = _distinct(seeds)
    if not isinstance(num_examples, Iterable):
        raise ValueError(f"num_examples must be one or more data sizes, got {num_examples}")
    center = tuple(center)
    if len(center) != len(FACTORS):
        raise ValueError(f"the centre of a star has {len(FACTORS)} values {FACTORS}, got {center}")
    arms = (
        (*center[:factor], level, *center[factor + 1 :])
        for factor, values in enumerate(levels.levels)
        for level in sorted(values)
    )
    distinct = dict.fromkeys((center, *arms))
    return tuple(
        Point("star", *x, n, seed=seed) for n in num_examples for x in distinct for seed in seeds
    )


def isoflop_candidates(domain: Domain, budgets, cost, tolerance: float) -> dict:
    """Find all configurations whose cost is within a tolerance of a budget.

    A configuration near two budgets belongs to the nearer one (in log cost).

    Args:
      domain: the configurations to search.
      budgets: target costs, in the cost model's unit.
      cost: x [X, 3] -> cost [X].
      tolerance: largest |cost / budget - 1|, e.g. 0.03.

    Returns:
      {budget: tuple of (lm_params, num_frames, tokens_per_frame)}, each tuple in domain order.

    Raises:
      ValueError: a budget has no candidate; names it and the nearest cost in the domain.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance}")
    points = list(itertools.product(*domain.levels))
    budgets = sorted(set(budgets))
    if not budgets or budgets[0] <= 0:
        raise ValueError(f"isoFLOP budgets must be one or more positive costs, got {budgets}")
    cost_X = np.asarray(cost(np.array(points, np.float64)))
    nearest_X = np.argmin(np.abs(np.log(cost_X[:, None] / np.array(budgets))), axis=1)
    found = {}
    for index, budget in enumerate(budgets):
        close_X = (np.abs(cost_X / budget - 1) <= tolerance) & (nearest_X == index)
        if not close_X.any():
            reachable = cost_X[np.argmin(np.abs(np.log(cost_X / budget)))]
            raise ValueError(
                f"no configuration costs within {tolerance:.1%} of the budget {budget:.4g}; "
                f"the nearest costs {reachable:.4g}: change the budget, tolerance or domain"
            )
        found[budget] = tuple(points[i] for i in np.flatnonzero(close_X))
    return found


def isoflop_sweep(
    domain: Domain,
    budgets,
    num_examples: int,
    cost,
    *,
    tolerance=0.03,
    max_per_curve=5,
    seeds=(None,),
) -> tuple[Point, ...]:
    """Return a well-spaced subset of `isoflop_candidates` for each curve (budget, language model).

    A curve keeps its two ends and then, one by one, the candidate farthest from those kept, in
    log (num_frames, tokens_per_frame). A language model without a candidate of a budget has no
    curve there; one candidate makes a curve of one run. (At 2 TFLOPs and 7.5B there is one within
    3%; within 6% the paper's curves have 2 or more.)

    Args:
      domain, budgets, cost, tolerance: as in `isoflop_candidates`.
      num_examples: n of every run.
      max_per_curve: at most this many configurations a curve, 2 or more; the paper has 2 to 5.
      seeds: as in `star_sweep`.

    Returns:
      points ordered by budget, lm_params, num_frames, tokens_per_frame.
    """
    if max_per_curve < 2:
        raise ValueError(f"max_per_curve must be 2 or more, got {max_per_curve}")
    points, seeds = [], _distinct(seeds)
    for budget, found in isoflop_candidates(domain, budgets, cost, tolerance).items():
        for lm_params in sorted(domain.lm_params):
            curve = [x for x in found if x[0] == lm_params]
            points += [
                Point("isoflop", *x, num_examples, budget, seed)
                for x in sorted(_well_spaced(curve, max_per_curve))
                for seed in seeds
            ]
    return tuple(points)


def _well_spaced(curve: list, size: int) -> list:
    """Return a greedy maximin subset of the configurations [(N, T, V)] of one curve, ends first."""
    if len(curve) <= size:
        return curve
    log_xy = np.log(np.array(curve, np.float64)[:, 1:])
    trade = log_xy[:, 1] - log_xy[:, 0]  # along a curve, tokens rise as frames fall
    kept = [int(np.argmin(trade)), int(np.argmax(trade))]
    while len(kept) < size:
        gap = np.linalg.norm(log_xy[:, None] - log_xy[None, kept], axis=-1).min(axis=1)
        kept.append(int(np.argmax(gap)))
    return [curve[i] for i in kept]


def _distinct(seeds) -> tuple[int | None, ...]:
    found = tuple(seeds) if isinstance(seeds, Iterable) else ()
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be one or more different seeds, as (0, 1, 2), got {seeds}")
    return found


def _exact(value) -> str:
    """Return a number with all its digits: as an integer, or the shortest text equal to it."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _short(value) -> str:
    """Return `_exact`, or mantissa and power (1e9, 2.8e9) where that is shorter."""
    digits = _exact(value)
    if not digits.isdigit():
        return digits
    head = digits.rstrip("0")
    mantissa = head if len(head) == 1 else f"{head[0]}.{head[1:]}"
    return min((digits, f"{mantissa}e{len(digits) - 1}"), key=len)


def _squares(largest: int) -> tuple[int, ...]:
    return tuple(side * side for side in range(1, largest + 1))


PAPER_LM_PARAMS = (1_000_000_000, 2_800_000_000, 7_500_000_000)
PAPER_DOMAIN = Domain(PAPER_LM_PARAMS, tuple(range(1, 129)), _squares(27))
"""Section 5.3's domain; the encoder's 729 features allow no grid wider than 27 x 27."""

PAPER_STAR = StarPlan(
    center=(7_500_000_000, 32, 196),
    levels=Domain(PAPER_LM_PARAMS, (4, 8, 12, 16, 32), (4, 16, 25, 36, 49, 100, 196)),
    num_examples=(250_000, 500_000, 1_000_000),
)
"""Table 6, star: `star_sweep(*PAPER_STAR)` gives its 39 runs."""

PAPER_BUDGETS = (2e12, 5e12, 15e12, 30e12)
_TABLE_6 = {  # budget: (T, V) pairs for 1B, 2.8B and 7.5B
    2e12: (
        ((2, 196), (3, 9), (3, 16)),
        ((2, 64), (3, 4)),
        ((2, 25), (3, 1)),
    ),
    5e12: (
        ((4, 289), (5, 169), (6, 81), (7, 25)),
        ((3, 169), (4, 100), (5, 64), (6, 25), (7, 9)),
        ((2, 121), (3, 64), (6, 9), (7, 4)),
    ),
    15e12: (
        ((8, 625), (11, 361), (16, 144), (20, 49), (22, 16)),
        ((6, 324), (11, 121), (16, 49), (19, 25), (20, 16)),
        ((7, 100), (8, 81), (15, 25), (19, 9), (21, 4)),
    ),
    30e12: (
        ((16, 625), (26, 256), (32, 144), (37, 81), (40, 49)),
        ((9, 484), (17, 196), (22, 121), (27, 81), (35, 36)),
        ((16, 81), (25, 36), (29, 25), (38, 9)),
    ),
}
PAPER_ISOFLOP = tuple(
    Point("isoflop", lm_params, num_frames, tokens, 2_192_374, budget)
    for budget, curves in _TABLE_6.items()
    for lm_params, curve in zip(PAPER_LM_PARAMS, curves, strict=True)
    for num_frames, tokens in curve
)
"""Table 6, isoFLOP: the 49 published runs, on all 2,192,374 examples (Table 3)."""
