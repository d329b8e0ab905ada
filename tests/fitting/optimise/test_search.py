"""The solvers: against scipy from the same starts, bounds, failure, several devices."""

import jax
import numpy as np
import pytest
import scipy.optimize

from fitting.bootstrap import resample_weights
from fitting.config import FitConfig
from fitting.forms import get_form
from fitting.optimise import batch, levenberg_marquardt, objective, polish, search, starts
from fitting.optimise.lanes import CONVERGED, FAILED, STOPPED, Problem
from fitting.optimise.objective import Loss
from fitting.optimise.search import SCREEN
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table


def problem(form_name="mult", *, resamples=3, count=12, noise=0.01):
    """Return (Problem, layout) of the synthetic twin in normalised units."""
    table = synthetic_table(form_name, PAPER_POINTS, noise=noise)
    layout = get_form(form_name).layout(3)
    log_z = np.log(np.c_[table.x, table.n])
    begin = starts.draw(layout, FitConfig(starts=count), 100.0)
    begin[:, : layout.num_terms] -= np.log(100.0)
    weights = resample_weights(len(table), resamples, 3)
    target = np.tile(np.log(table.error / 100), (resamples, 1))
    return Problem(log_z - log_z.mean(axis=0), target, weights, begin), layout


def free(layout):
    return np.full(layout.num_parameters, -np.inf), np.full(layout.num_parameters, np.inf)


@pytest.mark.parametrize("space", ["log", "linear"])
@pytest.mark.parametrize("delta", [None, 0.01])
def test_gradient_and_hessian_match_finite_differences(space, delta):
    given, layout = problem("add-interact")
    loss = Loss(space, delta, space == "linear")
    rng = np.random.default_rng(0)
    theta = 0.3 * rng.normal(size=(2, layout.num_parameters))
    data = given.log_z.T, given.target[:2], np.sqrt(given.weights[:2]), layout, loss
    value, gradient, hessian = objective.derivatives(theta, *data)
    squares = objective.residuals(theta, data[0][None], *data[1:]) ** 2
    np.testing.assert_allclose(value, squares.sum(axis=1), rtol=1e-12)
    for p, step in enumerate(1e-6 * np.eye(layout.num_parameters)):
        up, down = (objective.derivatives(theta + s, *data) for s in (step, -step))
        np.testing.assert_allclose(gradient[:, p], (up[0] - down[0]) / 2e-6, rtol=2e-5, atol=1e-6)
        if delta is None:  # Huber's second derivative jumps
            bend = (up[1] - down[1]) / 2e-6
            np.testing.assert_allclose(hessian[:, p], bend, rtol=1e-5, atol=1e-5)


def test_both_solvers_and_scipys_lbfgs_reach_one_optimum_from_the_same_starts(monkeypatch):
    monkeypatch.setattr(batch, "CPU_LANES", 4)  # no slow lanes of L-BFGS for padding
    given, layout = problem(resamples=1, count=4)
    found = {
        name: search.solve([given], layout, *free(layout), solver=name)[0]
        for name in ("lm", "lbfgs")
    }
    log_z = given.log_z.T[None]
    for b, weights in enumerate(given.weights):
        data = log_z, given.target[b][None], np.sqrt(weights / weights.sum())[None], layout, Loss()

        def value_and_gradient(theta, data=data):
            r, jac = objective.residuals_and_jacobian(theta[None], *data)
            return (r**2).sum(), 2 * (jac @ r[..., None])[0, :, 0]

        tight = dict(maxiter=5000, maxfun=20000, ftol=1e-15, gtol=1e-12)
        theirs = min(
            scipy.optimize.minimize(
                value_and_gradient, start, jac=True, method="L-BFGS-B", options=tight
            ).fun
            for start in given.starts
        )
        for name, solution in found.items():
            assert solution.status[b] == CONVERGED, name
            np.testing.assert_allclose(solution.objective[b], theirs, rtol=1e-6, err_msg=name)


def test_converged_means_that_nothing_is_left_to_gain(monkeypatch):
    given, layout = problem(resamples=1, count=1)
    whole = search.solve([given], layout, *free(layout))[0]
    # Rounding may leave a gradient above the tolerance although no step can go down.
    monkeypatch.setattr(levenberg_marquardt, "GRADIENT_TOLERANCE", 0.0)
    again = given._replace(starts=whole.theta)
    assert search.solve([again], layout, *free(layout))[0].status == CONVERGED
    monkeypatch.setattr(polish, "POLISH", 0)
    monkeypatch.setattr(search, "repolish", lambda batch, lanes: lanes)
    for off, status in ((1e-9, CONVERGED), (1e-3, STOPPED)):
        near = given._replace(starts=whole.theta + off)
        solution = search.solve([near], layout, *free(layout), stages=((0, 1),), rounds=0)[0]
        assert solution.status == status, off


