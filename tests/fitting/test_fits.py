"""Fits: recovery, units, resampling, options, files, the report, and errors for bad data."""

import dataclasses
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fitting.config import FitConfig
from fitting.fits import fit, fit_many
from fitting.forms import PAPER_FORMS, get_form
from fitting.law import BaggedFit
from fitting.optimise.lanes import CONVERGED
from fitting.runs import LI2024, read_runs
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table, table_of, true_error

SMALL = FitConfig(resamples=7, starts=40)
TINY = FitConfig(form="mult", resamples=3, starts=8)


@pytest.fixture(scope="module")
def noisy():
    return synthetic_table("add-interact", PAPER_POINTS, noise=0.01)


@pytest.fixture(scope="module")
def law(noisy):
    return fit(noisy, SMALL)


@pytest.fixture(scope="module")
def li():
    return read_runs(LI2024, factors=("lm_params", "visual_tokens"), error="error", scale=1.0)


# --- what is recovered ---


@pytest.mark.parametrize("name", PAPER_FORMS)
def test_recovers_a_known_law_on_and_off_the_design(name):
    table = synthetic_table(name, PAPER_POINTS)
    law = fit(table, SMALL.replace(form=name))
    assert law.failures == 0
    assert (law.status == CONVERGED).all()
    np.testing.assert_allclose(law.predict(table.x, table.n), table.error, rtol=1e-6)
    x = np.array([[2e9, 24.0, 64.0], [5e9, 6.0, 300.0], [1.5e9, 40.0, 9.0]])
    n = np.array([7e5, 1.5e6, 2.1e6])
    np.testing.assert_allclose(law.predict(x, n), true_error(name, x, n), rtol=1e-6)


# Three factors: the test above.
ANY_NUMBER = [("mult", True, 1), ("add-interact-s", True, 4), ("li", False, 1), ("add", False, 4)]
OTHERS = [
    case
    for form in [
        *((name, True) for name in PAPER_FORMS),
        *((f, False) for f in ("mult", "add", "li")),
    ]
    for case in ((*form, 1), (*form, 4))
    if case not in ANY_NUMBER
]
MORE = pytest.mark.slow(reason="compiles a fit; other forms have as many factors")


@pytest.mark.parametrize(
    ("name", "with_n", "num_factors"),
    [*ANY_NUMBER, *(pytest.param(*case, marks=MORE) for case in OTHERS)],
)
def test_recovers_any_number_of_factors(name, num_factors, with_n):
    form = get_form(name)
    rng = np.random.default_rng(num_factors)
    z = np.exp(rng.uniform(0, 4, size=(90, num_factors + with_n)))
    terms = len(form.terms(num_factors, with_n))
    theta = rng.uniform(0.3, 0.9, size=len(form.parameters(num_factors, with_n)))
    theta[:terms] = np.log(rng.uniform(3, 10, size=terms))
    columns = z[:, :num_factors], z[:, -1] if with_n else None
    logs = [None if c is None else np.log(c) for c in columns]
    error = np.exp(form.log_error(theta, *logs))
    fitted, off = np.arange(90) < 70, np.arange(90) >= 70
    table = table_of(error[fitted], *[None if c is None else c[fitted] for c in columns], scale=1e3)
    law = fit(table, FitConfig(form=name, resamples=1, starts=20))
    predicted = law.predict(*[None if c is None else c[off] for c in columns])
    np.testing.assert_allclose(predicted, error[off], rtol=1e-6)
    np.testing.assert_allclose(law.predict(table.x, table.n), table.error, rtol=1e-6)


def test_free_exponents_linear_space_and_huber_recover_too():
    table = synthetic_table("mult", PAPER_POINTS)
    for changes in (
        dict(exponent_cap=None),
        dict(space="linear"),
        dict(loss="huber", huber_delta=0.01),
        dict(space="linear", loss="huber", huber_delta=1.0, free_floor=True),
        dict(bound_exponents=True),
        dict(init="projected"),
        dict(init="zero"),
        dict(init="log-coefficient", start_coefficient=4.0),
        dict(resampling="none", units="geomean"),
    ):
        law = fit(table, TINY.replace(resamples=2, **changes))
        error = law.predict(table.x, table.n)
        np.testing.assert_allclose(error, table.error, rtol=1e-5, err_msg=str(changes))


