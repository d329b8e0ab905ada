"""The forms against the papers' formulas, with and without n, and their derivatives."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fitting.forms import FORMS, get_form
from fitting.optimise import objective
from fitting.optimise.objective import Loss
from tests.fitting.synthetic import true_theta

X = np.random.default_rng(0).uniform(0.3, 3.0, size=(7, 3))
N = np.random.default_rng(1).uniform(0.2, 5.0, size=7)
LOSSES = [
    Loss(),
    Loss(delta=0.05),
    Loss("linear"),
    Loss("linear", 2.0),
    Loss("linear", None, True),
]


def by_hand(name: str, p: dict) -> np.ndarray:
    """Return appendix D's table, written out."""
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


def test_li_is_a_product_of_powers_and_a_floor():
    form = get_form("li")
    assert form.parameters(2) == form.parameters(2, False) == ("A", "D", "alpha", "beta")
    theta = np.array([np.log(0.6), np.log(0.1), 0.07, 0.02])
    expected = 0.6 * X[:, 0] ** -0.07 * X[:, 1] ** -0.02 + 0.1
    np.testing.assert_allclose(np.exp(form.log_error(theta, np.log(X[:, :2]))), expected, 1e-13)


def test_without_n_what_n_alone_decides_falls_away():
    add = get_form("add")
    assert add.parameters(2, False) == ("alpha_1", "alpha_2", "epsilon", "a_1", "a_2")
    assert get_form("mult").parameters(1, False) == ("alpha", "epsilon", "a_1")
    for name in ("add-interact", "add-interact-s"):
        with pytest.raises(ValueError, match=f"'{name}' .* no examples column; forms without n"):
            get_form(name).parameters(2, False)
    with pytest.raises(ValueError, match="one or more factors"):
        add.parameters(0)


@pytest.mark.parametrize("name", FORMS)
def test_any_number_of_factors(name):
    form = get_form(name)
    for count in (1, 2, 5):
        theta = np.zeros(len(form.parameters(count)))
        terms = form.layout(count).num_terms
        log_x = np.zeros((4, count))
        np.testing.assert_allclose(form.log_error(theta, log_x, np.zeros(4)), np.log(terms))


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_jacobian_matches_finite_differences(name, loss):
    layout = get_form(name).layout(3)
    rng = np.random.default_rng(2)
    theta = rng.normal(size=(2, layout.num_parameters)) * 0.5
    log_z = np.log(np.c_[X, N]).T[None]
    target = objective.model(theta, log_z, layout, loss)[0] + 0.3 * rng.normal(size=(2, 7))
    root = np.sqrt(np.array([[0.0, 1, 2, 1, 3, 1, 1]] * 2))

    def residuals(theta):
        return objective.residuals(theta, log_z, target, root, layout, loss)

    value, jacobian = objective.residuals_and_jacobian(theta, log_z, target, root, layout, loss)
    np.testing.assert_array_equal(value, residuals(theta))
    assert (value[:, 0] == 0).all()  # no weight, no say
    for p, step in enumerate(1e-6 * np.eye(layout.num_parameters)):
        slope = (residuals(theta + step) - residuals(theta - step)) / 2e-6
        np.testing.assert_allclose(jacobian[:, p], slope, rtol=1e-6, atol=1e-8)


def test_squares_of_transformed_residuals_are_the_huber_loss():
    r = np.linspace(-3, 3, 61)
    transformed, slope = objective.transform(r, Loss(delta=0.5))
    textbook = np.where(np.abs(r) <= 0.5, r**2 / 2, 0.5 * (np.abs(r) - 0.25))
    np.testing.assert_allclose(transformed**2, 2 * textbook, rtol=1e-13)
    assert (np.sign(transformed) == np.sign(r)).all()
    np.testing.assert_allclose(slope[r == 0], 1.0)
    same, _ = objective.transform(r, Loss(delta=10.0))
    np.testing.assert_array_equal(same, r)


EXPONENT = st.floats(0.0, 2.0)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.lists(EXPONENT, min_size=20, max_size=20), st.sampled_from(sorted(FORMS)))
def test_error_falls_in_n_and_where_only_falling_powers_stand(exponents, name):
    form = get_form(name)
    theta = np.zeros(len(form.parameters(3)))
    is_exponent = form.is_exponent(3)
    theta[is_exponent] = exponents[: is_exponent.sum()]
    log_x = np.zeros((9, 3))
    line = np.linspace(-2, 2, 9)
    assert (np.diff(form.log_error(theta, log_x, line)) <= 1e-12).all()
    if not form.frontier_moves:
        for k in range(3):
            moved = np.where(np.arange(3) == k, line[:, None], 0.0)
            assert (np.diff(form.log_error(theta, moved, np.zeros(9))) <= 1e-12).all()


def test_a_misspelt_form_names_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'add-interact'"):
        get_form("add-interract")
