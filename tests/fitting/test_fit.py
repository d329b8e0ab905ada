"""Fits: recovery, agreement with scipy, determinism, and what happens when data are bad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from fitting import objective
from fitting.bootstrap import lost_levels, resample_weights
from fitting.config import FitConfig
from fitting.fit import BaggedFit, fit, random_starts
from fitting.forms import FORMS, get_form
from fitting.solve import CONVERGED, FAILED, solve
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table, true_error

SMALL = FitConfig(resamples=7, starts=40)


@pytest.fixture(scope="module")
def noisy():
    return synthetic_table("add-interact", PAPER_POINTS, noise=0.01)


@pytest.fixture(scope="module")
def law(noisy):
    return fit(noisy, SMALL)


@pytest.mark.parametrize("name", FORMS)
def test_recovers_a_known_law_on_and_off_the_design(name):
    table = synthetic_table(name, PAPER_POINTS)
    law = fit(table, SMALL.replace(form=name))
    assert law.failures == 0
    assert (law.status == CONVERGED).all()
    np.testing.assert_allclose(law.predict(table.x, table.n), table.error, rtol=1e-6)
    x = np.array([[2e9, 24.0, 64.0], [5e9, 6.0, 300.0], [1.5e9, 40.0, 9.0]])
    n = np.array([7e5, 1.5e6, 2.1e6])
    np.testing.assert_allclose(law.predict(x, n), true_error(name, x, n), rtol=1e-6)


def problem(table, form_name="add-interact-s"):
    """Normalised (form, design [R, M, P], log errors [R])."""
    form, columns = get_form(form_name), np.log(np.c_[table.x, table.n])
    log_z = columns - columns.mean(axis=0)
    return form, form.design(log_z[:, :3], log_z[:, 3]), np.log(table.error)


def test_no_worse_than_scipy_from_the_same_starts(noisy):
    form, design, log_f = problem(noisy)
    weights = resample_weights(len(noisy), 1, 3)
    starts = random_starts(form, 3, FitConfig(starts=20))
    ours = solve(design, log_f, weights, starts, is_exponent=form.is_exponent(3), exponent_cap=None)

    def residuals(theta):
        return np.asarray(objective.residuals(theta, design, log_f, weights[0]))

    def slopes(theta):
        return np.asarray(objective.jacobian(theta, design, weights[0]))

    with jax.enable_x64(True):
        theirs = [scipy.optimize.least_squares(residuals, s, slopes, max_nfev=300) for s in starts]
    best = min(2 * result.cost for result in theirs)
    assert ours.objective[0] <= best * (1 + 1e-3)
    np.testing.assert_allclose(ours.objective[0], (residuals(ours.theta[0]) ** 2).sum(), rtol=1e-5)


def test_lbfgs_reaches_the_same_optimum_of_an_easy_form(noisy):
    form, design, log_f = problem(noisy, "mult")
    args = design, log_f, np.ones((1, len(noisy))), random_starts(form, 3, FitConfig(starts=8))
    options = dict(is_exponent=form.is_exponent(3))
    lm = solve(*args, **options)
    lbfgs = solve(*args, **options, solver="lbfgs")
    np.testing.assert_allclose(lbfgs.objective, lm.objective, rtol=1e-4)


def test_a_lane_that_is_not_finite_is_a_counted_failure(noisy):
    form, design, log_f = problem(noisy, "mult")
    weights = np.ones((2, len(noisy)))
    weights[1, 0] = np.inf
    starts = random_starts(form, 3, FitConfig(starts=8))
    solution = solve(design, log_f, weights, starts, is_exponent=form.is_exponent(3))
    assert list(solution.status == FAILED) == [False, True]
    assert np.isnan(solution.objective[1])
    assert np.isfinite(solution.theta[0]).all()


def test_same_seed_same_fit_and_other_seed_other_fit(noisy, law):
    again = fit(noisy, SMALL)
    np.testing.assert_array_equal(again.theta, law.theta)
    other = fit(noisy, SMALL.replace(seed=1))
    assert not np.array_equal(other.theta, law.theta)


def test_precision_of_the_process_is_untouched(law):
    assert jnp.ones(()).dtype == jnp.float32
    assert not jax.config.jax_enable_x64
    assert law.theta.dtype == np.float64


def test_exponents_stay_within_the_cap(noisy):
    law = fit(noisy, SMALL.replace(exponent_cap=0.3))
    exponents = law.theta[:, law.form.is_exponent(3)]
    assert (np.abs(exponents) <= 0.3).all()
    assert law.at_cap.sum() > 0
    assert "at the cap" in law.summary()


def test_left_out_rows_have_no_say(noisy):
    rows = noisy.sweep == "star"
    part = fit(noisy, SMALL.replace(form="mult"), rows=rows)
    spoiled = synthetic_table("add-interact", PAPER_POINTS, noise=0.01)
    spoiled.score[~rows] = 1.0
    same = fit(spoiled, SMALL.replace(form="mult"), rows=rows)
    np.testing.assert_array_equal(part.theta, same.theta)
    assert part.num_runs == 39


def test_grid_members_and_interval_agree_with_predict(noisy, law):
    x, n = noisy.x[:5], np.array([3e5, 2e6])
    grid = law.predict_grid(x, n)
    np.testing.assert_allclose(grid, law.predict(x[:, None], n), rtol=1e-12)
    members = law.predict_members(x[:, None], n)
    assert members.shape == (7, 5, 2)
    np.testing.assert_allclose(np.median(members, axis=0), grid, rtol=1e-12)
    low, high = law.interval(x[:, None], n, level=0.8)
    assert ((low <= grid) & (grid <= high)).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        law.interval(x, 3e5, level=90)


def test_mean_aggregate_is_the_mean(noisy, law):
    mean = fit(noisy, SMALL.replace(aggregate="mean")).predict(noisy.x, noisy.n)
    members = law.predict_members(noisy.x, noisy.n)
    np.testing.assert_allclose(mean, members.mean(axis=0), rtol=1e-12)


def test_save_and_load_are_exact(tmp_path, noisy, law):
    path = law.save(tmp_path / "law")
    loaded = BaggedFit.load(tmp_path / "law")
    np.testing.assert_array_equal(loaded.predict(noisy.x, noisy.n), law.predict(noisy.x, noisy.n))
    assert loaded.config == law.config
    assert loaded.summary() == law.summary()
    before = path.read_bytes()
    loaded.save(tmp_path / "law")
    assert path.read_bytes() == before


def test_bad_tables_are_refused(noisy):
    two = synthetic_table("mult", PAPER_POINTS[:5])
    two.metric[:2] = "f1x"
    with pytest.raises(ValueError, match="one metric"):
        fit(two, SMALL)
    perfect = synthetic_table("mult", PAPER_POINTS[:5])
    perfect.score[3] = 100.0
    with pytest.raises(ValueError, match=f"{perfect.run_id[3]}' has score 100"):
        fit(perfect, SMALL)
    with pytest.raises(ValueError, match="mask of 88 runs"):
        fit(noisy, SMALL, rows=np.zeros(88, bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregate": "mode"}, "aggregate must be one of median, mean; got 'mode'"),
        ({"starts": 0}, "starts must be an integer >= 1, got 0"),
        ({"resamples": 2.5}, "resamples must be an integer"),
        ({"exponent_cap": -1.0}, "exponent_cap must be positive or None"),
        ({"solver": "adam"}, "solver must be one of lm, lbfgs"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**change)


def test_resamples_draw_only_from_their_rows_and_strata():
    rows = np.arange(12) < 9
    strata = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    weights = resample_weights(12, 200, 0, rows=rows, strata=strata)
    assert (weights[:, 9:] == 0).all()
    assert (weights[:, :3].sum(axis=1) == 3).all()
    assert (weights[:, 3:].sum(axis=1) == 6).all()
    with pytest.raises(ValueError, match="at least one run"):
        resample_weights(3, 2, 0, rows=np.zeros(3, bool))


def test_iid_resamples_of_the_star_lose_a_language_model_size(noisy):
    star = noisy.take(noisy.sweep == "star")
    iid = lost_levels(resample_weights(39, 4000, 0), star.lm_params)
    assert abs(iid.mean() - 0.085) < 0.015  # fitting.md: 8.5%
    kept = lost_levels(resample_weights(39, 500, 0, strata=star.lm_params), star.lm_params)
    assert not kept.any()