def test_lis_grid_has_its_floor_at_zero(li):
    law = fit(li, FitConfig(form="li", space="linear", resamples=10, starts=60))
    whole = dict(zip(law.parameters, law.readable(law.whole.theta[0]), strict=True))
    np.testing.assert_allclose(
        [whole["A"], whole["alpha"], whole["beta"]], [0.591, 0.071, 0.015], atol=6e-4
    )
    assert whole["D"] < 1e-6
    row = next(line for line in law.report().splitlines() if line.startswith("D "))
    assert "at its bound 0 (absent)" in row
    assert law.degenerate is None


def test_lis_grid_with_a_free_floor_is_degenerate_and_says_so(li):
    law = fit(li, FitConfig(form="li", space="linear", free_floor=True, resamples=3, starts=40))
    assert "optimum lies at infinity" in law.degenerate
    text = law.report()
    assert "DEGENERATE" in text
    assert not [line for line in text.splitlines() if line.startswith("alpha")]


# --- what a fit does not depend on ---


def test_same_seed_same_fit_and_other_seed_other_fit(noisy, law, tmp_path):
    again = fit(noisy, SMALL)
    assert again.save(tmp_path / "a").read_bytes() == law.save(tmp_path / "b").read_bytes()
    other = fit(noisy, SMALL.replace(seed=1))
    assert not np.array_equal(other.theta, law.theta)


def test_precision_of_the_process_is_untouched(law):
    assert jnp.ones(()).dtype == jnp.float32
    assert not jax.config.jax_enable_x64
    assert law.theta.dtype == np.float64


@hypothesis.settings(max_examples=4)
@hypothesis.given(st.lists(st.floats(-9, 9), min_size=2, max_size=2), st.booleans())
def test_other_units_leave_predictions_unchanged(powers, geomean):
    rng = np.random.default_rng(0)
    x, n = np.exp(rng.uniform(0, 3, size=(30, 1))), np.exp(rng.uniform(0, 3, size=30))
    error = (5 * x[:, 0] ** -0.4 + 1) * np.exp(0.01 * rng.standard_normal(30)) + 3 * n**-0.5
    ten = 10.0 ** np.array(powers)
    plain = TINY.replace(form="add", units="geomean" if geomean else {"x1": 1.0, "n": 1.0})
    scaled = plain.replace(units="geomean" if geomean else {"x1": ten[0], "n": ten[1]})
    one = fit(table_of(error, x, n), plain).predict(x, n)
    other = fit(table_of(error, x * ten[0], n * ten[1]), scaled).predict(x * ten[0], n * ten[1])
    np.testing.assert_allclose(other, one, rtol=1e-6)


def test_left_out_rows_have_no_say(noisy):
    rows = noisy.column("sweep") == "star"
    part = fit(noisy, TINY, rows=rows)
    spoiled = synthetic_table("add-interact", PAPER_POINTS, noise=0.01)
    spoiled.error[~rows] = 1.0
    spoiled.x[~rows] *= 3.0
    same = fit(spoiled, TINY, rows=rows)
    np.testing.assert_array_equal(part.theta, same.theta)
    assert part.num_runs == 39


def test_many_fits_at_once_are_the_fits_alone(noisy):
    star = noisy.select(sweep="star")
    problems = [(noisy, None), (noisy, noisy.column("sweep") == "star"), (star, None)]
    calls = []
    laws = fit_many(problems, TINY, on_progress=lambda done, total: calls.append((done, total)))
    for (table, rows), law in zip(problems, laws, strict=True):
        alone = fit(table, TINY, rows=rows)
        if len(table) == len(noisy):
            np.testing.assert_array_equal(law.theta, alone.theta)
        else:  # padded: sums of other lengths round otherwise
            np.testing.assert_allclose(
                law.predict(table.x, table.n), alone.predict(table.x, table.n), rtol=1e-6
            )
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1] > 0
    assert fit_many([], TINY) == []
    with pytest.raises(ValueError, match="as many factors"):
        fit_many([(noisy, None), (table_of([1.0, 2.0], [[1.0], [2.0]]), None)], TINY)