def test_no_worse_than_scipy_on_a_law_with_many_minima():
    given, layout = problem("add-interact-s", resamples=1, count=12)
    upper = np.where(np.arange(layout.num_parameters) < layout.num_terms, 60.0, 4.0)
    ours = search.solve([given], layout, -upper, upper, stages=SCREEN)[0]
    root = np.sqrt(given.weights / given.weights.sum())
    data = given.log_z.T[None], given.target, root, layout, Loss()
    theirs = [
        scipy.optimize.least_squares(
            lambda t: objective.residuals(t[None], *data)[0],
            np.clip(start, -upper, upper),
            lambda t: objective.residuals_and_jacobian(t[None], *data)[1][0].T,
            bounds=(-upper, upper),
            max_nfev=300,
        )
        for start in given.starts
    ]
    assert ours.objective[0] <= 2 * min(result.cost for result in theirs) * (1 + 1e-4)
    np.testing.assert_allclose(
        ours.objective, (objective.residuals(ours.theta, *data) ** 2).sum(axis=1), rtol=1e-12
    )


@pytest.mark.light
def test_a_bound_that_binds_is_met_exactly_and_counts_as_converged():
    given, layout = problem()
    lower, upper = free(layout)
    upper[layout.num_terms :] = 0.1
    solution = search.solve([given], layout, lower, upper)[0]
    assert (solution.status == CONVERGED).all()
    assert (solution.theta <= upper).all()
    assert (solution.theta == upper).any(axis=1).all()


def test_a_resample_that_is_not_finite_is_a_counted_failure():
    given, layout = problem()
    given.weights[1, 0] = np.inf
    with np.errstate(all="ignore"):
        solution = search.solve([given], layout, *free(layout))[0]
    assert list(solution.status == FAILED) == [False, True, False]
    assert np.isnan(solution.objective[1])
    assert np.isnan(solution.theta[1]).all()
    assert np.isfinite(solution.theta[[0, 2]]).all()


def test_targets_must_be_finite_where_they_count():
    given, layout = problem()
    run = int(np.argmax(given.weights[0]))
    given.target[:, run] = -np.inf
    with pytest.raises(ValueError, match="finite targets"):
        search.solve([given], layout, *free(layout))
    given.weights[:, run] = 0.0
    assert (search.solve([given], layout, *free(layout))[0].status == CONVERGED).all()


def test_many_problems_are_each_solved_as_alone_whatever_the_devices(monkeypatch):
    one, layout = problem("add")
    two = one._replace(target=(one.target + 0.1 * one.log_z[:, 0])[:2], weights=one.weights[:2])
    together = search.solve([one, two], layout, *free(layout))
    one_device = jax.local_devices()[:1], batch.CPU_LANES
    monkeypatch.setattr(batch, "devices_and_chunk", lambda: one_device)
    for given, solution in zip((one, two), together, strict=True):
        alone = search.solve([given], layout, *free(layout))[0]
        np.testing.assert_array_equal(alone.theta, solution.theta)


def test_positive_systems_are_solved():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 6, 6))
    matrix, right = root @ np.swapaxes(root, 1, 2) + 0.1 * np.eye(6), rng.normal(size=(5, 6))
    with jax.enable_x64(True):
        found = np.asarray(levenberg_marquardt.solve_positive(matrix, right))
    np.testing.assert_allclose(found, np.linalg.solve(matrix, right[..., None])[..., 0], rtol=1e-8)


def test_projected_starts_have_the_best_coefficients():
    given, layout = problem("add")
    error, weights = np.exp(given.target[0]), given.weights[0]
    projected = starts.project(given.starts, given.log_z, error, weights, layout)
    np.testing.assert_array_equal(
        projected[:, layout.num_terms :], given.starts[:, layout.num_terms :]
    )
    powers = given.starts.copy()
    powers[:, : layout.num_terms] = 0.0
    log_basis = np.einsum("rmp,ip->irm", layout.design(given.log_z), powers)
    root = np.sqrt(weights)
    for i, start in enumerate(projected):
        basis = np.exp(log_basis[i]) / error[:, None] * root[:, None]
        best, least = scipy.optimize.nnls(basis, root)
        ours = np.linalg.norm(basis @ np.exp(start[: layout.num_terms]) - root)
        assert ours <= 1.05 * least + 1e-9
