"""Solve many small least-squares fits at once: starts x resamples x problems.

Local minima are real here: the best of 500 starts lies well below the median start, and only a few
starts get there. What makes the search cheap is that the resamples of one problem have nearly the
same valleys, so that what one of them finds serves all:

1. every start descends on all runs;
2. every resample ranks where they arrived, and descends from the best of them on its own weights;
3. its optimum is perturbed: each exponent is set to its bounds, absent terms are brought back, and
   the result descends again;
4. the optima found by all resamples become starts for every resample; 3 and 4 are repeated.

Each winner is polished to a gradient tolerance. The step is Levenberg-Marquardt within a box
(exponents that press on their bound are held there). `solver='lbfgs'` is the paper's procedure in
place of 1 to 4: L-BFGS from every start on every resample (`fitting.optimise.lbfgs`), then the same
polish.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fitting.forms import Layout
from fitting.optimise.batch import Batch
from fitting.optimise.lanes import (
    CONVERGED,
    FAILED,
    SAME,
    STOPPED,
    Lanes,
    Problem,
    Solution,
    concatenate,
    start_lanes,
)
from fitting.optimise.levenberg_marquardt import EXACT
from fitting.optimise.objective import Loss
from fitting.optimise.polish import nothing_to_gain, polish, repolish

SCREEN = ((10, None), (60, None))  # (iterations, lanes kept): every start, on all runs
DESCEND = ((20, 24), (60, 8))  # the best arrivals, on a resample
FINAL = 1  # lanes polished for each resample
POOL = 6  # optima of other resamples tried in each round, and perturbations followed on
ROUNDS = 3
REVIVE = 0.02  # of the scale: the size at which an absent term is brought back
FAR = 4.0  # an exponent to try where there is no cap


def solve(
    problems: Sequence[Problem],
    layout: Layout,
    lower,
    upper,
    *,
    loss: Loss = Loss(),  # noqa: B008  immutable
    solver: str = "lm",
    stages=DESCEND,
    rounds: int = ROUNDS,
    final: int = FINAL,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Solution]:
    """Fit every resample of every problem and keep the best optimum of each.

    Args:
      problems: of equal R, C and P; any number of resamples and starts.
      layout: of the form.
      lower, upper: bounds [P] of theta; infinite where there is none.
      loss: which residuals.
      solver: 'lm', or 'lbfgs' for the paper's procedure.
      stages: (iterations, lanes kept for each resample) of 'lm'; kept None follows every start.
      rounds: of perturbing and sharing optima ('lm').
      final: lanes polished for each resample.
      on_progress: called with (resamples done, resamples in all).

    Returns:
      A `Solution` per problem; a resample without a finite lane has status FAILED and NaNs.

    Raises:
      ValueError: a target with weight is not finite.
    """
    for problem in problems:
        if not np.isfinite(np.where(problem.weights.max(axis=0) > 0, problem.target, 0.0)).all():
            raise ValueError("solve needs finite targets: in log space every error is positive")
    batch = Batch(problems, layout, lower, upper, loss)
    total = sum(len(p.weights) for p in problems)
    on_progress(0, total)
    if solver == "lm":
        lanes, arrivals = _search(batch, stages)
    else:
        from fitting.optimise.lbfgs import minimise_all

        lanes, arrivals, rounds = minimise_all(batch), [None] * len(problems), 0
    on_progress(total // 2, total)
    share = batch.basin_share(lanes)  # before the rounds below, which are not a random search
    lanes = pool = polish(batch, lanes.best(final))
    for _ in range(rounds):
        lanes, perturbed = _perturb_exponents(batch, lanes, pool)
        lanes, shared = _share_optima(batch, lanes, concatenate([pool, perturbed]))
        pool = concatenate([perturbed, shared])  # the next round starts from new optima alone
    lanes = repolish(batch, lanes.best(1))
    on_progress(total, total)
    return _solutions(batch, lanes, share, arrivals)


def _search(batch: Batch, stages) -> tuple[Lanes, list]:
    """Follow fewer lanes for more iterations, stage by stage.

    Returns:
      The lanes left, and for each problem where its starts arrived after the first stage, [I, P]
      (None where the first stage did not follow them all).
    """
    (iterations, kept), *later = stages
    lanes = batch.descend(concatenate(batch.all_starts(kept)), iterations)
    arrivals = [
        lanes.theta[lanes.fit == first][: len(problem.starts)] if kept is None else None
        for first, problem in zip(batch.first_fit, batch.problems, strict=False)
    ]
    for iterations, kept in later:
        lanes = lanes if kept is None else lanes.best(kept)
        lanes = batch.descend(lanes, iterations)
    return lanes, arrivals


def _perturb_exponents(batch: Batch, lanes: Lanes, pool: Lanes) -> tuple[Lanes, Lanes]:
    """Try each exponent at its bounds, and absent terms anew, from each fit's best in the pool.

    Optima with an exponent at its bound (a term that switches on at one level) are real, and too
    narrow for random starts to find.

    Returns:
      The best lane of each fit, and the optima that are new.
    """
    pool, layout = pool.best(1), batch.layout
    # Each term keeps its largest value on the runs, so that only its shape changes; a term below
    # REVIVE is raised to it.
    peaks = np.maximum(_peaks(batch, pool.fit, pool.theta), np.log(REVIVE))
    logs = slice(0, layout.num_coefficients)
    exponents = range(layout.num_coefficients, layout.num_parameters)
    moves = [(p, end) for p in exponents for end in _ends(batch, p)]
    tried = []
    for p, end in [(None, 0.0), *moves]:
        theta = pool.theta.copy()
        if p is not None:
            theta[:, p] = end
        lifted = peaks - _peaks(batch, pool.fit, theta)
        raised = theta[:, logs] + layout.solve_coefficients(lifted)
        if batch.loss.free_floor:
            raised[:, layout.floor] = theta[:, layout.floor]
        theta[:, logs] = raised
        tried.append(start_lanes(pool.fit, theta))
    return _merge(batch, lanes, tried)


def _peaks(batch: Batch, fit, theta) -> np.ndarray:
    """Return the largest log term [N, M] on the runs of each fit."""
    layout, log_z = batch.layout, batch.log_z[batch.problem_of_fit[fit]]
    own = theta[:, : layout.num_coefficients]
    own = own if layout.shared is None else own @ layout.sharing.T
    log_terms = np.repeat(own[..., None], log_z.shape[-1], axis=-1)
    for m, p, sign, column in layout.powers:
        log_terms[:, m] += sign * theta[:, p, None] * log_z[:, column]
    return np.where(batch.root[fit][:, None] > 0, log_terms, -np.inf).max(axis=-1)


def _ends(batch: Batch, p: int) -> tuple[float, float]:
    """Return the bounds of an exponent, or far values where it has none."""
    lower, upper = batch.lower[p], batch.upper[p]
    return (lower if np.isfinite(lower) else -FAR, upper if np.isfinite(upper) else FAR)


def _share_optima(batch: Batch, lanes: Lanes, pool: Lanes) -> tuple[Lanes, Lanes]:
    """Try the optima in the pool on every other resample of their problem.

    Returns:
      The best lane of each fit, and the optima that are new.
    """
    tried = []
    for g in range(len(batch.problems)):
        here = pool.take(batch.problem_of_fit[pool.fit] == g)
        if len(here.fit):
            tried.append(batch.rank(g, here.theta, POOL, exclude=here.fit))
    return _merge(batch, lanes, tried)


def _merge(batch: Batch, lanes: Lanes, tried: list[Lanes]) -> tuple[Lanes, Lanes]:
    """Descend from the lanes tried, and keep what improves on each fit's best.

    Returns:
      The best lane of each fit, and the lanes that improved on it.
    """
    tried = [some for some in tried if len(some.fit)]
    if not tried:
        return lanes, lanes.take(slice(0))
    found = batch.descend(concatenate(tried), 15).best(POOL)
    found = batch.descend(found, 30).best(2)
    found = found.take(np.isfinite(found.objective))
    before = batch.least(lanes)
    found = polish(batch, found, before).best(1)
    gained = found.take(found.objective < (1 - SAME) * before[found.fit] - EXACT)
    gained = polish(batch, gained)
    return concatenate([lanes, gained]).best(1), gained


def _solutions(batch: Batch, lanes: Lanes, share, arrivals) -> list[Solution]:
    """Return one `Solution` per problem from one lane per fit."""
    finite = np.isfinite(lanes.objective) & np.isfinite(lanes.theta).all(axis=1)
    status = np.where(batch.converged(lanes), CONVERGED, STOPPED)
    late = np.flatnonzero(finite & (status == STOPPED))
    status[late[nothing_to_gain(batch, lanes.take(late))]] = CONVERGED
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(lanes.objective > EXACT, lanes.slope / lanes.objective, 0.0)
    columns = (
        np.where(finite[:, None], lanes.theta, np.nan),
        np.where(finite, lanes.objective, np.nan),
        np.where(finite, relative, np.nan),
        np.where(finite, status, FAILED),
        np.where(finite, share, 0.0),
    )
    return [
        Solution(*(column[first:last] for column in columns), arrived)
        for first, last, arrived in zip(
            batch.first_fit, batch.first_fit[1:], arrivals, strict=False
        )
    ]
