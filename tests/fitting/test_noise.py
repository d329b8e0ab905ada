"""The parts of the scatter of runs, against data whose parts are known."""

import numpy as np
import pytest

from fitting.noise import scatter, weights_of
from fitting.runs import read_runs
from fitting.splits import leave_out_splits, random_folds


def residuals(noise, jacobian, weight):
    root = np.sqrt(weight)
    best = np.linalg.lstsq(root[:, None] * jacobian, root * noise, rcond=None)[0]
    return noise - jacobian @ best


def designs(count, runs, rng):
    return (np.c_[np.ones(runs), rng.standard_normal((runs, 5))] for _ in range(count))


@pytest.mark.parametrize("training", [0.0, 0.01])
def test_training_noise_is_what_the_evaluations_leave(training):
    rng = np.random.default_rng(0)
    known = np.where(np.arange(88) % 2, 0.05, 0.003)
    found = []
    for jacobian in designs(5, 88, rng):
        noise = known * rng.standard_normal(88) + training * rng.standard_normal(88)
        parts = scatter(residuals(noise, jacobian, 1 / (known**2 + 1e-4)), jacobian, known)
        assert parts.training >= 0
        found.append(parts)
    np.testing.assert_allclose(np.mean([p.training for p in found]), training**2, atol=2e-5)
    assert np.median([p.share for p in found]) == 1.0


def test_the_part_that_questions_share_is_no_scatter():
    rng = np.random.default_rng(1)
    known = np.where(np.arange(60) % 2, 0.05, 0.02)
    jacobian = next(designs(1, 60, rng))
    noise = 0.3 * known * rng.standard_normal(60) + 0.9 * known * rng.standard_normal()
    parts = scatter(residuals(noise, jacobian, np.ones(60)), jacobian, known)
    assert parts.share < 0.35
    assert parts.spread(known).max() < 0.03


def test_clusters_have_a_variance_of_their_own():
    rng = np.random.default_rng(2)
    unit = np.repeat(np.arange(14), 8)
    found = []
    for _ in range(4):
        jacobian = np.c_[np.ones(112), rng.standard_normal(14)[unit], rng.standard_normal(112)]
        noise = 0.02 * rng.standard_normal(14)[unit] + 0.005 * rng.standard_normal(112)
        parts = scatter(residuals(noise, jacobian, np.ones(112)), jacobian, cluster=unit)
        found.append([parts.training, parts.cluster])
    np.testing.assert_allclose(np.mean(found, axis=0), [0.005**2, 0.02**2], rtol=0.3)


def test_no_runs_to_spare_is_unknown_and_an_exact_fit_is_none():
    jacobian = np.eye(4)
    assert np.isnan(scatter(np.zeros(4), jacobian).training)
    assert scatter(np.zeros(4), jacobian[:, :2]).spread() == 0


def test_weights_are_inverse_variances_of_mean_one():
    rng = np.random.default_rng(3)
    known = np.array([0.05, 0.003, 0.05, 0.003] * 10)
    jacobian = np.ones((40, 1))
    parts = scatter(known * rng.standard_normal(40), jacobian, known)
    weight = weights_of(parts, known)
    assert weight.mean() == pytest.approx(1)
    variance = parts.training + known**2
    np.testing.assert_allclose(weight[0] / weight[1], variance[1] / variance[0])


# --- the columns ---


def table(tmp_path, noise, seeds=tuple("abcdefgh"), **options):
    """Eight rows of scores 40 to 75 with two more columns."""
    rows = [f"{2**i},{40 + 5 * i},{noise[i]},{seeds[i]}" for i in range(8)]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["size,score,se,seed", *rows]) + "\n")
    options = {"noise": "se"} | options
    return read_runs(path, factors=("size",), examples=None, **options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("0", "row 3 .*'se' is '0'; it must be a positive number of score points"),
        ("", "row 3 .*'se' is ''"),
        ("nan", "row 3 .*'se' is 'nan'"),
        ("-1", "row 3 .*'se' is '-1'"),
    ],
)
def test_noise_is_a_positive_number(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, [1, 1, bad, 1, 1, 1, 1, 1])


def test_noise_in_another_unit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'se': a noise of 50 \(median\) exceeds the spread of"):
        table(tmp_path, [50] * 8)
    path = tmp_path / "runs.csv"
    with pytest.raises(ValueError, match="weights follow from.* 'se'; leave 'score' out"):
        read_runs(path, factors=("size",), error="se", weights="score", noise="se")


def test_clusters_of_one_change_nothing_and_few_are_noted(tmp_path):
    alone = table(tmp_path, [1] * 8, cluster="seed")
    assert alone.cluster is None
    assert "every run has a seed of its own" in " ".join(alone.notes)
    pairs = table(tmp_path, [1] * 8, list("aabbccdd"), cluster="seed")
    assert pairs.cluster.tolist() == list("aabbccdd")
    assert "4 clusters of seed" in " ".join(pairs.notes)
    assert pairs.take(pairs.cluster == "a").cluster.tolist() == ["a", "a"]
    with pytest.raises(ValueError, match="'seed' puts all runs of score into one cluster"):
        table(tmp_path, [1] * 8, ["a"] * 8, cluster="seed")
    with pytest.raises(ValueError, match="'seed' is empty"):
        table(tmp_path, [1] * 8, ["a", "", *"bbccdd"], cluster="seed")


def test_no_split_parts_a_cluster(tmp_path):
    pairs = table(tmp_path, [1] * 8, list("aabbccdd"), cluster="seed")
    for split in (random_folds(pairs, 5), *leave_out_splits(pairs)):
        for train, test in zip(split.train, split.test, strict=True):
            assert not set(pairs.cluster[train]) & set(pairs.cluster[test])
    assert len(random_folds(pairs, 5).train) == 4
    crossed = table(tmp_path, [1] * 8, list("abababab"), cluster="seed")
    assert leave_out_splits(crossed) == ()  # each level shares its seeds with all others
    with pytest.raises(ValueError, match="2 clusters are too few for folds"):
        random_folds(crossed, 5)
