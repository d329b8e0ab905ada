"""The paper's procedure: L-BFGS from every start of every resample to its end, with jaxopt.

The paper runs scipy's L-BFGS from 500 random starts and keeps the best (Appendix D). Here all
starts of all resamples are lanes of one vmapped jaxopt program. It is the slow solver: a vmapped
line search runs until its slowest lane is done, and nothing is learned from one resample for the
next. `fitting.optimise.search` with Levenberg-Marquardt finds optima as good or better in a small
part of the time, and is the default. jaxopt is no longer maintained; no other module imports it.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from fitting.optimise import objective
from fitting.optimise.batch import Batch
from fitting.optimise.lanes import Lanes, concatenate
from fitting.optimise.levenberg_marquardt import COMPILER

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt announces its end on import
    import jaxopt

ITERATIONS = 500
TOLERANCE = 1e-9  # of the gradient's norm; jaxopt's default of 1e-3 stops far too early


def minimise_all(batch: Batch) -> Lanes:
    """Return lanes at the end of L-BFGS from every start of every resample."""
    lanes = concatenate(batch.all_starts())
    inside = lanes._replace(theta=np.clip(lanes.theta, batch.lower, batch.upper))
    program = functools.partial(_minimise, layout=batch.layout, loss=batch.loss)
    # One chunk at a time: the line search multiplies matrices in XLA's thread pool, in which two
    # chunks at once can wait for each other for ever (see `levenberg_marquardt.solve_positive`).
    bounds = dict(lower=batch.lower, upper=batch.upper)
    ends = batch.run(program, bounds, inside, threads=False)
    return batch.descend(lanes._replace(theta=ends["theta"]), 0)  # 0 steps: objective and slope


@functools.partial(jax.jit, static_argnames=("layout", "loss"), compiler_options=COMPILER)
def _minimise(theta, damping, log_z, target, root, lower, upper, *, layout, loss):
    """Run L-BFGS from theta [L, P]; smooth maps keep exponents within their bounds.

    L-BFGS knows no bounds. theta = middle + half tanh((phi - middle) / half) keeps an exponent
    between two, softplus above 0; log coefficients are free.
    """
    del damping
    is_exponent = jnp.arange(len(lower)) >= layout.num_coefficients
    boxed = is_exponent & jnp.isfinite(lower) & jnp.isfinite(upper)
    above = is_exponent & (lower == 0) & ~boxed
    half, middle = (jnp.where(boxed, v, 1.0) for v in ((upper - lower) / 2, (upper + lower) / 2))

    def to_theta(phi):
        inside = middle + half * jnp.tanh((phi - middle) / half)
        return jnp.where(boxed, inside, jnp.where(above, jax.nn.softplus(phi), phi))

    def to_phi(theta):
        # Away from the bounds, where phi would be infinite and its gradient zero.
        inside = middle + half * jnp.arctanh(jnp.clip((theta - middle) / half, -0.999, 0.999))
        gap = jnp.where(above, jnp.maximum(theta, 1e-3), 1.0)
        return jnp.where(boxed, inside, jnp.where(above, gap + jnp.log(-jnp.expm1(-gap)), theta))

    def value(phi, log_z, target, root):
        one = to_theta(phi)[None], log_z[None], target[None], root[None]
        return jnp.sum(objective.residuals(*one, layout, loss)[0] ** 2)

    method = jaxopt.LBFGS(
        value, maxiter=ITERATIONS, tol=TOLERANCE, linesearch="zoom", implicit_diff=False
    )

    def run(theta, *data):
        return to_theta(method.run(to_phi(theta), *data).params)

    return dict(theta=jax.vmap(run)(theta, log_z, target, root))
