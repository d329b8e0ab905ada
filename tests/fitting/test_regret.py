"""Regret in pairs: against a small case done by hand, and coverage on simulated runs."""

import numpy as np
import pytest

from fitting.regret import (
    CONFIRMED,
    NOT_RESOLVED,
    REFUTED,
    PairedRegret,
    outcome,
    paired_regret,
    pooled_noise,
)


def test_errors_are_means_over_tasks_and_the_regret_their_difference():
    correct = np.array([[[1, 1, 0, 1], [1, 0, 0, 1]], [[1, 1, 1, 0], [1, 1, 0, 0]]])
    found = paired_regret(correct, ["a", "a", "a", "b"], [0, 1, 2, 2])
    by_hand = [[100 / 6, 200 / 6], [50.0, 50 + 100 / 6]]
    np.testing.assert_allclose(found.error, by_hand)
    np.testing.assert_allclose(found.regret, [-100 / 3])
    assert found.rank == 1
    # Both runs of a pair move alike, so nothing is left for the noise of runs.
    assert found.run_sd == pytest.approx(0, abs=1e-9)


def test_clusters_count_once():
    rng = np.random.default_rng(0)
    of_video = rng.random((3, 1, 50)) < 0.6  # a configuration knows a video or not, mostly
    once = (of_video ^ (rng.random((3, 2, 50)) < 0.1)).astype(float)
    args = ["t"] * 50, range(50)
    alone = paired_regret(once, *args)
    repeated = paired_regret(once.repeat(4, axis=2), ["t"] * 200, np.repeat(range(50), 4))
    np.testing.assert_allclose(repeated.stderr, alone.stderr)
    np.testing.assert_allclose(repeated.low_together, alone.low_together)
    as_if_new = paired_regret(once.repeat(4, axis=2), ["t"] * 200, range(200))
    assert (as_if_new.stderr < alone.stderr).all()


def simulated(rng, noise_C, *, tasks=2, videos=80, seeds=3):
    """Return (correct [C, S, Q], task [Q], video [Q], true regret of 0 against the others [C - 1]).

    A run's skill varies by its seed, a video's difficulty is shared by all runs, by a configuration
    and a video, and by the questions about a video.
    """
    num = len(noise_C)
    level_C = rng.normal(0.6, 0.4, num)
    task_Q, video_Q = (
        np.repeat(range(tasks), 2 * videos),
        np.tile(np.repeat(range(videos), 2), tasks),
    )

    def chance(level, run, video, both):
        return 1 / (1 + np.exp(-(level + run + video + both)))

    many = 2000  # draws for the expected error of a configuration
    expected = [
        100 * (1 - chance(level, noise * rng.standard_normal(many), rng.standard_normal(many),
                          0.5 * rng.standard_normal(many)).mean())
        for level, noise in zip(level_C, noise_C, strict=True)
    ]  # fmt: skip
    run_CS = noise_C[:, None] * rng.standard_normal((num, seeds)) + 0.1 * rng.standard_normal(seeds)
    video_V = rng.standard_normal(videos)
    both_CV = 0.5 * rng.standard_normal((num, videos))
    p_CSQ = chance(
        level_C[:, None, None], run_CS[..., None], video_V[video_Q], both_CV[:, None, video_Q]
    )
    correct = (rng.random(p_CSQ.shape) < p_CSQ).astype(float)
    return correct, task_Q, video_Q, expected[0] - np.array(expected[1:])


@pytest.mark.parametrize("noise", [[0.15] * 6, [0.0] * 6, [0.3, 0.1, 0.1, 0.1, 0.2, 0.1]])
def test_intervals_hold_their_share(noise):
    """Compare 90% intervals with the truth: a little short where x* varies three times as much."""
    rng, inside, above, together = np.random.default_rng(1), [], [], []
    for _ in range(200):
        correct, task, video, truth = simulated(rng, np.array(noise))
        found = paired_regret(correct, task, video)
        inside += list((found.low <= truth) & (truth <= found.high))
        above += list(truth > found.high)
        together.append((found.low_together <= truth).all())
    unequal = len(set(noise)) > 1
    assert (0.79 if unequal else 0.86) <= np.mean(inside) <= 0.95
    assert np.mean(above) <= (0.10 if unequal else 0.07)
    assert np.mean(together) >= (0.88 if unequal else 0.93)


def test_an_answer_that_is_missing_and_a_single_seed_are_refused():
    with pytest.raises(ValueError, match="missing"):
        paired_regret(np.full((2, 2, 3), np.nan), [0] * 3, range(3))
    with pytest.raises(ValueError, match="2 or more seeds"):
        paired_regret(np.ones((2, 1, 3)), [0] * 3, range(3))
    with pytest.raises(ValueError, match="2 or more videos"):
        paired_regret(np.ones((2, 2, 3)), [0] * 3, [7] * 3)


@pytest.mark.parametrize(
    ("high", "low_together", "said"),
    [
        ([0.4, -1.0], [-2.0, -3.0], CONFIRMED),
        ([0.5, 0.5], [-2.0, -3.0], CONFIRMED),
        ([0.6, -1.0], [-2.0, -3.0], NOT_RESOLVED),
        ([3.0, -1.0], [0.4, -3.0], NOT_RESOLVED),
        ([3.0, -1.0], [0.6, -3.0], REFUTED),
    ],
)
def test_the_outcome_follows_the_rule(high, low_together, said):
    blank = dict.fromkeys(PairedRegret._fields)
    found = PairedRegret(**blank | dict(high=np.array(high), low_together=np.array(low_together)))
    assert outcome(found, 0.5) == said


def test_noise_is_pooled_over_groups():
    found = pooled_noise([[1.0, 3.0], [10.0, 10.0, 13.0], [50.0]])
    assert (found.dof, found.groups) == (3, 2)
    assert found.sd == pytest.approx(((2 + 6) / 3) ** 0.5)
    assert found.low < found.sd < found.high
    rng, held = np.random.default_rng(0), []
    for _ in range(300):
        one = pooled_noise([rng.normal(m, 2.0, 3) for m in range(5)])
        held.append(one.low <= 2.0 <= one.high)
    assert 0.86 <= np.mean(held) <= 0.94
    assert np.isnan(pooled_noise([[1.0], [2.0]]).sd)
