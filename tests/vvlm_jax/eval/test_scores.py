import contextlib
import json
import math

import numpy as np
import pytest
from scipy import stats

from tests.vvlm_jax.eval.fake_judge import reply_of_model, serving
from vvlm_jax.eval.grading import Verdict, grade
from vvlm_jax.eval.judge import Judge, JudgeConfig
from vvlm_jax.eval.scores import Score, average, interval, measure, overall

# Intervals.


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 20), (8, 10), (20, 20), (37, 100)])
def test_of_independent_questions_it_is_wilsons(right, n):
    values = [1] * right + [0] * (n - right)
    wilson = stats.binomtest(right, n).proportion_ci(method="wilson")
    # Between groups of one the variance is the sample's, which has n - 1 below.
    at = n if right in (0, n) else n - 1
    z2 = 1.959964**2
    p = right / n
    half = math.sqrt(z2 * (p * (1 - p) / at + z2 / 4 / at**2))
    found = interval(values, range(n))
    assert found[0] == p
    assert found[2:] == pytest.approx(
        (
            max(0, (p + z2 / 2 / at - half) / (1 + z2 / at)),
            min(1, (p + z2 / 2 / at + half) / (1 + z2 / at)),
        )
    )
    if right in (0, n):
        assert found[2:] == pytest.approx((wilson.low, wilson.high), abs=1e-6)
        assert found[1] == pytest.approx((wilson.high - wilson.low) / 2 / 1.959964, abs=1e-6)
    else:
        assert found[1] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_questions_that_repeat_one_another_tell_no_more_than_one():
    once = interval([1, 0, 1, 1, 0], list("abcde"))
    five_times = interval([1, 0, 1, 1, 0] * 5, list("abcde") * 5)
    assert five_times == pytest.approx(once)


def test_of_one_video_little_is_known():
    assert interval([1] * 50, ["a"] * 50) == interval([1], ["a"])


def test_it_stays_within_the_scale_and_around_the_mean():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(1, 12))
        values = rng.integers(0, 6, n) / 5
        p, error, low, high = interval(values, rng.integers(0, 4, n))
        assert 0 <= low <= p <= high <= 1
        assert 0 < error <= 0.5
        assert high > low or not 0 < p < 1 or len(set(values)) > 1


def test_of_nothing_it_is_nothing():
    assert all(map(math.isnan, interval([], [])))


def test_it_covers_the_truth_as_often_as_it_says():
    rng, inside, tries = np.random.default_rng(1), 0, 1500
    groups = np.repeat(np.arange(60), 5)
    for _ in range(tries):  # videos differ: a question's chance is its video's
        chance = np.repeat(rng.beta(1.4, 0.6, 60), 5)
        _, _, low, high = interval(rng.random(300) < chance, groups)
        inside += low <= 0.7 <= high
    assert 0.92 < inside / tries < 0.975


# Scores.

OPEN = dict(task="open", video="a", question="what ?", answer="red")
CHOICE = dict(task="choice", video="b", question="which ?", options=["x", "y"], answer="B")


def question(id, base=OPEN, **more):
    row = {**base, "id": id, **more}
    return {k: v for k, v in row.items() if v is not None}


def told(reply, correct, **more):
    return dict(reply=reply, correct=correct, **more)


QUESTIONS = [
    question("1"),
    question("2", video="c"),
    question("3", video="d", answer=None, references=["crimson", "dark red"]),
    question("4", video="e"),
    question("5", CHOICE),
    question("6", CHOICE, video="f", answer="A"),
]
PREDICTIONS = {
    "1": told("red", True),
    "2": told("The red.", True),
    "3": told(" dark red\n", True),
    "4": dict(error="broken"),
    "5": told("A", False, likeliest="B", logprobs={}),
    "6": told("A", True, likeliest="A", logprobs={}),
}


def by_name(found):
    return {(s.task, s.metric): s for s in found}


def test_every_metric_by_hand():
    verdicts = {"1": Verdict(True, 5.0), "2": None, "3": Verdict(False, 1.0)}
    found = by_name(measure(QUESTIONS, PREDICTIONS, verdicts))
    values = {name: (s.score, s.num_questions, s.left_out) for name, s in found.items()}
    assert values == {
        ("choice", "letters"): (50.0, 2, 0),
        ("choice", "likelihood"): (100.0, 2, 0),
        ("open", "normalised"): (100.0, 3, 1),
        ("open", "exact"): (pytest.approx(200 / 3), 3, 1),
        ("open", "judge"): (50.0, 2, 2),  # one video unreadable, one reply ungraded
        ("open", "judge_score"): (pytest.approx(60.0), 2, 2),
    }
    assert all(s.low < s.high for s in found.values())


