"""Levenberg-Marquardt within a box, for thousands of small least-squares fits in one program.

An exponent at its bound whose gradient points outwards stays there. All arrays are float64. A chunk
runs until its last lane has converged; lanes that have converged earlier stay unchanged.
"""

import functools

import jax
import jax.numpy as jnp

from fitting.forms import Layout
from fitting.optimise import objective
from fitting.optimise.objective import Loss

GRADIENT_TOLERANCE = 1e-6  # |gradient| of a unit of objective
EXACT = 1e-26  # mean squared residual of noise-free data, down to rounding
STUCK = 1e10  # damping of a lane that finds no way down
COMPILER = {"xla_cpu_multi_thread_eigen": False}  # a chunk is one thread's work


@functools.partial(jax.jit, static_argnames=("layout", "loss"), compiler_options=COMPILER)
def descend(
    theta, damping, log_z, target, root, lower, upper, iterations, *, layout: Layout, loss: Loss
):
    """Descend by Levenberg-Marquardt within the box, for lanes L at once.

    Args:
      theta: [L, P].
      damping: [L]; 0 starts at 1e-3 of the largest curvature.
      log_z: [L, C, R].
      target, root: [L, R].
      lower, upper: [P].
      iterations: at most.

    Returns:
      theta, damping, objective [L] and slope [L].
    """
    identity = jnp.eye(theta.shape[1])

    def evaluate(theta):
        r, jac = objective.residuals_and_jacobian(theta, log_z, target, root, layout, loss)
        curvature = jnp.einsum("lpr,lqr->lpq", jac, jac)
        return jnp.sum(r * r, axis=1), (jac @ r[..., None])[..., 0], curvature

    def is_free(theta, gradient):
        return ~(((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)))

    def slope(theta, gradient):
        return 2 * jnp.linalg.norm(gradient * is_free(theta, gradient), axis=1)

    def is_done(theta, damping, value, gradient):
        flat = slope(theta, gradient) <= GRADIENT_TOLERANCE * value
        return flat | (value <= EXACT) | (damping > STUCK)

    def unfinished(state):
        iteration, theta, damping, _, value, gradient, _ = state
        return (iteration < iterations) & ~is_done(theta, damping, value, gradient).all()

    def step(state):
        iteration, theta, damping, increase, value, gradient, curvature = state
        free = is_free(theta, gradient).astype(theta.dtype)
        diagonal = damping[:, None] * free + 1 - free
        matrix = curvature * (free[:, :, None] * free[:, None]) + identity * diagonal[:, None]
        move = solve_positive(matrix, gradient * free)
        new_theta = jnp.clip(theta - move, lower, upper)
        move = new_theta - theta
        new = evaluate(new_theta)
        bend = jnp.sum(jnp.sum(curvature * move[:, None], axis=-1) * move, axis=-1)
        expected = -2 * jnp.sum(gradient * move, axis=-1) - bend
        gain = jnp.clip((value - new[0]) / jnp.maximum(expected, 1e-300), 0.0, 1.0)
        better = new[0] < value  # False where anything is not finite
        # A converged lane stays as it is, so that its result does not depend on the other lanes.
        done = is_done(theta, damping, value, gradient)
        # Madsen, Nielsen and Tingleff, Methods for Non-Linear Least Squares Problems, 3.16.
        relaxed = damping * jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3)
        changed = jnp.where(better, jnp.maximum(relaxed, 1e-15), damping * increase)
        damping = jnp.where(done, damping, changed)
        increase = jnp.where(better, 2.0, 2 * increase)
        better &= ~done

        def keep(new, old):
            return jnp.where(better.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        kept = map(keep, (new_theta, *new), (theta, value, gradient, curvature))
        theta, value, gradient, curvature = kept
        return iteration + 1, theta, damping, increase, value, gradient, curvature

    theta = jnp.clip(theta, lower, upper)
    value, gradient, curvature = evaluate(theta)
    largest = jnp.max(jnp.diagonal(curvature, axis1=1, axis2=2), axis=1)
    damping = jnp.where(damping > 0, damping, 1e-3 * largest)
    state = (0, theta, damping, jnp.full_like(damping, 2.0), value, gradient, curvature)
    _, theta, damping, _, value, gradient, _ = jax.lax.while_loop(unfinished, step, state)
    return dict(theta=theta, damping=damping, objective=value, slope=slope(theta, gradient))


def solve_positive(matrix, right):
    """Solve matrix [L, P, P] x = right [L, P], positive definite, by elimination, lanes last.

    LAPACK's batched Cholesky is no option: in jaxlib 0.10 it waits inside XLA's thread pool for
    tasks of the same pool, and two chunks at once wait for ever.
    """
    system = jnp.concatenate([jnp.moveaxis(matrix, 0, -1), right.T[:, None]], axis=1)

    def eliminate(k, system):
        row = system[k] / system[k, k]
        return (system - system[:, k, None] * row).at[k].set(row)

    return jax.lax.fori_loop(0, right.shape[1], eliminate, system)[:, -1].T