# --- options ---


def test_objective_is_the_mean_weighted_squared_log_residual(noisy):
    weights = np.linspace(0.0, 2.0, len(noisy))
    table = table_of(noisy.error, noisy.x, noisy.n, weights=weights)
    law = fit(table, TINY.replace(resampling="none"))
    miss = np.log(law.predict(table.x, table.n)) - np.log(table.error)
    np.testing.assert_allclose(law.objective, np.average(miss**2, weights=weights), rtol=1e-9)
    linear = fit(table, TINY.replace(resampling="none", space="linear"))
    miss = linear.predict(table.x, table.n) - table.error
    np.testing.assert_allclose(linear.objective, np.average(miss**2, weights=weights), rtol=1e-9)


def test_exponents_stay_within_their_bounds(noisy):
    law = fit(noisy, SMALL.replace(exponent_cap=0.3))
    exponents = law.theta[:, law.is_exponent]
    assert (np.abs(exponents) <= 0.3).all()
    assert law.at_cap.sum() > 0
    assert "at its bound in" in law.report()
    bounded = fit(noisy, TINY.replace(bound_exponents=True))
    assert (bounded.theta[:, bounded.is_exponent] >= 0).all()


def test_huber_shrugs_off_what_squares_cannot():
    table = synthetic_table("mult", PAPER_POINTS, noise=0.002)
    clean = table.error.copy()
    table.error[::17] *= 1.5
    squares = fit(table, TINY).predict(table.x, table.n)
    huber = fit(table, TINY.replace(loss="huber", huber_delta=0.005)).predict(table.x, table.n)
    assert np.abs(huber / clean - 1).max() < 0.01 < np.abs(squares / clean - 1).max()


@pytest.mark.parametrize("kind", ["stratified", "wild", "bayesian"])
def test_resampling_modes_spread_like_the_iid_bootstrap_and_lose_no_level(noisy, kind):
    star = noisy.select(sweep="star")
    config = FitConfig(form="mult", resamples=60, starts=8)
    iid, other = fit(star, config), fit(star, config.replace(resampling=kind))
    assert iid.lost_levels > 0
    assert "stratified" in iid.report()
    assert other.lost_levels == 0
    x, n = star.x[5], 6e5
    widths = [np.ptp(law.quantiles(x, n, [0.1, 0.9])) for law in (iid, other)]
    assert 0.4 < widths[1] / widths[0] < 2.0


def test_no_resampling_is_the_fit_to_all_runs(noisy):
    law = fit(noisy, TINY.replace(resampling="none"))
    assert len(law.theta) == 1
    np.testing.assert_array_equal(law.theta, law.whole.theta)
    low, high = law.interval(noisy.x, noisy.n)
    np.testing.assert_array_equal(low, high)


def test_a_law_without_n(noisy):
    table = table_of(noisy.error[:39], noisy.x[:39, :2])
    law = fit(table, TINY.replace(form="add"))
    assert law.predict([1e9, 4.0]).shape == ()
    with pytest.raises(ValueError, match="this law has no n"):
        law.predict([1e9, 4.0], 1e6)
    with pytest.raises(ValueError, match="no examples column; forms without n: mult, add, .*li"):
        fit(table, TINY.replace(form="add-interact"))


# --- predictions ---


def test_grid_members_and_quantiles_agree_with_predict(noisy, law):
    x, n = noisy.x[:5], np.array([3e5, 2e6])
    grid = law.predict_grid(x, n)
    np.testing.assert_allclose(grid, law.predict(x[:, None], n), rtol=1e-12)
    members = law.predict_members(x[:, None], n)
    assert members.shape == (7, 5, 2)
    np.testing.assert_allclose(np.median(members, axis=0), grid, rtol=1e-12)
    low, high = law.interval(x[:, None], n, level=0.8)
    assert ((low <= grid) & (grid <= high)).all()
    np.testing.assert_allclose(
        law.quantiles(x[:, None], n, [0.1, 0.9]), np.quantile(members, [0.1, 0.9], axis=0)
    )
    assert law.predict(x[0], 1e6).shape == ()
    many = np.tile(x, (1000, 1))
    np.testing.assert_array_equal(law.predict(many, 1e6)[-5:], law.predict(x, 1e6))
    mean = fit(noisy, SMALL.replace(aggregate="mean")).predict(x[:, None], n)
    np.testing.assert_allclose(mean, members.mean(axis=0), rtol=1e-12)


