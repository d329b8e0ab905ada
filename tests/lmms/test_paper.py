"""`vvlm evaluate --tasks paper`: the installed LMMs-Eval on miniatures of all eight benchmarks."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from tests.lmms import miniatures
from tests.vvlm_jax.eval.fake_judge import serving
from tools.common import die_in_one_line
from tools.evaluate import Args, main
from vvlm_jax.eval.benchmarks import TASKS
from vvlm_jax.eval.judge_server import GRADES

pytestmark = pytest.mark.lmms

ROOT = Path(__file__).parents[2]
KEY = "sk-paper-0123456789"
COUNT = 4


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return (HF_HOME, folder of task files): all eight, as LMMs-Eval lays them out."""
    folder = tmp_path_factory.mktemp("paper")
    installed = Path(importlib.util.find_spec("lmms_eval").origin).parent
    return folder / "hf", miniatures.write_paper(folder, installed, COUNT)


def grade(body, number):
    """Return the judge's reply; one in five has no grade."""
    asked = body["messages"][-1]["content"]
    if sum(asked.encode()) % 5 == 0:
        return "I would rather not."
    score = sum(asked.encode()) % 6
    if "'pred'" in asked:
        return str({"pred": "yes" if score > 2 else "no", "score": score})
    return f"```python\n{{'score': {score}}}\n```"  # which LMMs-Eval would make a 0


def expected(seen, metric, word):
    """Return a judged metric, 0–100, and how many grades are missing, from what the judge was
    asked.
    """
    said = {}
    for _, body, _ in seen:
        asked = body["messages"][-1]["content"]
        if f"only as {GRADES[metric]}" in asked and word in asked:
            said[asked] = grade(body, 0)
    graded = [text for text in said.values() if "{" in text]
    if metric == "gpt_eval_accuracy":
        return 100 * sum("yes" in text for text in graded) / len(graded), len(said) - len(graded)
    scores = [int(text.split("'score': ")[1][0]) for text in graded]
    return 20 * sum(scores) / len(scores), len(said) - len(graded)


def test_the_eight_benchmarks(published, letters_model, tmp_path):
    hf, task_files = published
    out, runs = tmp_path / "out", tmp_path / "runs.csv"
    env = {
        **os.environ, "HF_HOME": str(hf), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "OPENAI_API_KEY": KEY, "JAX_PLATFORMS": "cpu", "NO_PROXY": "*",
    }  # fmt: skip

    def evaluate(url, *more, key=KEY):
        return subprocess.run(
            [
                sys.executable, "-m", "tools.evaluate", "--model", str(letters_model), "--tasks",
                "paper", "--out", str(out), "--runs", str(runs), "--num-examples", "1000",
                "--task-files", str(task_files), "--max-new-tokens", "2", "--judge-at.url", url,
                "--judge-at.per-minute", "60000", "--judge-at.tries", "1", *more,
            ],
            env={**env, "OPENAI_API_KEY": key}, cwd=ROOT, capture_output=True, text=True,
            timeout=900,
        )  # fmt: skip

    def replies():
        return (out / "replies.jsonl").read_text().splitlines()

    def kept():
        return "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())

    # A judge that cannot be reached ends it in one line; the replies are there.
    ended = evaluate("http://127.0.0.1:9/v1")
    assert ended.returncode == 2, ended.stderr[-3000:]
    assert ended.stderr.splitlines()[-1].startswith("error: judge at http://127.0.0.1:9/v1/chat")
    assert "Traceback" not in ended.stderr
    before = replies()
    assert len(before) == COUNT

    with serving(grade) as (server, url):
        done = evaluate(url)
        assert done.returncode == 0, done.stderr[-6000:]
        asked = len(server.seen)
        again = evaluate(url, key="")  # nothing is asked: no key is needed
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout == done.stdout
    assert len(server.seen) == asked

    # Each question was answered once, and each grade asked for once.
    answered = replies()
    assert answered[:COUNT] == before
    assert len({json.loads(line)["name"] for line in answered}) == len(answered) == 9 * COUNT + 20
    bodies = [json.dumps(body["messages"]) for _, body, _ in server.seen]
    assert len(set(bodies)) == len(bodies)
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, _, headers in server.seen)
    assert KEY not in kept() + done.stdout + done.stderr

    # The scores are those of the grades that there are.
    found = {task.name: json.loads((out / f"{task.name}.json").read_text()) for task in TASKS}
    missing = 0
    for task in TASKS[:3]:
        parts = [expected(server.seen, metric, task.asked) for _, metric in task.parts]
        assert found[task.name]["score"] == pytest.approx(sum(s for s, _ in parts) / len(parts))
        assert found[task.name]["ungraded"] == sum(left for _, left in parts)
        missing += found[task.name]["ungraded"]
    assert missing > 0
    for task in TASKS[3:]:
        assert 0 <= found[task.name]["score"] <= 100
        assert found[task.name]["ungraded"] == found[task.name]["unreadable"] == 0
    mvbench = found["MV"]["parts"].values()
    assert found["MV"]["score"] == pytest.approx(sum(mvbench) / 20)
    assert len({task["score"] for task in found.values()}) > 4

    # Table, samples, and what people see.
    with runs.open() as lines:
        rows = list(csv.DictReader(lines))
    scores = {row["metric"]: float(row["score"]) for row in rows}
    mean = sum(task["score"] for task in found.values()) / 8
    assert scores.pop("avg") == pytest.approx(mean, abs=1e-3)
    assert scores == {n: pytest.approx(task["score"], abs=1e-3) for n, task in found.items()}
    assert {row["num_frames"] for row in rows} == {"3"}
    assert {row["num_examples"] for row in rows} == {"1000"}
    for task in TASKS:
        for part in task.tasks:
            samples = (out / task.name / f"{part}.jsonl").read_text().splitlines()
            assert len(samples) == (1 if task.name == "MV" else COUNT)
    assert [line.split()[0] for line in done.stdout.splitlines()[:9]] == [
        *(task.name for task in TASKS), "avg"
    ]  # fmt: skip
    assert "the rest costs at most $" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "videome"], "--tasks videome: no such task; did you mean 'videomme'?"),
        (["--tasks", "AQA"], "the judge needs a key: set OPENAI_API_KEY"),
        (["--tasks", "PT", "--runs", "runs.csv"], "does not tell how many examples"),
        (["--tasks", "PT", "--task-files", "nowhere"], "--task-files nowhere: no such folder"),
        (["--tasks", "PT", "--limit", "0"], "--limit 0: must be at least 1"),
        (["--tasks", "PT", "--questions", "q.jsonl"], "(--questions FILE) or benchmarks"),
        (["--tasks", "PT", "--task-files", "."], "LMMs-Eval has no task file for perceptiontest"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of what LMMs-Eval imports
def test_what_cannot_work_is_one_line(letters_model, tmp_path, options, said, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the command sets some
    args = tyro.cli(Args, args=["--model", str(letters_model), "--out", "out", *options])
    with pytest.raises(SystemExit) as e:
        die_in_one_line(lambda: main(args))
    [line] = capsys.readouterr().err.splitlines()
    assert e.value.code == 2
    assert line.startswith("error: ")
    assert said in line
