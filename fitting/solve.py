"""Many small least-squares fits at once: starts x resamples, on jaxopt. Nothing else imports it.

Local minima are real here: the best of 500 starts lies well below the median start, and only a few
starts get there. So every start gets a few Levenberg-Marquardt steps, the best of them more, and
the last handful is polished to a gradient tolerance (successive halving; four times cheaper than
polishing all). Everything is float64 inside, without changing the precision of the process.
"""

import functools
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fitting import objective

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt is frozen, and says so on import
    import jaxopt

CONVERGED, STOPPED, FAILED = 0, 1, 2
"""Status of a lane: gradient within tolerance; best point when iterations ran out; not finite."""

STATUS_TEXT = ("converged", "stopped at the iteration limit", "failed")
GRADIENT_TOLERANCE = 1e-6  # of a unit of total weight; residuals and slopes are of order 1
EXACT = 1e-13  # where a polish stops: rounding noise
STAGES = ((15, 1), (60, 8), (400, 64))  # (iterations, one start in this many goes on)
LANES = 1024  # starts x resamples held in memory at once
COMPILER = {"xla_backend_optimization_level": 1}  # compiles in half the time, runs as fast


class Solution(NamedTuple):
    """The best optimum found for each resample.

    Attributes:
      theta: parameters [B, P].
      objective: sum of weighted squared log residuals [B], equation 7.
      gradient_norm: of the objective with respect to the solver's variables [B].
      status: CONVERGED, STOPPED or FAILED, [B].
    """

    theta: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    status: np.ndarray