@pytest.mark.slow(reason="60 members, half of them without bounds")
def test_with_free_exponents_the_mean_breaks_and_the_median_does_not():
    """Table 9. A resample that lost its runs between two levels cannot tell a slope from a step: a
    term with an exponent of 30 fits its own runs as well as any, and is off by millions elsewhere.
    """
    table = synthetic_table("add-interact", PAPER_POINTS, noise=0.01)
    star = table.where("sweep", "star")
    config = FitConfig(exponent_cap=None, resamples=30, starts=20)
    law = fit(table, config, rows=star)
    x, n, error = table.x[~star], table.n[~star], table.error[~star]
    members_BR = law.predict_members(x, n)
    mean, median = members_BR.mean(axis=0), np.median(members_BR, axis=0)
    assert np.mean((mean - error) ** 2) > 1e4
    assert np.mean((median - error) ** 2) < 4
    steep = np.abs(law.theta * law.is_exponent).max(axis=1) > 10
    wild = (np.abs(members_BR - error) > 100).any(axis=1)
    assert 0 < wild.sum() < 15
    assert (wild <= steep).all()
    assert np.median(law.objective[wild]) < 1.5 * np.median(law.objective[~wild])
    calm = members_BR[~wild].mean(axis=0)
    assert np.mean((calm - error) ** 2) < 4
    capped = fit(table, config.replace(exponent_cap=4.0), rows=star)
    assert (np.abs(capped.predict_members(x, n) - error) > 100).any(axis=1).sum() < wild.sum()


def test_bad_questions_are_refused(law):
    for question, message in (
        (dict(x=[1e9, 4.0], n=1e6), "needs the factors lm_params, num_frames, tokens_per_frame"),
        (dict(x=1e9, n=1e6), "got a single number"),
        (dict(x=[1e9, 4.0, 9.0]), "this law needs n, the num_examples"),
        (dict(x=[1e9, -4.0, 9.0], n=1e6), "num_frames must be positive, got -4"),
    ):
        with pytest.raises(ValueError, match=message):
            law.predict(**question)
    with pytest.raises(ValueError, match="between 0 and 1"):
        law.interval([1e9, 4.0, 9.0], 1e6, level=90)
    with pytest.raises(ValueError, match="between 0 and 1"):
        law.quantiles([1e9, 4.0, 9.0], 1e6, [50])


def test_extrapolation_is_known(law):
    x = np.array([[7.5e9, 4.0, 196.0], [7.5e10, 4.0, 196.0]])
    assert law.extrapolates(x, 1e6).tolist() == [False, True]
    assert law.extrapolates(x[0], [1e6, 1e7]).tolist() == [False, True]


# --- the report and the file ---


def test_the_report_tells_what_was_done_and_how_far_to_trust_it(law):
    text = law.report()
    for part in (
        "add-interact, 15 parameters, of acc",
        "88 from rows",
        "7 resamples (iid), median",
        "40 starts (coefficient), lm, seed 0",
        "not determined by the data",
        "of the starts reach the optimum",
        "lm_params 2.8e+09",
        "beyond that a prediction extrapolates",
    ):
        assert part in text, part
    names = [row[0] for row in law.parameter_rows()]
    assert names == list(law.parameters)
    d = next(row for row in law.parameter_rows() if row[0] == "d")
    assert d[3] <= d[2] <= d[4]
    assert d[5] == ""  # the data determine it


def test_what_the_runs_do_not_determine_is_flagged(noisy):
    one_level = noisy.take(noisy.x[:, 0] == 7.5e9)
    law = fit(one_level, TINY.replace(form="add", resamples=4, starts=15))
    notes = {row[0]: row[5] for row in law.parameter_rows()}
    assert "not determined" in notes["a_N"]
    assert "not determined" not in notes["d"]
    few = fit(noisy.take(np.arange(8)), TINY.replace(form="add"))
    assert "no more runs than parameters" in few.report()
    assert np.isnan(few.aicc)


