"""Quantify a decision's uncertainty: its error, the chance that it is best, its regret.

Every member of a bag is a law that the runs might as well have given. So the share of members
whose best configuration is x estimates P(x is optimal | budget, n), and what a member loses by x
instead of its own best, f(x) - f(x*), is a draw of the regret.
"""

from dataclasses import dataclass

import numpy as np

from fitting.frontiers import by_cost
from fitting.intervals import run_noise
from fitting.law import BaggedFit
from fitting.verdict import Verdict

HALF_A_POINT = 0.005  # of the scale: two configurations closer than this are alike


@dataclass(frozen=True, eq=False)
class Decision:
    """All configurations within a budget, the best first; row 0 is x*.

    Attributes:
      budget: in the unit of the cost model.
      num_examples: n; NaN for a law without n.
      x: [X, K].
      cost: [X].
      error: [X], predicted by the bag.
      probability: [X], share of members whose own best it is.
      regret: [X, B'], by how much each member's error there exceeds that of its own best.
      verdict: whether the runs contradict the law that decides; None where it was not tested.
    """

    budget: float
    num_examples: float
    x: np.ndarray
    cost: np.ndarray
    error: np.ndarray
    probability: np.ndarray
    regret: np.ndarray
    verdict: Verdict | None = None

    def regret_set(self, tolerance: float, confidence: float = 0.9) -> np.ndarray:
        """Return bool [X]: P(f(x) - f(x*) <= tolerance) >= confidence, x* each member's own."""
        if not (tolerance >= 0 and 0 < confidence <= 1):
            raise ValueError(
                f"tolerance must be 0 or more and confidence in (0, 1], got {tolerance} and "
                f"{confidence}"
            )
        return (self.regret <= tolerance).mean(axis=1) >= confidence


def decide(law: BaggedFit, domain, cost, budget: float, num_examples=None) -> Decision:
    """Return all configurations within one budget, the best first.

    Args:
      law: a `BaggedFit`.
      domain, cost: as in `fitting.frontiers.frontier`.
      budget: in the unit of the cost.
      num_examples: n; None for a law without n.

    Raises:
      ValueError: the budget is below the cheapest configuration, which is named; n missing or not
        wanted.
    """
    x_XK, cost_X = by_cost(domain, cost, budget)
    if cost_X[0] > budget:
        cheapest = ", ".join(f"{k}={v:g}" for k, v in zip(law.factors, x_XK[0], strict=True))
        raise ValueError(
            f"a budget of {budget:.4g} is below the cheapest configuration, {cheapest}, which "
            f"costs {cost_X[0]:.4g}"
        )
    error_X = law.predict(x_XK, num_examples)
    error_XB = law.predict_members(x_XK, num_examples).T
    error_XB = error_XB[:, ~np.isnan(error_XB).any(axis=0)]
    winners = np.bincount(error_XB.argmin(axis=0), minlength=len(x_XK))  # ties: the cheaper
    order = np.argsort(error_X, kind="stable")
    return Decision(
        budget=float(budget),
        num_examples=float("nan" if num_examples is None else num_examples),
        x=x_XK[order],
        cost=cost_X[order],
        error=error_X[order],
        probability=winners[order] / error_XB.shape[1],
        regret=(error_XB - error_XB.min(axis=0))[order],
        verdict=law.verdict,
    )


def default_tolerance(law) -> float:
    """Return the error points within which configurations count as alike unless said.

    Half a point of a scale of 100; without a ceiling, what a run scatters at the median loss, or a
    hundredth of the runs' range where that is not known.
    """
    if np.isfinite(law.scale):
        return HALF_A_POINT * law.scale
    noise = run_noise(law) * (np.median(law.runs.error) if law.config.space == "log" else 1.0)
    return float(noise if np.isfinite(noise) and noise > 0 else np.ptp(law.runs.error) / 100)
