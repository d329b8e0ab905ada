"""The command: what it prints and writes, and what it says when something is missing."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.buckets import upload
from tests.vvlm_jax.eval.fake_judge import reply_of_model, serving
from tools.common import die_in_one_line
from tools.evaluate import Args, main
from vvlm_jax.config import ConfigError
from vvlm_jax.eval.judge import JudgeConfig, JudgeError

VIDEOS = Path(__file__).parents[1] / "testdata" / "videos"
CLIP, OTHER = "h264_one_gop.mp4", "vp9.webm"
ROWS = [
    dict(id="1", task="open", video=CLIP, question="What happens?", answer="red"),
    dict(id="2", task="open", video=OTHER, question="Who is it?", references=["a", "b"]),
    dict(id="3", task="pick", video=CLIP, question="Which?", options=["x", "y"], answer="B"),
]


@pytest.fixture
def args(model_folder, tmp_path, monkeypatch):
    """Return args(url=…, …) -> Args for ROWS, everything in tmp_path."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def make(url=None, **options):
        at = JudgeConfig(url, per_minute=6e4, tries=1) if url else JudgeConfig()
        return Args(
            model_folder, tmp_path / "q.jsonl", media_root=VIDEOS, out=tmp_path / "out",
            max_new_tokens=4, judge=url is not None, judge_at=at, **options,
        )  # fmt: skip

    return make


def graded(body, number):
    assert reply_of_model(body)
    return '{"correct": "yes", "score": 4}' if "What" in body["messages"][1]["content"] else "hm"


def test_every_metric_is_printed_and_kept(args, tmp_path, capsys):
    with serving(graded) as (server, url):
        main(args(url, likelihood=True))
        told = capsys.readouterr()
        main(args(url, likelihood=True))  # nothing is asked again
    assert len(server.seen) == 2
    lines = [line.split()[:3] for line in told.out.splitlines()]
    named = {(task, metric): float(score) for task, metric, score in lines}
    assert list(named) == [
        ("open", "normalised"), ("open", "exact"), ("open", "judge"), ("open", "judge_score"),
        ("pick", "letters"), ("pick", "likelihood"), ("avg", "main"),
    ]  # fmt: skip
    assert (named["open", "judge"], named["open", "judge_score"]) == (100.0, 80.0)
    assert "judge: 2 requests, 0 answered before; the rest costs at most $0.00" in told.err
    assert "judge: 1 replies without a grade, left out" in told.err
    values = json.loads((tmp_path / "out/scores.json").read_text())
    assert values["open"]["judge"]["left_out"] == 1
    assert 0 < values["open"]["judge"]["low"] < 100
    assert values["open"]["judge"]["score_se"] > 0
    assert values["pick"]["letters"]["num_questions"] == 1
    assert len((tmp_path / "out/verdicts.jsonl").read_text().splitlines()) == 2


def test_a_missing_key_is_said_before_anything_is_answered(args, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(graded) as (_, url), pytest.raises(ConfigError, match="set OPENAI_API_KEY"):
        main(args(url))
    assert not (tmp_path / "out").exists()


def test_what_is_answered_outlives_a_judge_that_fails(args, tmp_path):
    with serving(lambda body, number: (500, {}, b"")) as (_, url), pytest.raises(JudgeError):
        main(args(url))
    answered = (tmp_path / "out/predictions.jsonl").read_text()
    assert len(answered.splitlines()) == 3
    with serving(graded) as (_, url):
        main(args(url))
    assert (tmp_path / "out/predictions.jsonl").read_text() == answered


def test_videos_and_questions_may_lie_in_a_bucket(args, service, tmp_path):
    main(args())
    for name in (CLIP, OTHER):
        shutil.copy(VIDEOS / name, tmp_path / "out")
    shutil.copy(tmp_path / "q.jsonl", tmp_path / "out")
    upload(tmp_path / "out", f"{service}/some")
    there = dataclasses.replace(args(), out=tmp_path / "there", media_root=f"{service}/some")
    main(there)
    beside = dataclasses.replace(
        there, out=tmp_path / "beside", media_root=None, questions=f"{service}/some/q.jsonl"
    )
    main(beside)
    for name in ("predictions.jsonl", "scores.json"):
        texts = [(tmp_path / out / name).read_text() for out in ("out", "there", "beside")]
        assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"media_root": "no/where"}, "--media-root no/where: no such folder"),
        ({"media_root": "ftp://a/b"}, "ftp://a/b: unknown scheme; must be a folder, gs://"),
        ({"questions": "no/where.jsonl"}, "no/where.jsonl: no such question file"),
        ({"questions": "."}, ".: no such question file"),
        ({"max_unreadable": -1.0}, "--max-unreadable -1.0: must be a share from 0 to 1"),
        ({"max_unreadable": float("nan")}, "--max-unreadable nan: must be a share from 0 to 1"),
    ],
)
def test_what_cannot_work_is_one_line(args, option, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        die_in_one_line(lambda: main(dataclasses.replace(args(), **option)))
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


def test_places_in_a_bucket_that_are_none_are_named(args, service):
    with pytest.raises(ConfigError, match=f"--media-root {service}/no: no such folder"):
        main(dataclasses.replace(args(), media_root=f"{service}/no"))
    with pytest.raises(ValueError, match=f"^{service}/no.jsonl: no such question file"):
        main(dataclasses.replace(args(), questions=f"{service}/no.jsonl"))


def test_benchmarks_are_read_on_this_machine(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--media-root: .*; LMMs-Eval finds videos itself"):
        main(Args(tmp_path, tasks=("paper",), media_root="gs://bucket/videos"))
    monkeypatch.setenv("HF_HOME", "gs://bucket/hf")
    with pytest.raises(ConfigError, match="^HF_HOME=gs://bucket/hf: must be a folder of this"):
        main(Args(tmp_path, tasks=("paper",)))


@pytest.mark.parametrize("option", [{"judge": True}, {"likelihood": True}, {"media_root": VIDEOS}])
def test_options_of_question_files_are_refused_beside_benchmarks(option, tmp_path):
    flag = f"--{next(iter(option)).replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"{flag}: is for a question file"):
        main(Args(tmp_path, tasks=("paper",), **option))
