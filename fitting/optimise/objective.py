"""The objective of a fit: weighted squared residuals, in log or linear space, plain or Huber.

Equation 7 is the mean of w (log f_hat - log f)^2. The other losses are transforms of the residuals
whose squares sum to them, so that one second-order least-squares solver serves all. Everything
takes lanes L at once, and numpy or jax arrays alike.
"""

from typing import NamedTuple

import numpy as np

from fitting.forms import Layout


class Loss(NamedTuple):
    """The kind of residuals; hashable, so that a program can be compiled for it.

    Attributes:
      space: 'log' or 'linear'.
      delta: |residual| from which the Huber loss grows linearly; None for squares.
      free_floor: whether theta holds the floor itself in place of its log (linear space).
    """

    space: str = "log"
    delta: float | None = None
    free_floor: bool = False


def model(theta, log_z, layout: Layout, loss: Loss):
    """Return the law in the space of the loss.

    Args:
      theta: [L, P].
      log_z: [L or 1, C, R], logs of the factors and of n.

    Returns:
      value [L, R], log f_hat or f_hat, and its slopes [L, M, R] by the terms' log coefficients (by
      the coefficient itself for a free floor).
    """
    xp = theta.__array_namespace__()
    rows = [
        sum(theta[:, q, None] for q in layout.coefficients_of(m)) + 0 * log_z[:, 0]
        for m in range(layout.num_terms)
    ]
    for m, p, sign, column in layout.powers:
        rows[m] = rows[m] + sign * theta[:, p, None] * log_z[:, column]
    log_terms = xp.stack(rows, axis=1)
    if loss.space == "log":
        top = xp.max(log_terms, axis=1, keepdims=True)
        terms = xp.exp(log_terms - top)
        total = xp.sum(terms, axis=1, keepdims=True)
        return (top + xp.log(total))[:, 0], terms / total
    terms = xp.exp(xp.minimum(log_terms, 200.0))  # a wild start stays finite
    if not loss.free_floor:
        return xp.sum(terms, axis=1), terms
    is_floor = (xp.arange(layout.num_terms) == layout.floor)[:, None]
    value = xp.sum(xp.where(is_floor, log_terms, terms), axis=1)
    return value, xp.where(is_floor, 1.0, terms)


def transform(residual, loss: Loss):
    """Return residuals whose squares are the loss, and their derivative by the plain residual.

    Huber: r^2 up to delta, then 2 delta |r| - delta^2; twice the textbook's, so that a large delta
    gives the squares.
    """
    xp = residual.__array_namespace__()
    if loss.delta is None:
        return residual, xp.ones_like(residual)
    size = xp.abs(residual)
    outer = xp.sqrt(xp.maximum(2 * loss.delta * size - loss.delta**2, loss.delta**2))
    inside = size <= loss.delta
    return (
        xp.where(inside, residual, xp.sign(residual) * outer),
        xp.where(inside, 1.0, loss.delta / outer),
    )


def residuals(theta, log_z, target, root, layout: Layout, loss: Loss):
    """Return weighted residuals [L, R] of theta [L, P]; target [L, R] in the loss's space.

    root [L, R] is sqrt(w); the objective is the sum of the squares.
    """
    return root * transform(model(theta, log_z, layout, loss)[0] - target, loss)[0]


def residuals_and_jacobian(theta, log_z, target, root, layout: Layout, loss: Loss):
    """Return `residuals` [L, R] and their derivatives by theta, [L, P, R]."""
    xp = theta.__array_namespace__()
    value, slopes = model(theta, log_z, layout, loss)
    residual, slope = transform(value - target, loss)
    slopes = slopes * (root * slope)[:, None]
    columns = [None] * layout.num_parameters
    for m in range(layout.num_terms):
        for q in layout.coefficients_of(m):
            columns[q] = slopes[:, m] if columns[q] is None else columns[q] + slopes[:, m]
    for m, p, sign, column in layout.powers:
        part = sign * slopes[:, m] * log_z[:, column]
        columns[p] = part if columns[p] is None else columns[p] + part
    return root * residual, xp.stack(columns, axis=1)


def derivatives(theta, log_z, target, root, layout: Layout, loss: Loss):
    """Return objective [L], gradient [L, P] and the full Hessian [L, P, P], in numpy.

    The products of first derivatives that Levenberg-Marquardt takes for the Hessian leave out the
    curvature of the law itself, and with it the speed of the last steps in a flat valley.

    Args:
      theta: [L, P].
      log_z: [C, R], of one problem.
      target, root: [L, R].
      layout, loss: as above.
    """
    value, slopes = model(theta, log_z[None], layout, loss)
    residual = value - target
    size = np.abs(residual)
    delta = np.inf if loss.delta is None else loss.delta
    inside = size <= delta
    weight = root**2
    first = 2 * weight * np.where(inside, residual, delta * np.sign(residual) if loss.delta else 0)
    second = 2 * weight * inside
    cost = weight * np.where(inside, residual**2, 2 * delta * size - delta**2 if loss.delta else 0)
    design_MRP = layout.design(log_z.T).transpose(1, 0, 2).reshape(-1, layout.num_parameters)
    shape = (len(theta), layout.num_terms * log_z.shape[1])
    jac_LRP = (slopes.reshape(*shape, 1) * design_MRP).reshape(*slopes.shape, -1).sum(axis=1)
    bends = slopes * first[:, None]
    if loss.free_floor:
        bends[:, layout.floor] = 0.0
    hessian = design_MRP.T @ (bends.reshape(*shape, 1) * design_MRP)
    outer = second - first if loss.space == "log" else second
    hessian += np.swapaxes(jac_LRP, 1, 2) @ (outer[..., None] * jac_LRP)
    return cost.sum(axis=1), (first[:, None] @ jac_LRP)[:, 0], hessian