def test_save_and_load_are_exact(tmp_path, noisy, law):
    path = law.save(tmp_path / "law")
    loaded = BaggedFit.load(tmp_path / "law")
    np.testing.assert_array_equal(loaded.predict(noisy.x, noisy.n), law.predict(noisy.x, noisy.n))
    assert loaded.config == law.config
    assert loaded.report() == law.report()
    before = path.read_bytes()
    loaded.save(tmp_path / "law")
    assert path.read_bytes() == before


def test_the_file_is_enough_to_predict_and_to_audit(tmp_path, noisy, law):
    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    text = law.save(tmp_path).read_text()
    fields = json.loads(text, parse_constant=no_constant)
    assert len(fields["members"]) == 7
    assert {"theta", "objective", "status"} <= fields["members"][0].keys()
    assert fields["members"][0]["status"] == "converged"
    assert fields["settings"]["seed"] == 0
    assert fields["data"]["sha256"] == law.runs.sha256
    names = [parameter["name"] for parameter in fields["parameters"]]
    theta = dict(zip(names, fields["members"][2]["theta"], strict=True))
    x, n = np.array([2.8e9, 8.0, 36.0]), 5e5
    nu = n / fields["units"]["num_examples"]
    error = np.exp(theta["epsilon"]) + np.exp(theta["xi"]) * nu ** -theta["d"]
    for value, column, label in zip(x, fields["factors"], "NTV", strict=True):
        u = value / fields["units"][column]
        error += np.exp(theta[f"alpha_{label}"]) * u ** -theta[f"a_{label}"]
        error += np.exp(theta[f"beta_{label}"]) * u ** theta[f"b_{label}"] * nu ** -theta["d"]
    np.testing.assert_allclose(law.predict_members(x, n)[2], error, rtol=1e-9)


def test_a_failed_member_is_kept_and_counted(tmp_path, law, noisy):
    spoiled = law.bag._replace(theta=law.theta.copy(), status=law.status.copy())
    spoiled.theta[3], spoiled.status[3] = np.nan, 2
    broken = dataclasses.replace(law, bag=spoiled)
    assert broken.failures == 1
    rest = np.delete(law.predict_members(noisy.x, noisy.n), 3, axis=0)
    np.testing.assert_allclose(broken.predict(noisy.x, noisy.n), np.median(rest, axis=0))
    assert "1 failed" in broken.report()
    broken.save(tmp_path)
    loaded = BaggedFit.load(tmp_path)
    assert loaded.failures == 1
    np.testing.assert_array_equal(loaded.theta, broken.theta)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:400], "not a whole fit"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "not a fit of format 2 but 1"),
        (lambda text: text.replace('"scale": 100.0', '"scale": 1.0'), "changed since it was"),
        (lambda text: text.replace('"objective": ', '"objective": 1', 1), "changed since it was"),
        (lambda text: "\x00\x01", "not a whole fit"),
    ],
)
def test_a_law_that_was_changed_is_refused(law, tmp_path, damage, message):
    path = law.save(tmp_path)
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(ValueError, match=message):
        BaggedFit.load(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="it holds no text"):
        BaggedFit.load(tmp_path)


def test_lost_levels_are_counted_for_every_column(noisy):
    star = noisy.select(sweep="star")
    law = fit(star, FitConfig(form="mult", resamples=40, starts=4))
    assert list(law.lost) == ["lm_params", "num_frames", "tokens_per_frame", "num_examples"]
    assert law.lost["num_examples"] == 0 < law.lost["lm_params"]
    assert law.lost_levels == law.lost[law.level_factor]


def test_strata_of_single_runs_cannot_be_resampled():
    x = np.array([[1.0], [2.0], [4.0], [8.0]])
    table = table_of(30 * x[:, 0] ** -0.2, x)
    with pytest.raises(ValueError, match="each holds a single run; 'wild' and 'bayesian'"):
        fit(table, TINY.replace(form="li", resampling="stratified"))