def test_the_error_is_clustered_by_video():
    """The error sums residuals within each video, times G / (G - 1)."""
    values, videos = [1, 1, 0, 0, 0, 0, 1, 1], list("aabbccdd")
    off = {g: sum(v - 1 / 2 for v, h in zip(values, videos, strict=True) if h == g) for g in "abcd"}
    by_hand = math.sqrt(4 / 3 * sum(x**2 for x in off.values())) / 8
    assert interval(values, videos)[1] == pytest.approx(by_hand)
    assert by_hand > math.sqrt(1 / 2 * 1 / 2 / 8)  # more than that of independent questions


def test_a_task_of_both_kinds_of_questions_has_a_metric_over_all():
    mine = [{**q, "task": "both"} for q in QUESTIONS]
    verdicts = {"1": Verdict(True, 5.0), "2": None, "3": Verdict(False, 1.0)}
    mixed, ruled = measure(mine, PREDICTIONS, verdicts)[0], measure(mine, PREDICTIONS)[0]
    assert (ruled.metric, ruled.score, ruled.num_questions, ruled.left_out) == ("mixed", 80, 5, 1)
    assert (mixed.metric, mixed.score, mixed.num_questions, mixed.left_out) == ("mixed", 50, 4, 2)
    assert overall([ruled, *measure(mine, PREDICTIONS)]).score == 80


def test_an_average_has_an_error_where_all_its_scores_have():
    assert average([50.0, 70.0], [3.0, 4.0]) == (60.0, 2.5)
    for error in (None, math.nan):
        assert average([50.0, 70.0], [3.0, error]) == (60.0, None)


def test_the_average_is_of_each_tasks_main_metric():
    verdicts = {"1": Verdict(True, 5.0), "2": None, "3": Verdict(False, 1.0)}
    assert overall(measure(QUESTIONS, PREDICTIONS)).score == 75.0  # letters 50, normalised 100
    whole = overall(measure(QUESTIONS, PREDICTIONS, verdicts))
    assert (whole.score, whole.num_questions, whole.left_out) == (50.0, 4, 2)
    two = overall(
        [Score("a", "letters", 50, 6, 40, 62, 9, 0), Score("b", "letters", 70, 2.5, 67, 75, 9, 0)]
    )
    assert (two.score, two.score_se) == (60, pytest.approx(3.25))
    assert (two.score - two.low, two.high - two.score) == pytest.approx(
        (math.hypot(10, 3) / 2, math.hypot(12, 5) / 2)
    )


def test_a_task_of_which_nothing_could_be_read_has_no_score():
    (found, _) = measure(QUESTIONS[3:4], PREDICTIONS)
    assert math.isnan(found.score)
    assert (found.num_questions, found.left_out) == (0, 1)


# The judge.


def test_replies_are_graded_and_what_has_no_grade_is_told_apart(tmp_path, monkeypatch):
    def script(body, number):
        reply = reply_of_model(body)
        if reply == "red":
            return '{"correct": "yes", "score": 5}'
        return "I cannot say" if reply == "The red." else '{"correct": "no", "score": 1}'

    monkeypatch.setenv("no_proxy", "*")
    with contextlib.ExitStack() as stack:
        server, url = stack.enter_context(serving(script))
        judge = Judge(JudgeConfig(url, key_env="", per_minute=6e4), tmp_path)
        file = tmp_path / "verdicts.jsonl"
        verdicts = grade(QUESTIONS, PREDICTIONS, judge, file)
    assert verdicts == {"1": Verdict(True, 5.0), "2": None, "3": Verdict(False, 1.0)}
    assert len(server.seen) == 3
    third = next(b for _, b, _ in server.seen if "dark red" in b["messages"][1]["content"])
    assert "crimson / dark red" in third["messages"][1]["content"]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows[1] == dict(id="2", task="open", correct=None, score=None, judge="I cannot say")
    assert (rows[0]["correct"], rows[0]["score"]) == (True, 5.0)
