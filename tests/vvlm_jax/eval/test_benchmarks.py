import pytest

from vvlm_jax.config import ConfigError
from vvlm_jax.eval.benchmarks import TASKS, Result, select, with_average

# What LMMs-Eval would write, in its own ranges; the scores below are by hand.
RESULTS = {
    "video_dc499": {"gpt_eval_score,none": 2.5},
    "activitynetqa": {"gpt_eval_accuracy,none": 51.0, "gpt_eval_score,none": 3.3},
    "videochatgpt_gen": {
        "gpt_eval_score_correctness,none": 3.0,
        "gpt_eval_score_detailed_orientation,none": 2.0,
        "gpt_eval_score_context,none": 4.0,
    },
    "videochatgpt_temporal": {"gpt_eval_score_temporal,none": 2.5},
    "videochatgpt_consistency": {"gpt_eval_score_consistency,none": 3.5},
    "longvideobench_val_v": {"lvb_acc,none": 0.52},
    "perceptiontest_val_mc": {"accuracy,none": 0.6},
    "videomme": {"videomme_perception_score,none": 55.5},
    "nextqa_mc_test": {"exact_match,none": 0.75},
}
MVBENCH = [task for task, _ in TASKS[5].parts]
RESULTS |= {task: {"mvbench_accuracy,none": 40.0 + i} for i, task in enumerate(MVBENCH)}
BY_HAND = {
    "VDC": 50.0, "AQA": 51.0, "VCG": 60.0, "LVB": 52.0, "PT": 60.0, "MV": 49.5, "VMME": 55.5,
    "NQA": 75.0,
}  # fmt: skip


QUESTIONS = {part: 100 for task in TASKS for part in task.tasks}


def table(results):
    found = {}
    for task in TASKS:
        error = task.standard_error(results, QUESTIONS)
        found[task.name] = Result(task.score(results), error, {}, 100, 0, 0)
    return found


def test_the_eight_scores_and_their_mean():
    scores = {name: score for name, (score, _) in with_average(table(RESULTS)).items()}
    assert scores.pop("avg") == pytest.approx(453 / 8)
    assert scores == {name: pytest.approx(score) for name, score in BY_HAND.items()}


def test_standard_errors_are_those_of_shares():
    errors = {name: error for name, (_, error) in with_average(table(RESULTS)).items()}
    assert errors["VDC"] is errors["VCG"] is errors["avg"] is None  # grades of 0-5
    assert errors["PT"] == pytest.approx(100 * (0.6 * 0.4 / 100) ** 0.5, rel=0.01)
    assert errors["AQA"] == pytest.approx(100 * (0.51 * 0.49 / 100) ** 0.5, rel=0.01)
    assert errors["MV"] == pytest.approx(5 / 20**0.5, rel=0.02)  # twenty of 100 questions
    aqa, few = TASKS[1], dict(asked={"gpt_eval_accuracy": 100}, ungraded={"gpt_eval_accuracy": 75})
    assert aqa.standard_error(RESULTS, QUESTIONS, **few) > 1.9 * errors["AQA"]


def test_there_is_no_mean_of_fewer():
    found = {name: result for name, result in table(RESULTS).items() if name in ("PT", "VMME")}
    assert set(with_average(found)) == {"PT", "VMME"}


def test_what_has_no_grade_is_left_out():
    vdc, aqa, vcg, *_ = TASKS
    graded = dict(asked={"gpt_eval_score": 10}, ungraded={"gpt_eval_score": 2})
    assert vdc.score(RESULTS, **graded) == pytest.approx(50 * 10 / 8)  # its sum over 8
    metric = "gpt_eval_score_detailed_orientation"
    detail = dict(asked={m: 10 for _, m in vcg.parts}, ungraded={metric: 5})
    assert vcg.score(RESULTS, **detail) == pytest.approx((60 + 80 + 80 + 50 + 70) / 5)
    by_itself = dict(asked={"gpt_eval_accuracy": 10}, ungraded={"gpt_eval_accuracy": 2})
    assert aqa.score(RESULTS, **by_itself) == 51.0
    with pytest.raises(ValueError, match="VDC: the judge gave no grade for video_dc499"):
        vdc.score(RESULTS, asked={"gpt_eval_score": 2}, ungraded={"gpt_eval_score": 2})


def test_tasks_are_chosen_by_either_name_in_the_papers_order():
    assert [t.name for t in select(["videomme", "VDC", "VMME"])] == ["VDC", "VMME"]
    assert select(["paper"]) == select(["NQA", "paper"]) == list(TASKS)
    assert [t.name for t in TASKS if t.judged] == ["VDC", "AQA", "VCG"]


def test_mvbench_has_twenty_subtasks_and_videochatgpt_five_scores():
    assert len(set(MVBENCH)) == 20
    assert len(set(TASKS[2].parts)) == 5


def test_an_unknown_task_is_one_line_with_the_nearest():
    with pytest.raises(ConfigError, match="--tasks videome: no such task; .*videomme") as e:
        select(["videome"])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "PT: LMMs-Eval gave no number for perceptiontest_val_mc, accuracy"),
        ("N/A", "PT: LMMs-Eval gave no number"),
        (61.0, "accuracy × 100 is 6100, not 0–100"),
        (float("nan"), "is nan, not 0–100"),
    ],
)
def test_what_is_no_score_is_named(value, said):
    with pytest.raises(ValueError, match=said):
        table({**RESULTS, "perceptiontest_val_mc": {"accuracy,none": value}})


def test_a_subtask_that_is_missing_is_named():
    without = {k: v for k, v in RESULTS.items() if k != "mvbench_state_change"}
    with pytest.raises(ValueError, match="MV: LMMs-Eval gave no number for mvbench_state_change"):
        table(without)
