"""Split the scatter of runs around a law into the evaluation's, the training's and the clusters'.

The residuals r [R] of a least-squares fit with Jacobian J [R, P] have the covariance

    V = diag(t + k s^2) + c Z Z'

where s is the known standard deviation of a run's score, t the variance that trainings add, k the
share of s^2 in which runs differ, and c the variance between clusters (Z their 0-1 columns). The
three are estimated by restricted maximum likelihood (Patterson and Thompson 1971), none below 0.

k is 1 for evaluations of their own. Where all runs answer the same questions, a part of s moves all
scores together: the questions are as hard for one as for the next. That part shifts the law and is
no scatter between runs, so k is below 1; it is taken to be 1 unless the residuals are too small for
that (a likelihood-ratio test, one-sided, at 5%).
"""

from typing import NamedTuple

import numpy as np

SHARED = 2.71  # 2 x difference of log likelihoods from which k < 1 is believed
SIZES = (0.02, 0.7)  # where the search starts, in units of the residuals' variance
LARGEST = 100.0  # of a variance, in the same units


class Scatter(NamedTuple):
    """Variances of a run around the law, in the space of the fit (log error, or error).

    Attributes:
      training: t, of what the noise column does not hold.
      cluster: c, between clusters; 0 without any.
      share: k, of the noise column's squares.
    """

    training: float
    cluster: float
    share: float

    def spread(self, noise=0.0):
        """Return the standard deviation of a new run, of a new cluster, with that evaluation noise
        (in the space of the fit)."""
        return np.sqrt(self.training + self.cluster + self.share * np.square(noise))


UNKNOWN = Scatter(np.nan, 0.0, 1.0)


def scatter(residual, jacobian, noise=None, cluster=None) -> Scatter:
    """Return the `Scatter` of residuals [R], by restricted maximum likelihood.

    Args:
      residual: [R], unweighted, in the space of the fit.
      jacobian: [R, P], of the fitted values by theta.
      noise: s [R] in that space; None where it is not known.
      cluster: labels [R]; None where runs share nothing.

    Returns:
      NaN for the training's variance where parameters exhaust the runs.
    """
    from scipy.optimize import minimize

    basis = _basis(np.asarray(jacobian, float))
    spare = len(residual) - basis.shape[1]
    if spare <= 0:
        return UNKNOWN
    scale = float(residual @ residual) / spare
    if scale <= 1e-24:  # an exact fit
        return Scatter(0.0, 0.0, 1.0)
    square = np.zeros(len(residual)) if noise is None else np.square(noise) / scale
    unit = None if cluster is None else np.unique(cluster, return_inverse=True)[1]
    data = residual / np.sqrt(scale), basis, square, unit

    def best(free):
        """Return (least value, variances [3]) over those that are free; the others stay."""
        found = []
        for size in SIZES:
            whole = np.array([size, size if free[1] else 0.0, 1.0])

            def value(some, whole=whole):
                whole[free] = some
                return _minus_likelihood(whole, *data)

            ends = np.array([(0.0, LARGEST), (0.0, LARGEST), (0.0, 1.0)])[free]
            end = minimize(value, whole[free], method="L-BFGS-B", bounds=ends)
            whole[free] = end.x
            found.append((float(end.fun), whole))
        return min(found, key=lambda one: one[0])

    free = np.array([True, unit is not None, False])
    value, (training, between, share) = best(free)
    if noise is not None:
        shared_value, shared = best(free | [False, False, True])
        if 2 * (value - shared_value) > SHARED:
            training, between, share = shared
    return Scatter(float(training * scale), float(between * scale), float(share))


def weights_of(found: Scatter, noise) -> np.ndarray:
    """Return weights [R], of mean 1, in inverse proportion to the variances of the runs."""
    least = 1e-4 * float(np.median(np.square(noise)))  # no run counts ten thousand times a typical
    weight_R = 1 / np.maximum(found.training + found.share * np.square(noise), least)
    return weight_R / weight_R.mean()


def _basis(jacobian) -> np.ndarray:
    """Return an orthonormal basis [R, rank] of the Jacobian's columns."""
    length = np.linalg.norm(jacobian, axis=0)
    basis, singular, _ = np.linalg.svd(jacobian / np.maximum(length, 1e-300), full_matrices=False)
    return basis[:, singular > 1e-7 * singular.max(initial=1e-300)]


def _minus_likelihood(variances, residual, basis, square, unit) -> float:
    """Return minus the restricted log likelihood of (t, c, k), but for a constant."""
    training, between, share = variances
    own_R = np.maximum(training + share * square, 1e-6)
    both = np.column_stack([residual, basis])
    solved = both / own_R[:, None]
    size = np.log(own_R).sum()
    if unit is not None and between > 0:
        sums = np.zeros((unit.max() + 1, both.shape[1]))
        np.add.at(sums, unit, solved)
        inverse_G = np.bincount(unit, 1 / own_R)
        shrunk = between / (1 + between * inverse_G)
        solved -= (shrunk[:, None] * sums)[unit] / own_R[:, None]
        size += np.log1p(between * inverse_G).sum()
    gram = basis.T @ solved[:, 1:]
    aim = basis.T @ solved[:, 0]
    explained = aim @ np.linalg.solve(gram, aim)
    return 0.5 * (size + np.linalg.slogdet(gram)[1] + residual @ solved[:, 0] - explained)
