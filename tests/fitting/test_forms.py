"""The four forms against the paper's formulas, and their derivatives against differences."""

import jax
import numpy as np
import pytest

from fitting import objective
from fitting.forms import FORMS, get_form
from tests.fitting.synthetic import true_theta

X = np.random.default_rng(0).uniform(0.3, 3.0, size=(7, 3))
N = np.random.default_rng(1).uniform(0.2, 5.0, size=7)


def by_hand(name: str, p: dict) -> np.ndarray:
    """Appendix D's table, written out."""
    fall = sum(
        p[f"alpha_{s}"] * X[:, k] ** -p[f"a_{s}"] for k, s in enumerate("NTV") if name != "mult"
    )
    if name == "mult":
        product = np.prod([X[:, k] ** -p[f"a_{s}"] for k, s in enumerate("NTV")], axis=0)
        return p["alpha"] * product * N ** -p["d"] + p["epsilon"]
    fall = sum(p[f"alpha_{s}"] * X[:, k] ** -p[f"a_{s}"] for k, s in enumerate("NTV"))
    if name == "add":
        return fall + p["xi"] * N ** -p["d"] + p["epsilon"]
    grow = sum(p[f"beta_{s}"] * X[:, k] ** p[f"b_{s}"] for k, s in enumerate("NTV"))
    shared = p["xi"] if name == "add-interact" else 0.0
    return fall + (grow + shared) * N ** -p["d"] + p["epsilon"]


@pytest.mark.parametrize(
    ("name", "count"), [("mult", 6), ("add", 9), ("add-interact-s", 14), ("add-interact", 15)]
)
def test_forms_are_the_papers(name, count):
    form = get_form(name)
    theta = true_theta(form)
    assert len(theta) == count
    values = np.where(form.is_exponent(3), theta, np.exp(theta))
    expected = by_hand(name, dict(zip(form.parameters(3), values, strict=True)))
    np.testing.assert_allclose(np.exp(form.log_error(theta, np.log(X), np.log(N))), expected, 1e-13)


@pytest.mark.parametrize("name", FORMS)
def test_any_number_of_factors(name):
    form = get_form(name)
    for count in (1, 2, 5):
        theta = np.zeros(len(form.parameters(count)))
        terms = len(form.coefficients(count))
        log_x = np.zeros((4, count))
        np.testing.assert_allclose(form.log_error(theta, log_x, np.zeros(4)), np.log(terms))


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("name", FORMS)
def test_gradient_matches_finite_differences(name, cap):
    form = get_form(name)
    mask, phi = form.is_exponent(3), true_theta(form)
    design = form.design(np.log(X), np.log(N))
    log_f, weights = np.log(np.linspace(30, 60, 7)), np.array([0.0, 1, 2, 1, 3, 1, 1])

    def loss(phi):
        return objective.objective(objective.to_theta(phi, mask, cap), design, log_f, weights)

    with jax.enable_x64(True):
        gradient = jax.grad(loss)(phi)
        for i, step in enumerate(1e-5 * np.eye(len(phi))):
            difference = (loss(phi + step) - loss(phi - step)) / 2e-5
            np.testing.assert_allclose(gradient[i], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMS)
def test_analytic_jacobian_matches_automatic(name):
    form = get_form(name)
    design, theta = form.design(np.log(X), np.log(N)), true_theta(form)
    weights = np.array([0.0, 1, 2, 1, 3, 1, 1])
    with jax.enable_x64(True):
        automatic = jax.jacfwd(objective.residuals)(theta, design, np.zeros(7), weights)
        analytic = objective.jacobian(theta, design, weights)
    np.testing.assert_allclose(analytic, automatic, rtol=1e-12, atol=1e-14)


def test_cap_is_smooth_and_invertible():
    mask = np.array([False, True, True])
    with jax.enable_x64(True):
        theta = objective.to_theta(np.array([50.0, 50.0, 0.01]), mask, 4.0)
        assert theta[0] == 50.0
        assert theta[1] <= 4.0
        assert abs(theta[2] - 0.01) < 1e-6
        back = objective.to_theta(objective.to_phi(theta, mask, 4.0), mask, 4.0)
        np.testing.assert_allclose(back, theta, rtol=2e-3)


def test_an_unknown_form_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'add-interact'"):
        get_form("add-interct")