def test_a_form_without_n_takes_none(noisy):
    with pytest.raises(ValueError, match="form 'li' has no number of examples"):
        fit(noisy, TINY.replace(form="li"))


def test_a_file_that_is_no_fit_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fit\.json: no such file"):
        BaggedFit.load(tmp_path)
    (tmp_path / "fit.json").write_text("{}")
    with pytest.raises(ValueError, match=r"fit\.json: not a fit of format 2 but None"):
        BaggedFit.load(tmp_path)


# --- bad data and options ---


def test_bad_tables_are_refused(noisy):
    two = synthetic_table("mult", PAPER_POINTS[:5])
    two.metric[:2] = "f1x"
    with pytest.raises(ValueError, match="one metric"):
        fit(two, TINY)
    perfect = synthetic_table("mult", PAPER_POINTS)
    perfect.error[3] = 0.0
    with pytest.raises(
        ValueError, match=f"{perfect.run_id[3]}' has error 0, a score of 100, which has no log"
    ):
        fit(perfect, TINY)
    assert fit(perfect, TINY.replace(space="linear")).failures == 0
    with pytest.raises(ValueError, match="mask of 88 runs"):
        fit(noisy, TINY, rows=np.zeros(88, bool))
    with pytest.raises(ValueError, match=r"units of 'lm_parms' \(the nearest is 'lm_params'\)"):
        fit(noisy, TINY.replace(units={"lm_parms": 2.0}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregate": "mode"}, "aggregate must be one of median, mean; got 'mode'"),
        ({"starts": 0}, "starts must be an integer >= 1, got 0"),
        ({"resamples": 2.5}, "resamples must be an integer"),
        ({"exponent_cap": -1.0}, "exponent_cap must be a positive number or None"),
        ({"huber_delta": float("nan")}, "huber_delta must be a positive number, got nan"),
        ({"solver": "adam"}, "solver must be one of lm, lbfgs"),
        ({"free_floor": True}, "free_floor needs space='linear'"),
        ({"bound_exponents": 1}, "bound_exponents must be True or False"),
        ({"units": "metric"}, "units must be None, 'geomean' or a mapping"),
        ({"units": {"n": 0}}, r"units\['n'\] must be a positive number, got 0"),
    ],
)
def test_bad_options_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**change)


def test_options_survive_json():
    config = FitConfig(units={"n": 1e6, "a": 2}, exponent_cap=None, resampling="wild")
    assert FitConfig(**json.loads(json.dumps(config.to_dict()))) == config


def clustered():
    """The twin's runs, every other one much noisier, with a label of every fourth. Synthetic."""
    table = synthetic_table("add", PAPER_POINTS)
    spread = np.where(np.arange(len(table)) % 2, 0.02, 2.0)
    error = table.error + spread * np.random.default_rng(0).standard_normal(len(table))
    label = np.array([f"seed {i // 4}" for i in range(len(table))])
    return dataclasses.replace(table, error=error, noise=spread, cluster=label)


@pytest.mark.parametrize("resampling", ["iid", "stratified", "wild", "bayesian"])
def test_clusters_and_noise_are_fitted_saved_and_read_back(resampling, tmp_path):
    table = clustered()
    config = FitConfig(form="add", resamples=6, starts=8, resampling=resampling)
    law = fit(table, config)
    # A run's noise and its weight: the training's share is the same for all.
    assert law.runs.weights[1] > law.runs.weights[0] > 0
    assert law.runs.weights.mean() == pytest.approx(1)
    assert np.isfinite(law.scatter).all()
    law.save(tmp_path)
    again = BaggedFit.load(tmp_path)
    np.testing.assert_array_equal(again.runs.noise, table.noise)
    assert again.runs.cluster.tolist() == table.cluster.tolist()
    assert again.scatter == law.scatter
    plain = fit(dataclasses.replace(table, noise=None, cluster=None), config)
    assert not np.allclose(plain.theta, law.theta)


def test_runs_of_a_single_cluster_cannot_be_resampled():
    table = clustered()
    with pytest.raises(ValueError, match="the 4 runs to fit are of one cluster"):
        fit(table, FitConfig(form="add", resamples=2, starts=4), rows=table.cluster == "seed 0")