def solve(
    design, log_f, weights, starts, *, is_exponent, exponent_cap=4.0, solver="lm"
) -> Solution:
    """Fits every resample from every start and keeps its best optimum.

    Args:
      design: [R, M, P], `Form.design` of the normalised runs.
      log_f: [R], log errors.
      weights: [B, R], count weights; 0 leaves a run out and keeps the shapes.
      starts: [I, P] parameters.
      is_exponent: bool [P].
      exponent_cap: largest |exponent| or None.
      solver: 'lm' or 'lbfgs'.

    Returns:
      a `Solution` of numpy arrays; a resample of which no start stayed finite has status FAILED
      and theta, objective NaN.

    Raises:
      ValueError: log_f is not finite.
    """
    if not np.isfinite(log_f).all():
        raise ValueError("solve needs finite log errors: every error must be positive")
    weights = np.asarray(weights, np.float64)
    count = len(weights)
    num_chunks = -(-count * len(starts) // LANES)
    chunk = -(-count // num_chunks)  # of even size: a padded lane costs as much as a real one
    padding = -count % chunk
    chunks = np.concatenate([weights, np.repeat(weights[:1], padding, axis=0)])
    chunks = chunks.reshape(-1, chunk, weights.shape[1])
    with jax.enable_x64(True), jax.default_device(_cpu()):
        data = [jnp.asarray(value, jnp.float64) for value in (design, log_f, starts)]
        run = functools.partial(
            _solve_chunk, *data, np.asarray(is_exponent), cap=exponent_cap, solver=solver
        )
        parts = [jax.device_get(run(weights_BR)) for weights_BR in chunks]
    return Solution(*(np.concatenate(columns)[:count] for columns in zip(*parts, strict=True)))


def _cpu():
    """A CPU device where there is one: TPUs have no float64, and these fits are small."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None  # the platform was restricted to an accelerator: use its default device


@functools.partial(jax.jit, static_argnames=("cap", "solver"), compiler_options=COMPILER)
def _solve_chunk(design, log_f, starts, is_exponent, weights, *, cap, solver):
    """`Solution` of one chunk of resamples, weights [B, R]; every chunk has the same shapes."""

    def residual_fun(phi, weights_R):
        theta = objective.to_theta(phi, is_exponent, cap)
        return objective.residuals(theta, design, log_f, weights_R)

    def jac_fun(phi, weights_R):
        theta, slope = jax.jvp(
            lambda p: objective.to_theta(p, is_exponent, cap), (phi,), (jnp.ones_like(phi),)
        )
        return objective.jacobian(theta, design, weights_R) * slope

    def gradient(phi, weights_R):
        return 2 * jac_fun(phi, weights_R).T @ residual_fun(phi, weights_R)

    def value(phi, weights_R):
        return jnp.sum(residual_fun(phi, weights_R) ** 2)

    phi_IP = objective.to_phi(starts, is_exponent, cap)
    search = _prune_lm if solver == "lm" else _all_lbfgs
    best_BP = search(phi_IP, weights, residual_fun, jac_fun, value)
    objective_B = jax.vmap(value)(best_BP, weights)
    norm_B = jnp.linalg.norm(jax.vmap(gradient)(best_BP, weights), axis=-1)
    finite_B = jnp.isfinite(objective_B) & jnp.isfinite(best_BP).all(axis=-1)
    close_B = norm_B <= GRADIENT_TOLERANCE * weights.sum(axis=-1)
    status_B = jnp.where(finite_B, jnp.where(close_B, CONVERGED, STOPPED), FAILED)
    theta_BP = jax.vmap(lambda phi: objective.to_theta(phi, is_exponent, cap))(best_BP)
    return Solution(
        jnp.where(finite_B[:, None], theta_BP, jnp.nan),
        jnp.where(finite_B, objective_B, jnp.nan),
        norm_B,
        status_B,
    )


def _prune_lm(phi_IP, weights_BR, residual_fun, jac_fun, value):
    """Successive halving with Levenberg-Marquardt: the best phi [B, P]."""
    lm = jaxopt.LevenbergMarquardt(
        residual_fun,
        materialize_jac=True,
        solver="cholesky",
        damping_parameter=1e-3,
        stop_criterion="grad-l2-norm",
        tol=EXACT,
        xtol=0.0,
        gtol=0.0,
        implicit_diff=False,
        jit=False,
    )
    lm._jac_fun = jac_fun  # jaxopt 0.8.5 ignores its own argument jac_fun with materialize_jac
    count = len(phi_IP)
    phi_BIP = jnp.broadcast_to(phi_IP, (len(weights_BR), *phi_IP.shape))
    for iterations, share in STAGES:
        kept = min(count, max(4, -(-count // share)))
        phi_BIP = _best(phi_BIP, weights_BR, value, kept)
        polish = functools.partial(_descend, lm, iterations=iterations)
        phi_BIP = jax.vmap(jax.vmap(polish, (0, None)), (0, 0))(phi_BIP, weights_BR)
    return _best(phi_BIP, weights_BR, value, 1)[:, 0]


def _descend(lm, phi, weights_R, *, iterations):
    """At most so many LM steps from phi [P]; a step that is not finite is undone and damped.

    jaxopt blends accepted and rejected steps by multiplication, so that one singular Cholesky
    would turn a good lane into NaN for good.
    """
    tolerance = EXACT * weights_R.sum()

    def unfinished(carry):
        _, state = carry
        stuck = state.damping_factor > 1e12
        return (state.iter_num < iterations) & (state.error > tolerance) & ~stuck

    def step(carry):
        phi, state = carry
        new_phi, new_state = lm.update(phi, state, weights_R)
        good = jnp.isfinite(new_phi).all() & jnp.isfinite(new_state.value)
        damped = state._replace(
            iter_num=state.iter_num + 1, damping_factor=10 * state.damping_factor + 1e-12
        )
        return jax.tree.map(
            lambda new, old: jnp.where(good, new, old), (new_phi, new_state), (phi, damped)
        )

    state = lm.init_state(phi, weights_R)
    state = state._replace(increase_factor=jnp.asarray(state.increase_factor, phi.dtype))
    return jax.lax.while_loop(unfinished, step, (phi, state))[0]


def _best(phi_BIP, weights_BR, value, kept: int):
    """The `kept` lanes of least objective, best first: [B, kept, P]; not finite counts as worst."""
    value_BI = jax.vmap(jax.vmap(value, (0, None)), (0, 0))(phi_BIP, weights_BR)
    order_BI = jnp.argsort(jnp.where(jnp.isfinite(value_BI), value_BI, jnp.inf), axis=1)
    return jnp.take_along_axis(phi_BIP, order_BI[:, :kept, None], axis=1)


def _all_lbfgs(phi_IP, weights_BR, residual_fun, jac_fun, value):
    """L-BFGS from every start, as the paper does with scipy: the best phi [B, P]."""
    del residual_fun, jac_fun
    lbfgs = jaxopt.LBFGS(
        value, maxiter=500, tol=GRADIENT_TOLERANCE, linesearch="zoom", implicit_diff=False
    )
    run = jax.vmap(jax.vmap(lambda phi, w: lbfgs.run(phi, w).params, (0, None)), (None, 0))
    return _best(run(phi_IP, weights_BR), weights_BR, value, 1)[:, 0]
