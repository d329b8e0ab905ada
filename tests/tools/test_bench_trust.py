"""Tests of `tools.bench.bench_trust`: truths, what counts as a failure, bounds, resumption."""

import json

import numpy as np
import pytest

from fitting.sweeps import PAPER_DOMAIN
from tools.bench import bench_trust as bench
from tools.bench.truths import NOISE, POINTS, TRUTHS, make_table

ANSWER = dict(low=40.0, high=41.0, error=40.5, regret=0.0, impossible=False)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_table_is_the_truth_with_its_noise(name):
    table, truth = make_table(name, 3), TRUTHS[name]
    ripple = np.log(table.error / truth.error(table.x, table.n))
    assert len(table) == len(POINTS) == 88
    assert 0.5 * NOISE < ripple.std() < 2 * NOISE
    assert table.error.max() < 100
    assert truth.error(PAPER_DOMAIN.configurations(), 1e6).min() > 0
    np.testing.assert_array_equal(table.error, make_table(name, 3).error)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"regret": 1.1}, True),
        ({"error": 41.9}, False),  # outside, by less than the width
        ({"error": 42.1}, True),
        ({"error": 38.9}, True),
    ],
)
def test_what_fails(changes, expected):
    assert bench.failed(ANSWER | changes) is expected


def test_a_flag_is_a_verdict_or_an_impossible_answer():
    holds, doubtful = {"verdict": "holds"}, {"verdict": "doubtful"}
    assert not bench.is_flagged(holds, ANSWER)
    assert bench.is_flagged(doubtful, ANSWER)
    assert bench.is_flagged(holds, ANSWER | {"impossible": True})


def test_bounds_count_clusters_and_not_answers():
    """Answers of one table that agree are worth one; independent ones are worth themselves."""
    share, low, high = bench.clustered_share([7] * 10 + [0] * 10, [7] * 20)
    assert share == 0.5
    assert high - low == pytest.approx(0.40, abs=0.02)  # 20 answers
    alone = bench.clustered_share(np.tile([3, 4], 10), [7] * 20)
    assert alone[2] - alone[1] < 0.2
    nothing = bench.clustered_share([0] * 20, [7] * 20)
    assert nothing[:2] == (0.0, 0.0)
    assert 0.1 < nothing[2] < 0.2


def test_lines_that_a_stop_cut_short_are_done_again(tmp_path):
    task = bench.Task(truth="family", seed=1, form="add", resamples=2, starts=3)
    path = tmp_path / "trust.jsonl"
    path.write_text(json.dumps(task | {"verdict": "holds"}) + '\n{"truth": "fam')
    assert list(bench.read(path)) == [task.key]


def test_groups_differ_in_the_seed_alone():
    tasks = [
        bench.Task(truth=truth, seed=seed, form="add", resamples=2, starts=3)
        for seed in range(3)
        for truth in ("family", "cross")
    ]
    groups = bench.grouped(tasks, 2)
    assert [[task["seed"] for task in group] for group in groups] == [[0, 1], [0, 1], [2], [2]]
    assert all(len({task["truth"] for task in group}) == 1 for group in groups)
    assert sorted(task.key for group in groups for task in group) == sorted(t.key for t in tasks)
