"""The installed LMMs-Eval, end to end: our adapter by name and as an instance, beside the native
runner on the same questions. `make test-lmms` gives it an environment of its own.
"""

import importlib.util
import json
import os
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lmms import miniatures
from tests.vvlm_jax.eval.fake_judge import serving
from vvlm_jax.eval import answers, grading, runner, scores
from vvlm_jax.eval.judge import Judge, JudgeConfig

pytestmark = pytest.mark.lmms

MAX_NEW_TOKENS = 1
"""Of the tasks that set no length: the last of several letters would count."""
LENGTHS = {"videomme": 16, "nextqa_mc_test": MAX_NEW_TOKENS, "activitynetqa": 64}
MVBENCH = 16
LIKELY = "mvbench_action_count"
"""Whose letters have likelihoods, too."""

AS_INSTANCE = """
import json, sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from vvlm_jax import VideoVLM
from vvlm_jax.eval.lmms import VvlmJax
folder, include, out, *tasks = sys.argv[1:]
lm = VvlmJax(VideoVLM.load(folder), batch_size=2, max_new_tokens=1)
tasks_known = TaskManager(include_path=include, model_name="vvlm_jax")
found = simple_evaluate(model=lm, tasks=tasks, task_manager=tasks_known, bootstrap_iters=0)
samples = {
    t: [[s["doc_id"], s["filtered_resps"]] for s in rows] for t, rows in found["samples"].items()
}
json.dump({"results": found["results"], "samples": samples}, open(out, "w"), default=str)
"""


PARSERS = """
import json, sys
from lmms_eval.tasks.longvideobench.utils import longvideobench_process_results
from lmms_eval.tasks.mvbench.utils import mcq_acc
from lmms_eval.tasks.nextqa.utils import parse_multi_choice_response
from lmms_eval.tasks.perceptiontest.val.utils import perceptiontest_val_process_results_mc
from lmms_eval.tasks.videomme.utils import extract_characters_regex
replies = json.load(open(sys.argv[1]))
texts = {a: "qqqqqq " + a for a in "ABCD"}
lvb = {f"option{i}": a for i, a in enumerate([*texts.values(), "N/A"])}
lvb |= dict(id=0, duration_group=0, question_category=0, correct_choice=0)
pt = dict(video_name="", question="", answer_id=0)
print(json.dumps({
    "videomme": [extract_characters_regex(r) for r in replies],
    "nextqa": [parse_multi_choice_response(r, list("ABCD"), texts) for r in replies],
    "mvbench": [next((a for a in "ABCD" if mcq_acc(a, r)), None) for r in replies],
    "longvideobench": [
        longvideobench_process_results(lvb, [r])["lvb_acc"]["parsed_pred"] for r in replies
    ],
    "perceptiontest": [
        "ABCD"[perceptiontest_val_process_results_mc(pt, [r])["accuracy"]["pred_id"]]
        for r in replies
    ],
}))
"""


@pytest.fixture(scope="module")
def judge():
    """Yield a judge on this machine that grades A and C as right."""

    def script(body, number):
        asked = body["messages"][-1]["content"]
        mark = "Predicted Answer: " if "Predicted Answer: " in asked else "Model's answer: "
        good = asked.split(mark)[1][:1] in "AC"
        return str({"pred": "yes" if good else "no", "score": 4 if good else 1})

    with serving(script) as (server, url):
        yield url


@pytest.fixture(scope="module")
def native(letters_model, judge, tmp_path_factory):
    """Return (folder, questions of each task, {task: {id: prediction}}, {(task, metric): score});
    of four answers three are right.
    """
    from vvlm_jax import VideoVLM

    folder = tmp_path_factory.mktemp("mini")
    questions = miniatures.write(folder)
    vlm = VideoVLM.load(letters_model)
    replies, measured = {}, []

    def ask(task, name):
        file = folder / name / "predictions.jsonl"
        length = LENGTHS.get(task, MVBENCH)
        rows = questions[task]
        runner.evaluate(
            vlm, rows, file, media_root=folder / "hf", max_new_tokens=length,
            likelihood=task == LIKELY,
        )  # fmt: skip
        return runner.read_predictions(file)

    for task, rows in questions.items():
        before = ask(task, f"first-{task}")
        for i, q in enumerate(rows):
            if "options" in q:
                letter = answers.parse_letter(before[q["id"]]["reply"], 4)
                wrong = "ABCD"[("ABCD".index(letter) + 1) % 4]
                q["answer"] = letter if i % 4 else wrong  # the first of four is wrong
        found = ask(task, task)
        replies[task] = found
        grader = Judge(JudgeConfig(judge, key_env="", per_minute=6e4), folder / "judge")
        verdicts = grading.grade(rows, found, grader, folder / f"{task}.verdicts.jsonl")
        measured += scores.measure(rows, found, verdicts or None)
    return folder, questions, replies, {(s.task, s.metric): s.score for s in measured}


