"""Draw the starts of descents, theta [I, P], in the user's units, as the paper draws them."""

import numpy as np

from fitting.config import FitConfig
from fitting.forms import Layout

SWEEPS = 400  # of coordinate descent over a few coefficients


def draw(layout: Layout, config: FitConfig, scale: float) -> np.ndarray:
    """Return random starts [I, P] in `config.units`; 'zero' has one.

    Args:
      layout: of the form.
      config: init, starts, seed, start_coefficient, start_exponent.
      scale: 100 or 1; coefficients are in error points of it.
    """
    is_exponent = np.arange(layout.num_parameters) >= layout.num_coefficients
    if config.init == "zero":
        theta_IP = np.zeros((1, layout.num_parameters))
    else:
        rng = np.random.default_rng([config.seed, 1])  # a stream apart from the resamples'
        uniform_IP = rng.uniform(size=(config.starts, layout.num_parameters))
        top = config.start_coefficient
        logs_IP = np.log(top * scale / 100 * np.maximum(uniform_IP, 1e-6))
        if config.init == "log-coefficient":
            logs_IP = top * uniform_IP + np.log(scale / 100)
        if layout.shared:  # a factor's level stands beside its power, which is 1 at its unit
            levels = sorted({q for own in layout.shared for q in own[1:]})
            logs_IP[:, levels] = np.log(np.maximum(uniform_IP[:, levels], 1e-6))
        theta_IP = np.where(is_exponent, config.start_exponent * (2 * uniform_IP - 1), logs_IP)
    if config.bound_exponents:
        theta_IP = np.where(is_exponent, np.abs(theta_IP), theta_IP)
    return theta_IP


def project(theta, log_z, error, weights, layout: Layout) -> np.ndarray:
    """Return the same exponents with the best coefficients >= 0, [I, P] (variable projection).

    The error is linear in the coefficients, so this is a small non-negative least-squares problem
    in relative error for each start. A coefficient at 0 becomes a millionth of the error, from
    which a descent can still raise it.

    Args:
      theta: [I, P].
      log_z: [R, C].
      error: [R], positive where it has weight.
      weights: [R].
      layout: of the form.
    """
    used = weights > 0
    exponents = theta.copy()
    exponents[:, : layout.num_terms] = 0.0
    powers = np.einsum("rmp,ip->irm", layout.design(log_z[used]), exponents, optimize=True)
    largest = powers.max(axis=1, keepdims=True)
    basis_IRM = np.exp(powers - largest) / error[used][:, None] * np.sqrt(weights[used])[:, None]
    gram_IMM = np.einsum("irm,irk->imk", basis_IRM, basis_IRM, optimize=True)
    aim_IM = np.einsum("irm,r->im", basis_IRM, np.sqrt(weights[used]), optimize=True)
    value_IM = np.zeros_like(aim_IM)
    for _ in range(SWEEPS):
        for m in range(layout.num_terms):
            left = aim_IM[:, m] - np.einsum("ik,ik->i", gram_IMM[:, m], value_IM)
            value_IM[:, m] = np.maximum(0.0, value_IM[:, m] + left / gram_IMM[:, m, m])
    typical = np.exp(np.average(np.log(error[used]), weights=weights[used]))
    projected = theta.copy()
    logs_IM = np.log(np.maximum(value_IM, 1e-6 * typical)) - largest[:, 0]
    projected[:, : layout.num_terms] = logs_IM
    return projected
