"""Resamples: what they draw from, their moments, what they lose; wild targets."""

import numpy as np
import pytest

from fitting.bootstrap import (
    freedom_of_clusters,
    inflation_of,
    lost_levels,
    resample_weights,
    wild_targets,
)
from tests.fitting.synthetic import PAPER_POINTS


def test_resamples_draw_only_from_their_rows_and_strata():
    rows = np.arange(12) < 9
    strata = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1])
    for kind in ("count", "dirichlet"):
        weights = resample_weights(12, 200, 0, rows=rows, strata=strata, kind=kind)
        assert (weights[:, 9:] == 0).all()
        np.testing.assert_allclose(weights[:, :3].sum(axis=1), 3)
        np.testing.assert_allclose(weights[:, 3:].sum(axis=1), 6)
    with pytest.raises(ValueError, match="at least one run"):
        resample_weights(3, 2, 0, rows=np.zeros(3, bool))


def test_counts_and_dirichlet_weights_have_their_moments():
    size, many = 20, 40_000
    counts = resample_weights(size, many, 0)
    assert (counts == np.round(counts)).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=0.03)
    np.testing.assert_allclose(counts.var(axis=0), 1 - 1 / size, rtol=0.05)  # multinomial
    bayesian = resample_weights(size, many, 0, kind="dirichlet")
    assert (bayesian > 0).all()
    np.testing.assert_allclose(bayesian.mean(axis=0), 1.0, atol=0.03)
    np.testing.assert_allclose(bayesian.var(axis=0), (size - 1) / (size + 1), rtol=0.05)
    pair = np.cov(bayesian[:, 0], bayesian[:, 1])[0, 1]
    assert abs(pair + 1 / (size + 1)) < 0.02


def test_iid_resamples_of_the_star_lose_a_language_model_size():
    levels = np.array([point.x[0] for point in PAPER_POINTS if point.sweep == "star"])
    assert len(levels) == 39
    iid = lost_levels(resample_weights(39, 4000, 0), levels)
    assert abs(iid.mean() - 0.085) < 0.015  # fitting.md: 8.5%
    for options in (dict(strata=levels), dict(kind="dirichlet")):
        assert not lost_levels(resample_weights(39, 500, 0, **options), levels).any()


def test_wild_targets_carry_the_noise_of_each_run():
    rng = np.random.default_rng(0)
    jacobian = np.c_[np.ones(30), np.linspace(-1, 1, 30)]
    noise = np.linspace(0.5, 1.5, 30) * rng.standard_normal(30)
    target = jacobian @ [2.0, 1.0] + noise
    weights = np.ones(30)
    weights[-1] = 0.0
    used = weights > 0
    best = np.linalg.lstsq(jacobian[used], target[used], rcond=None)[0]
    fitted = jacobian @ best
    wild = wild_targets(fitted, target, jacobian, weights, 20_000, 0)
    np.testing.assert_allclose(wild[:, used].mean(axis=0), fitted[used], atol=0.04)
    a = jacobian[used]
    leverage = np.diag(a @ np.linalg.inv(a.T @ a) @ a.T)
    hc2 = np.abs(target - fitted)[used] / np.sqrt(1 - leverage)
    np.testing.assert_allclose(np.abs(wild[:, used] - fitted[used]), np.tile(hc2, (20_000, 1)))
    assert (wild[:, ~used] == target[~used]).all()  # a run without weight keeps its own


def test_a_stratum_of_a_single_run_is_pooled_and_small_ones_keep_their_variance():
    strata = np.array([0, 0, 1, 2, 3, 4, 4, 4])  # three levels of one run each
    weights = resample_weights(8, 40_000, 0, strata=strata)
    for label in ((0, 1), (2, 3, 4), (5, 6, 7)):
        label = list(label)
        np.testing.assert_allclose(weights[:, label].sum(axis=1), len(label))
        # that of an unbiased estimate: m draws of m would give 1 - 1 / m
        np.testing.assert_allclose(weights[:, label].var(axis=0), 1.0, rtol=0.05)
    lone = resample_weights(5, 4_000, 0, strata=np.array([0, 0, 1, 1, 2]))
    assert lone[:, 4].std() > 0.5  # it joined another stratum


def test_clusters_are_drawn_whole():
    clusters = np.array(["a", "a", "b", "c", "c", "c", "d", "e"])
    for kind in ("count", "dirichlet"):
        weights = resample_weights(8, 20_000, 0, clusters=clusters, kind=kind)
        for label in np.unique(clusters):
            assert (np.ptp(weights[:, clusters == label], axis=1) == 0).all()
        firsts = weights[:, [0, 2, 3, 6, 7]]
        np.testing.assert_allclose(firsts.sum(axis=1), 5)
        np.testing.assert_allclose(firsts.var(axis=0), 1.0, rtol=0.05)
    # even clusters have runs in both strata, odd ones in the first; four make a stratum
    clusters = np.repeat(np.arange(8), 2)
    strata = np.array([0, 1, 0, 0] * 4)
    crossed = resample_weights(16, 500, 0, clusters=clusters, strata=strata)
    np.testing.assert_allclose(crossed[:, ::4].sum(axis=1), 4)
    few = resample_weights(12, 500, 0, clusters=clusters[:12], strata=strata[:12])
    assert few[:, ::4].sum(axis=1).std() > 0.5  # three each: one stratum


def test_wild_clusters_share_a_sign_and_hc2_is_its_case_of_one_run():
    rng = np.random.default_rng(0)
    jacobian = np.c_[np.ones(24), np.linspace(-1, 1, 24)]
    shared = np.repeat(np.arange(8), 3)
    target = jacobian @ [2.0, 1.0] + rng.standard_normal(8)[shared]
    fitted = jacobian @ np.linalg.lstsq(jacobian, target, rcond=None)[0]
    args = fitted, target, jacobian, np.ones(24), 500, 0
    moved = wild_targets(*args, shared) - fitted
    grown = moved / moved[:1]
    for g in range(8):
        assert (np.ptp(grown[:, shared == g], axis=1) < 1e-9).all()  # all +, or all -
        assert np.std(grown[:, shared == g]) > 0.9
    assert np.abs(moved).sum(axis=1).mean() > 1.05 * np.abs(target - fitted).sum()
    single = np.abs(wild_targets(*args, np.arange(24)) - fitted)
    ratio = single / np.abs(wild_targets(*args)[0] - fitted)
    np.testing.assert_allclose(ratio, np.repeat(ratio[:, :1], 24, axis=1))


def test_few_clusters_spread_as_a_t_variable_does():
    shared = np.repeat(np.arange(14), 8)
    size = np.log(np.arange(1.0, 15.0))
    within = np.tile(np.linspace(-1, 1, 8), 14)
    jacobian = np.c_[np.ones(112), size[shared], within]
    freedom, count = freedom_of_clusters(jacobian, np.ones(112), shared)
    assert count == 14
    assert freedom == pytest.approx(12)  # the mean and the size; `within` tells no two apart
    wider = (1.7823 / 1.6449) ** 2  # t with 12 degrees of freedom
    assert inflation_of(freedom, count, "count") == pytest.approx(wider, rel=1e-3)
    assert inflation_of(freedom, count, "dirichlet") == pytest.approx(wider * 14 / 12, rel=1e-3)
    many = dict(clusters=shared, inflation=1.3)
    for kind in ("count", "dirichlet"):
        weights = resample_weights(112, 20_000, 0, kind=kind, **many)[:, ::8]
        np.testing.assert_allclose(weights.var(axis=0), 1.3, rtol=0.06)
