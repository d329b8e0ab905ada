"""What a fit minimises: weighted squared residuals of the log error, equation 7.

`phi` is what the solver moves; theta is what the form reads. They differ only where exponents are
capped: theta = cap tanh(phi / cap) keeps |exponent| < cap smoothly, and is close to phi near 0.
"""

import jax
import jax.numpy as jnp

from fitting.forms import log_sum_exp


def to_theta(phi, is_exponent, cap: float | None):
    """Parameters theta [P] of the solver's variables phi [P]; is_exponent is a bool [P]."""
    if cap is None:
        return phi
    return jnp.where(is_exponent, cap * jnp.tanh(phi / cap), phi)


def to_phi(theta, is_exponent, cap: float | None):
    """The inverse of `to_theta`; an exponent at the cap or beyond it is moved just inside."""
    if cap is None:
        return theta
    inside = jnp.clip(theta / cap, -0.999, 0.999)
    return jnp.where(is_exponent, cap * jnp.arctanh(inside), theta)


def residuals(theta, design, log_f, weights):
    """sqrt(w) (log f_hat - log f), [R].

    Args:
      theta: [P].
      design: [R, M, P], `Form.design` of the runs.
      log_f: [R], log of the measured errors.
      weights: [R], >= 0; how often a resample holds each run, 0 for a run left out.
    """
    return jnp.sqrt(weights) * (log_sum_exp(design @ theta) - log_f)


def jacobian(theta, design, weights):
    """d residuals / d theta, [R, P]: the average of the terms' rows, weighted by their shares."""
    shares_RM = jax.nn.softmax(design @ theta, axis=-1)
    return jnp.sqrt(weights)[:, None] * jnp.einsum("rm,rmp->rp", shares_RM, design)


def objective(theta, design, log_f, weights):
    """Sum of squared residuals, equation 7: a scalar."""
    return jnp.sum(residuals(theta, design, log_f, weights) ** 2)
