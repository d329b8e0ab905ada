"""Laws with synthetic members around a known one: nothing is fitted, nothing is measured."""

import numpy as np

from fitting.config import FitConfig
from fitting.forms import get_form
from fitting.law import BaggedFit, FittedRuns, Members
from fitting.optimise.lanes import CONVERGED, FAILED
from fitting.runs import FACTORS
from tests.fitting.synthetic import PAPER_POINTS, PAPER_UNITS, true_theta

PAPER_Z = np.array([(*point.x, point.num_examples) for point in PAPER_POINTS], float)


def made_up_law(
    form="add-interact", *, members=7, spread=0.2, failed=0, noise=0.01, seed=0, **config
) -> BaggedFit:
    """Return the known law on the paper's 88 points; members differ by `spread`, the last fail."""
    rng, whole = np.random.default_rng(seed), true_theta(get_form(form))
    fields = dict(factors=FACTORS, examples="num_examples", units=PAPER_UNITS)
    theta = whole + spread * rng.standard_normal((members, len(whole)))
    theta[members - failed :] = np.nan
    return _law(form, theta, whole, PAPER_Z, noise, rng, config, **fields)


def any_law(
    num_factors: int, *, form="add", with_n=False, members=5, seed=0, size=40, **config
) -> BaggedFit:
    """Return random parameters and levels 1 to 8 for factors x1, x2, ...; n, if any, from 1 to 8
    too.
    """
    rng, layout = np.random.default_rng(seed), get_form(form).layout(num_factors, with_n)
    whole = rng.uniform(0.3, 2.0, layout.num_parameters)
    theta = whole + 0.3 * rng.standard_normal((members, len(whole)))
    z = rng.integers(1, 9, size=(size, num_factors + with_n)).astype(float)
    factors = tuple(f"x{k + 1}" for k in range(num_factors))
    fields = dict(factors=factors, examples="n" if with_n else None, units=np.ones(z.shape[1]))
    return _law(form, theta, whole, z, 0.01, rng, config, **fields)


def _law(form, theta, whole, z, noise, rng, config, **fields) -> BaggedFit:
    def fits(theta):
        blank = np.zeros(len(theta))
        status = np.where(np.isnan(theta).any(axis=1), FAILED, CONVERGED)
        return Members(theta, blank, blank, status, blank)

    names = np.array([f"r{i}" for i in range(len(z))])
    ripple = np.exp(noise * rng.standard_normal(len(z)))

    def law(error):
        return BaggedFit(
            config=FitConfig(form=form, resamples=len(theta), **config),
            metric="synthetic",
            scale=100.0,
            source="synthetic",
            bag=fits(theta),
            whole=fits(whole[None]),
            runs=FittedRuns(names, z, error, np.ones(len(z))),
            lost={},
            versions={},
            **fields,
        )

    return law(law(ripple).predict_whole(z) * ripple)
