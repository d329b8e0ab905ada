"""The paper's qualitative findings, looked for in the study's own runs: each with its interval."""

import dataclasses

import numpy as np

from fitting.frontiers import frontier, member_frontiers
from fitting.report.analysis import Analysis
from fitting.runs import FACTORS, RunTable

SEEN, DIFFERS, OPEN = "as in the paper", "differs from the paper", "not resolved"
PAPER_SIGNS = {"lm_params": -1, "num_frames": 1, "tokens_per_frame": 1}
"""Of the elasticity of x* to n: −0.22, 0.17 and 0.79 (section 5.3)."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One claim about one factor, and what was found."""

    claim: str
    factor: str
    value: float
    low: float
    high: float
    said: str
    """`SEEN`, `DIFFERS` or `OPEN`."""
    unit: str


def findings(analysis: Analysis, domain, run_sd: float, level: float) -> list[Finding]:
    """Return diminishing returns, joint scaling and the signs of the elasticities.

    Args:
      domain: the configurations that may be deployed.
      run_sd: standard deviation between runs of one configuration, in points; NaN where unknown.
      level: of the intervals.
    """
    return [
        *_diminishing(analysis.table, run_sd, level),
        *_joint(analysis, domain, level),
        *_signs(analysis, level),
    ]


def _said(low: float, high: float, *, above: float = 0.0) -> str:
    if low > above:
        return SEEN
    return DIFFERS if high < above else OPEN


def _diminishing(table: RunTable, run_sd: float, level: float) -> list[Finding]:
    """Compare the first doubling of each factor with the last, of the star's runs at the largest n.

    Measured, not taken from the law, whose form would decide it.
    """
    from scipy.special import ndtri

    star = table.take(table.columns["sweep"] == "star")
    star, found = star.take(star.n == star.n.max()), []
    center = star.x.max(axis=0)
    for k, factor in enumerate(FACTORS):
        others = np.delete(np.arange(len(FACTORS)), k)
        arm = star.take((star.x[:, others] == center[others]).all(axis=1))
        order = np.argsort(arm.x[:, k])
        if len(order) < 3:
            continue
        level_A, error_A = np.log2(arm.x[order, k]), arm.error[order]
        spread_A = np.hypot(np.nan_to_num(arm.score_se[order]), np.nan_to_num(run_sd))
        # Weights of the errors in (first fall) - (last fall), a doubling each.
        weight_A, first, last = np.zeros(len(order)), *np.diff(level_A)[[0, -1]]
        weight_A[0] += 1 / first
        weight_A[1] -= 1 / first
        weight_A[-2] -= 1 / last
        weight_A[-1] += 1 / last
        value, half = (
            weight_A @ error_A,
            ndtri((1 + level) / 2) * np.hypot.reduce(weight_A * spread_A),
        )
        low, high = float(value - half), float(value + half)
        claim = "diminishing returns"
        said = _said(low, high)
        found.append(Finding(claim, factor, float(value), low, high, said, "points"))
    return found


def _joint(analysis: Analysis, domain, level: float) -> list[Finding]:
    """Compare x* at the largest cost of the runs with x* at the smallest, at their largest n."""
    costs, n = analysis.cost(analysis.table.x), [float(analysis.table.n.max())]
    ends = [float(costs.min()), float(costs.max())]
    grid = domain, analysis.cost, ends, n
    best_CK = frontier(analysis.law, *grid).x[:, 0]
    paths_BCK = member_frontiers(analysis.law, *grid)[:, :, 0]
    found = []
    for k, factor in enumerate(FACTORS):
        value = float(best_CK[1, k] / best_CK[0, k])
        tails = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(paths_BCK[:, 1, k] / paths_BCK[:, 0, k], tails).tolist()
        said = _said(low, high, above=1.0)
        found.append(Finding("joint scaling: x* grows", factor, value, low, high, said, "×"))
    return found


def _signs(analysis: Analysis, level: float) -> list[Finding]:
    """Compare the sign of each factor's elasticity to n with the paper's."""
    change, found = analysis.elasticity, []
    low_K, high_K = change.interval(level)
    for k, factor in enumerate(FACTORS):
        sign = PAPER_SIGNS[factor]
        ends = sorted([sign * float(low_K[k]), sign * float(high_K[k])])
        claim = f"elasticity to n: {'above' if sign > 0 else 'below'} 0"
        value, low, high = float(change.mean[k]), float(low_K[k]), float(high_K[k])
        found.append(Finding(claim, factor, value, low, high, _said(*ends), "% for 1%"))
    return found
