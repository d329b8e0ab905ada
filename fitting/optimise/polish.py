"""Finish a few promising lanes: descend until the gradient is within tolerance.

Levenberg-Marquardt converges slowly along a flat, curved valley of the objective, which these laws
have where the runs hardly determine a parameter. So a few Newton steps with the full Hessian, on
the host, alternate with descents, and terms that shrink towards zero are set to zero at once.
"""

import numpy as np

from fitting.optimise import objective
from fitting.optimise.batch import BASIN, Batch
from fitting.optimise.lanes import SAME, Lanes, start_lanes
from fitting.optimise.levenberg_marquardt import STUCK

FIRST = 40  # iterations of the first descent; each further one takes twice as many
POLISH = 2000  # iterations at most
NEWTON = 12  # steps at a time
NEGLIGIBLE = 1e-3  # root mean square slope below which a term is dropped
HOPELESS = 1e-2  # relative distance from the best at which a lane is given up
NEAR = (
    1e-5  # relative distance from another optimum at which a lane is taken to be on its way there
)
ROUNDING = 1e-13  # of the objective: what a sum of squares cannot resolve


def polish(batch: Batch, lanes: Lanes, rivals: np.ndarray | None = None) -> Lanes:
    """Descend until the gradient is within tolerance, or nothing moves; changes `lanes` in place.

    Args:
      batch: the fits.
      lanes: to finish.
      rivals: objectives [B] already reached; lanes that will not beat them are given up.
    """
    rivals = np.full(len(batch.root), np.inf) if rivals is None else rivals
    spent, step = 0, FIRST
    while spent < POLISH:
        active = np.isfinite(lanes.objective) & (lanes.damping <= STUCK)
        active &= ~batch.converged(lanes)
        best = np.minimum(rivals, batch.least(lanes))[lanes.fit]
        # The longer a lane has been polished, the closer to the best it must be to go on.
        active &= lanes.objective <= (1 + HOPELESS / (1 + spent / FIRST) ** 2) * best
        rival = rivals[lanes.fit]  # a lane that nears one is on its way to the same optimum
        same = (lanes.objective > (1 - SAME) * rival) & (lanes.objective < (1 + NEAR) * rival)
        active &= ~same
        if not active.any():
            break
        moved = drop_negligible_terms(batch, lanes.take(active))
        moved = batch.descend(_newton(batch, moved) if spent else moved, step)
        lanes.replace_rows(active, moved)
        spent, step = spent + step, 2 * step
    return lanes


def repolish(batch: Batch, lanes: Lanes) -> Lanes:
    """Polish once more, with new damping, the lanes that have not converged."""
    short = np.flatnonzero(np.isfinite(lanes.objective) & ~batch.converged(lanes))
    if not short.size:
        return lanes
    before = lanes.take(short)
    again = start_lanes(before.fit, drop_negligible_terms(batch, before).theta)
    after = polish(batch, batch.descend(again, FIRST))
    better = after.objective <= before.objective
    lanes.replace_rows(short[better], after.take(better))
    return lanes


@np.errstate(all="ignore")
def drop_negligible_terms(batch: Batch, lanes: Lanes) -> Lanes:
    """Set terms that are next to nothing, and still shrink, to nothing.

    The gradient by a log coefficient fades with its term, so a descent alone would follow it
    towards minus infinity for ever. Objective and slope of the lanes are left to the next descent.
    """
    layout = batch.layout
    logs = slice(0, layout.num_coefficients)
    log_z, target = batch.log_z[batch.problem_of_fit[lanes.fit]], batch.target[lanes.fit]
    data = target, batch.root[lanes.fit], layout, batch.loss
    r, jac = objective.residuals_and_jacobian(lanes.theta, log_z, *data)
    largest = np.sqrt((jac[:, logs] ** 2).sum(axis=-1))
    shrinks = (jac[:, logs] @ r[..., None])[..., 0] > 0
    drops = (largest < NEGLIGIBLE) & shrinks & np.isfinite(batch.lower[logs])
    if batch.loss.free_floor:
        drops[:, layout.floor] = False
    theta = lanes.theta.copy()
    theta[:, logs] = np.where(drops, batch.lower[logs], theta[:, logs])
    value = (objective.residuals(theta, log_z, *data) ** 2).sum(axis=1)
    # The other terms have yet to make up for it: let the objective rise a little first.
    dropped = drops.any(axis=1) & (value <= (1 + BASIN) * lanes.objective)
    return lanes._replace(theta=np.where(dropped[:, None], theta, lanes.theta))


@np.errstate(all="ignore")
def _newton(batch: Batch, lanes: Lanes) -> Lanes:
    """Take a few damped Newton steps within the box, on the host: few lanes get here.

    Objective and slope of the lanes are left to the next descent.
    """
    out = lanes.theta.copy()
    for rows, data in batch.by_problem(lanes.fit):
        theta, damping = out[rows], np.full(len(rows), 1e-9)
        value, gradient, hessian = objective.derivatives(theta, *data)
        for _ in range(NEWTON):
            move, _ = _newton_step(batch, theta, gradient, hessian, damping)
            new_theta = np.clip(theta - move, batch.lower, batch.upper)
            new = objective.derivatives(new_theta, *data)
            better = new[0] < value
            theta[better], value[better] = new_theta[better], new[0][better]
            gradient[better], hessian[better] = new[1][better], new[2][better]
            damping = np.where(better, damping / 10, damping * 100)
        out[rows] = theta
    return lanes._replace(theta=out)


@np.errstate(all="ignore")
def nothing_to_gain(batch: Batch, lanes: Lanes) -> np.ndarray:
    """Return bool [N]: a Newton step would gain less than rounding, whatever the gradient."""
    gain = np.full(len(lanes.fit), np.inf)
    for rows, data in batch.by_problem(lanes.fit):
        theta = lanes.theta[rows]
        _, gradient, hessian = objective.derivatives(theta, *data)
        known = np.isfinite(hessian).all(axis=(1, 2))  # eigh raises on what is not finite
        hessian[~known] = 0.0
        _, gained = _newton_step(batch, theta, gradient, hessian, np.zeros(len(rows)))
        gain[rows] = np.where(known, gained, np.inf)
    return gain <= ROUNDING * lanes.objective


def _newton_step(batch: Batch, theta, gradient, hessian, damping):
    """Return (downhill move [N, P], its gain by the quadratic model [N]).

    Parameters that press on a bound stay. Along an eigenvector of negative curvature a plain Newton
    step would climb; the absolute value of the curvature makes it descend.
    """
    low, high = theta <= batch.lower, theta >= batch.upper
    free = ~((low & (gradient > 0)) | (high & (gradient < 0)))
    matrix = hessian * (free[:, :, None] & free[:, None])
    matrix += np.eye(theta.shape[1]) * ~free[:, None]
    bend, axes = np.linalg.eigh(matrix)
    slope = (np.swapaxes(axes, 1, 2) @ (gradient * free)[..., None])[..., 0]
    along = slope / (np.abs(bend) + damping[:, None])
    along = np.where(slope == 0, 0.0, along)
    return (axes @ along[..., None])[..., 0], (slope * along).sum(axis=1) / 2