@pytest.fixture(scope="module")
def lmms(native, judge):
    """Return lmms(program, arguments) -> output of a Python program on the miniatures."""
    installed = Path(importlib.util.find_spec("lmms_eval").origin).parent
    folder, questions, _, _ = native
    include = miniatures.write_tasks(folder, questions, installed)

    def run(*arguments):
        env = {
            **os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1", "OPENAI_API_URL": f"{judge}/chat/completions",
            "OPENAI_API_KEY": "sk-mini", "NO_PROXY": "*", "JAX_PLATFORMS": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, *arguments], env=env, cwd=folder, capture_output=True, text=True,
            timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    return run, include


def check(results, samples, native):
    """Compare replies and scores with the native runner's."""
    _, questions, predictions, measured = native
    replies = {task: {id: p["reply"] for id, p in of.items()} for task, of in predictions.items()}
    for task, rows in questions.items():
        got = {int(doc): first(reply) for doc, reply in samples[f"mini_{task}"]}
        assert [got[i] for i in range(len(rows))] == list(replies[task].values()), task
    assert len({r for of in replies.values() for r in of.values()}) > 3

    def result(task, metric):
        return float(results[f"mini_{task}"][f"{metric},none"])

    letters = {task: measured[task, "letters"] for task in questions if task != "activitynetqa"}
    assert set(letters.values()) == {75.0}
    assert result("videomme", "videomme_perception_score") == letters["videomme"]
    for name in ("mvbench_action_count", "mvbench_episodic_reasoning"):
        assert result(name, "mvbench_accuracy") == letters[name]
    assert 100 * result("nextqa_mc_test", "exact_match") == letters["nextqa_mc_test"]
    judged = measured["activitynetqa", "judge"], measured["activitynetqa", "judge_score"]
    assert result("activitynetqa", "gpt_eval_accuracy") == pytest.approx(judged[0])
    assert 20 * result("activitynetqa", "gpt_eval_score") == pytest.approx(judged[1])


def first(reply):
    return reply if isinstance(reply, str) else first(reply[0])


AGREEING = (
    "{}", "{}.", "({})", "{}. {}", "({}) {}", "{}: {}", "{}\n", " {} ", "The answer is ({}).",
    "the correct answer is ({}) {}", "({})\n{}",
)  # fmt: skip
"""Forms of replies in which the native parser and the five tasks' parsers find the same letter."""
NOT_AGREEING = {"nextqa": "{}: {}"}
"""What a task does not read: its letter is then drawn."""


def test_letters_are_those_that_lmms_eval_finds(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    rng = random.Random(0)
    replies = []
    for _ in range(3000):
        letter = rng.choice("ABCD")
        words = " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(3))
        form = rng.choice(AGREEING)
        replies.append((letter, form, form.format(letter, words).strip()))  # as the adapter does
    assert len(set(replies)) > 1000
    file = tmp_path / "replies.json"
    file.write_text(json.dumps([reply for *_, reply in replies]))
    done = subprocess.run(
        [sys.executable, "-c", PARSERS, str(file)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    mine = [answers.parse_letter(reply, 4) for *_, reply in replies]
    assert mine == [letter for letter, *_ in replies]
    assert len(found) == 5
    for task, letters in found.items():
        pairs = zip(replies, mine, letters, strict=True)
        differ = {form for (_, form, _), a, b in pairs if a != b}
        assert differ == {NOT_AGREEING[task]} if task in NOT_AGREEING else not differ, task


def test_by_name(native, lmms, letters_model, tmp_path):
    run, include = lmms
    tasks = ",".join(f"mini_{task}" for task in miniatures.TASKS)
    kept = tmp_path / "replies.jsonl"
    run(
        "-m", "lmms_eval", "--model", "vvlm_jax", "--tasks", tasks, "--include_path", str(include),
        "--model_args", f"pretrained={letters_model},max_new_tokens=1,replies={kept}",
        "--batch_size", "2", "--log_samples", "--output_path", str(tmp_path / "out"),
    )  # fmt: skip
    [file] = (tmp_path / "out").rglob("*_results.json")
    samples = {}
    for log in (tmp_path / "out").rglob("*_samples_*.jsonl"):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        samples[log.stem.split("_samples_")[1]] = [
            (row["doc_id"], row["filtered_resps"]) for row in rows
        ]
    check(json.loads(file.read_text())["results"], samples, native)
    assert len(kept.read_text().splitlines()) == sum(map(len, native[1].values()))


def test_as_an_instance(native, lmms, letters_model, tmp_path):
    run, include = lmms
    tasks = ["mini_likely", *(f"mini_{task}" for task in miniatures.TASKS)]
    out = tmp_path / "found.json"
    run("-c", AS_INSTANCE, str(letters_model), str(include), str(out), *tasks)
    found = json.loads(out.read_text())
    check(found["results"], found["samples"], native)
    _, questions, predictions, measured = native
    for (_, losses), q in zip(found["samples"]["mini_likely"], questions[LIKELY], strict=True):
        mine = predictions[LIKELY][q["id"]]
        logprobs = pytest.approx(list(mine["logprobs"].values()), abs=1e-3)
        assert [-loss for loss, _ in losses] == logprobs
        assert "ABCD"[min(range(4), key=lambda i: losses[i][0])] == mine["likeliest"]
    acc = float(found["results"]["mini_likely"]["acc,none"])
    assert 100 * acc == measured[LIKELY, "likelihood"]
