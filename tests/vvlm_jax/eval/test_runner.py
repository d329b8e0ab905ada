import json
import math
import shutil

import jax
import pytest
from PIL import Image

from vvlm_jax.config import ConfigError
from vvlm_jax.data import pipeline, synthetic
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.video import VideoError
from vvlm_jax.eval import answers
from vvlm_jax.eval.runner import evaluate, prompt_text, read_questions
from vvlm_jax.eval.scores import main_scores
from vvlm_jax.generate import video_vlm
from vvlm_jax.generate.video_vlm import VideoVLM
from vvlm_jax.models import vlm


@pytest.fixture(scope="module")
def setup(stage, tok):
    """Return a model with weights so large that replies depend on what is asked."""
    config = stage()
    model = vlm.build(config.model, pipeline.video_id(tok))
    params = jax.jit(vlm.init, static_argnums=0)(model, jax.random.key(1))
    return VideoVLM.from_params(config, jax.tree.map(lambda x: 3 * x, params), tok)


@pytest.fixture(scope="module")
def questions(world):
    return read_questions(world / "val.jsonl")


@pytest.fixture
def ask(setup, tmp_path, world):
    """Return ask(questions, root=…, max_unreadable=…, …) -> scores; predictions in tmp_path."""

    def run(questions, name="predictions.jsonl", root=world, **options):
        options = {"max_new_tokens": 3, "max_unreadable": 0.0, **options}
        return evaluate(setup, questions, tmp_path / name, media_root=root, **options)

    return run


@pytest.fixture
def asked(monkeypatch):
    """Return the prompts that the model is asked, batch by batch."""
    seen, plain = [], VideoVLM.generate

    def generate(self, videos, prompts, **options):
        seen.append(list(prompts))
        return plain(self, videos, prompts, **options)

    monkeypatch.setattr(VideoVLM, "generate", generate)
    return seen


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def replies(setup, questions, world, tmp_path_factory):
    """Return {id: reply} of every question, each asked alone about its video."""
    found = {}
    for q in questions:
        file = tmp_path_factory.mktemp("alone") / "p.jsonl"
        evaluate(setup, [q], file, media_root=world, max_new_tokens=3)
        found[q["id"]] = rows_of(file)[0]["reply"]
    return found


# Answers.


@pytest.mark.light
def test_replies_differ_by_video_and_question(replies, questions):
    videos = {}
    for q in questions:
        videos.setdefault(q["task"], set()).add(replies[q["id"]])
    assert len(set(replies.values())) > 3
    assert max(map(len, videos.values())) > 1


@pytest.mark.parametrize(
    "prompts_per_batch",
    [7, *(pytest.param(x, marks=pytest.mark.slow(reason="compiles again")) for x in (1, 16))],
)
def test_replies_do_not_depend_on_how_questions_are_batched(
    ask, asked, questions, replies, tmp_path, prompts_per_batch
):
    ask(questions[:-1], prompts_per_batch=prompts_per_batch)
    got = {p["id"]: p["reply"] for p in rows_of(tmp_path / "predictions.jsonl")}
    assert got == {q["id"]: replies[q["id"]] for q in questions[:-1]}
    assert len(asked) == math.ceil(17 / prompts_per_batch)


def test_many_questions_about_one_video_among_others_are_bounded_batches(
    ask, setup, questions, tmp_path, monkeypatch
):
    """121 questions about one video and 11 about others: 132 rows, and each video encoded once."""
    names = list(dict.fromkeys(q["video"] for q in questions))
    videos = [names[i % 5 + 1] for i in range(11)]
    videos[6:6] = [names[0]] * 121
    many = [
        {**questions[0], "id": f"{i}", "video": video, "question": f"what {i % 3} ?"}
        for i, video in enumerate(videos)
    ]
    setup.encoded.clear()
    rows, frames = [], []
    run = video_vlm.programs(setup.model, setup.tokenizer.stop_ids, setup.mesh)

    def begin(params, tokens_BL, *more):
        rows.append(len(tokens_BL))
        return run.begin(params, tokens_BL, *more)

    def encode(params, frames_BTHWC):
        frames.append(len(frames_BTHWC))
        return run.encode(params, frames_BTHWC)

    watched = run._replace(begin=begin, encode=encode)
    monkeypatch.setattr(video_vlm, "programs", lambda *_: watched)
    ask(many)
    assert rows == [16] * 8 + [4]
    assert frames == [1] * 6
    assert len(rows_of(tmp_path / "predictions.jsonl")) == 132


def test_scores_by_hand(ask, questions, replies, tmp_path):
    # Three open questions of which two are made to be right, one multiple choice that is wrong.
    mine = [{**q, "task": "open"} for q in questions if not q.get("options")][:3]
    mine = [{**q, "answer": replies[q["id"]]} for q in mine[:2]] + [{**mine[2], "answer": "never"}]
    choice = next(q for q in questions if q.get("options"))
    wrong = "A" if answers.parse_letter(replies[choice["id"]], 4) != "A" else "B"
    scores = main_scores(ask([*mine, {**choice, "task": "choice", "answer": wrong}]))
    found = {task: (s.metric, s.score, s.num_questions, s.left_out) for task, s in scores.items()}
    assert found == {
        "choice": ("letters", 0.0, 1, 0),
        "open": ("normalised", pytest.approx(200 / 3), 3, 0),
    }
    first = rows_of(tmp_path / "predictions.jsonl")[0]
    assert first.keys() == {"id", "task", "reply", "answer", "correct"}
    correct = {p["id"]: p["correct"] for p in rows_of(tmp_path / "predictions.jsonl")}
    assert [correct[q["id"]] for q in [*mine, choice]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"question": "what ?"}, "what ?"),
        ({"question": "what ?", "options": []}, "what ?"),
        ({"question": "what ?", "prompt": "say what"}, "say what"),
        (
            {"question": "what ?", "options": ["cat", "dog"]},
            "what ?\nA. cat\nB. dog\n"
            "Answer with the option's letter from the given choices directly.",
        ),
    ],
)
def test_what_the_model_is_asked(row, text):
    assert prompt_text(row) == text


# Unreadable videos.


@pytest.fixture
def damaged(world, tmp_path):
    """Return a copy of the validation clips in which one is empty and one missing."""
    root = tmp_path / "damaged"
    shutil.copytree(world / "val", root / "val")
    (root / "val/000001.mp4").write_bytes(b"")
    (root / "val/000004.mp4").unlink()
    return root


def test_unreadable_videos_are_counted_and_left_out(ask, damaged, questions, replies, tmp_path):
    scores = ask(questions, root=damaged, max_unreadable=2 / 6)
    assert [(s.num_questions, s.left_out) for s in scores] == [(4, 2)] * len(scores)
    rows = {p["id"]: p for p in rows_of(tmp_path / "predictions.jsonl")}
    assert len(rows) == 18
    for q in questions:
        row = rows[q["id"]]
        if q["video"] in ("val/000001.mp4", "val/000004.mp4"):
            assert row["error"].startswith(str(damaged / q["video"]))
            assert row.keys() == {"id", "task", "error"}
        else:
            assert row["reply"] == replies[q["id"]]


def test_more_unreadable_videos_than_allowed_stop_every_time(ask, damaged, questions, tmp_path):
    for _ in range(2):
        with pytest.raises(VideoError, match=r"2 unreadable videos.* 1 .*max_unreadable = 0") as e:
            ask(questions, root=damaged, max_unreadable=1.9 / 6)
        assert str(damaged / "val") in str(e.value)
        assert "\n" not in str(e.value)


def test_a_mended_video_is_asked_about(ask, asked, damaged, world, questions, replies, tmp_path):
    ask(questions, root=damaged, max_unreadable=0.5)
    asked.clear()
    for name in ("val/000001.mp4", "val/000004.mp4"):
        shutil.copy(world / name, damaged / name)
    scores = ask(questions, root=damaged, max_unreadable=0.5)
    mended = {q["id"] for q in questions if q["video"] in ("val/000001.mp4", "val/000004.mp4")}
    assert sum(map(len, asked)) == len(mended) == 6
    assert all(s.left_out == 0 for s in scores)
    got = {p["id"]: p.get("reply") for p in rows_of(tmp_path / "predictions.jsonl")}
    assert got == replies


# Likelihoods, references and folders of frames.


def test_the_likeliest_letter_is_told_beside_the_reply(ask, questions, replies, tmp_path):
    ask(questions, likelihood=True, prompts_per_batch=7)
    rows = {p["id"]: p for p in rows_of(tmp_path / "predictions.jsonl")}
    assert {id: row["reply"] for id, row in rows.items()} == replies
    letters = set()
    for q in questions:
        row = rows[q["id"]]
        if q.get("options"):
            assert list(row["logprobs"]) == ["A", "B", "C", "D"]
            assert row["likeliest"] == max("ABCD", key=row["logprobs"].get)
            assert sum(map(math.exp, row["logprobs"].values())) < 1
            letters.add(tuple(row["logprobs"].values()))
        else:
            assert "likeliest" not in row
    assert len(letters) == 6  # each question has its own
    ask(questions[:1], "without/predictions.jsonl")
    with pytest.raises(ConfigError, match=r"other likelihood \(None, not True\)"):
        ask(questions[:1], "without/predictions.jsonl", likelihood=True)


def test_any_of_several_references_is_right(ask, questions, replies, tmp_path):
    mine = [q for q in questions if not q.get("options")][:2]
    given = [["never", replies[mine[0]["id"]]], ["never", "nor this"]]
    mine = [{**q, "references": r} for q, r in zip(mine, given, strict=True)]
    for q in mine:
        del q["answer"]
    ask(mine)
    rows = {p["id"]: p for p in rows_of(tmp_path / "predictions.jsonl")}
    assert [rows[q["id"]]["correct"] for q in mine] == [True, False]
    assert [rows[q["id"]]["answer"] for q in mine] == given


def test_a_folder_of_frames_is_a_video(ask, setup, questions, world, tmp_path):
    config = setup.config
    root = tmp_path / "folders"
    names = list(dict.fromkeys(q["video"] for q in questions))[:2]
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        frames = FrameReader(world, config.model.num_frames, 48).video(name)
        for i, pixels in enumerate(frames):  # as many as the model takes, two a second
            Image.fromarray(pixels).save(folder / f"{i:03}.png")
    mine = [q for q in questions if q["video"] in names]
    ask(mine, "files.jsonl")
    ask(mine, "sub/folders.jsonl", root, reader=FrameReader(root, len(frames), 48, "force"))
    assert rows_of(tmp_path / "sub" / "folders.jsonl") == rows_of(tmp_path / "files.jsonl")


# Interrupted evaluations.


@pytest.mark.parametrize("kept", [0, 1, 7.5, 18])
def test_an_interrupted_evaluation_goes_on(ask, asked, questions, replies, tmp_path, kept):
    whole = ask(questions, "whole.jsonl")
    text = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    there = text[: int(kept)] + ([text[int(kept)][:-9]] if kept % 1 else [])
    (tmp_path / "predictions.jsonl").write_text("".join(there))
    asked.clear()
    assert ask(questions) == whole
    rows = rows_of(tmp_path / "predictions.jsonl")
    assert {p["id"]: p["reply"] for p in rows} == replies
    assert len(rows) == 18
    assert sum(map(len, asked)) == 18 - int(kept)


# Question files.

QUESTION = dict(id="1", task="t", video="a.mp4", question="what ?", answer="red")


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize("field", ["id", "task", "video", "question", "answer"])
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_field_is_named(tmp_path, field, value):
    bad = {**QUESTION, "id": "2", field: value}
    if value is None:
        del bad[field]
    file = write(tmp_path / "q.jsonl", QUESTION, bad)
    with pytest.raises(ValueError, match=rf"q\.jsonl: question 2: lacks {field}$"):
        read_questions(file)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (QUESTION, "question 2: repeats id '1'"),
        (
            {**QUESTION, "id": "2", "options": ["x", "y"], "answer": "C"},
            "answer 'C' is not a letter",
        ),
        (
            {**QUESTION, "id": "2", "options": ["x", "y"], "answer": "AB"},
            "answer 'AB' is not a letter",
        ),
        (
            {**QUESTION, "id": "2", "options": ["x", "y"], "answer": "x"},
            "answer 'x' is not a letter",
        ),
        ({**QUESTION, "id": "2", "options": ["x", "y"], "answer": 1}, "answer = 1: must be a text"),
        ({**QUESTION, "id": 2}, "question 2: id = 2: must be a text"),
        ({**QUESTION, "id": "2", "references": ["x"]}, "references: are for open questions, in"),
        (
            {"id": "2", "task": "t", "video": "a", "question": "?", "references": []},
            "references: must be 1 or more texts, got 0",
        ),
        ({**QUESTION, "id": "2", "options": "xy"}, "options = 'xy': must be a list of texts"),
        ({**QUESTION, "id": "\ud800"}, "question 2: id: contains an unpaired"),
        ({**QUESTION, "id": "2", "options": ["\udfff", "y"]}, "must be a list of texts"),
        ({**QUESTION, "id": "2", "options": list("abcdefghi")}, "from 1 to 8 texts, got 9"),
        (
            {**QUESTION, "id": "2", "question": "<video> ?"},
            "question 2: contains <video> or <image>",
        ),
        ('{"id": 2,', "line 2 is not JSON"),
        ("[1, 2]", "question 2 is not a JSON object"),
    ],
)
def test_a_broken_question_is_named(tmp_path, bad, message):
    file = write(tmp_path / "q.jsonl", QUESTION, bad)
    with pytest.raises(ValueError, match=message) as e:
        read_questions(file)
    assert str(e.value).startswith(f"{file}: ")


def test_a_question_file_without_questions_or_text_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"q\.jsonl: has no questions"):
        read_questions(write(tmp_path / "q.jsonl"))
    (tmp_path / "l.jsonl").write_bytes(b"{\xe9}")
    with pytest.raises(ValueError, match=r"l\.jsonl: byte 1 is not UTF-8 text"):
        read_questions(tmp_path / "l.jsonl")


def test_replies_to_other_questions_or_of_another_model_are_not_taken_over(ask, questions):
    ask(questions[:3], identity="one")
    ask(questions[:3], identity="one")
    with pytest.raises(ConfigError, match=r"predictions\.jsonl holds replies with other questions"):
        ask([*questions[:2], {**questions[2], "answer": "red"}], identity="one")
    with pytest.raises(ConfigError, match=r"other model \('one', not 'two'\)"):
        ask(questions[:3], identity="two")
    with pytest.raises(ConfigError, match=r"other max_new_tokens \(3, not 2\)"):
        ask(questions[:3], identity="one", max_new_tokens=2)


@pytest.mark.parametrize("option", ["max_new_tokens", "prompts_per_batch"])
def test_no_room_for_a_reply_is_refused(ask, questions, option):
    with pytest.raises(ConfigError, match=f"{option} = 0: must be at least 1"):
        ask(questions, **{option: 0})


def test_a_question_that_does_not_fit_is_named_before_any_is_asked(ask, asked, questions):
    long = {**questions[1], "prompt": "red " * 200_000}
    with pytest.raises(ValueError, match=rf"^question '{long['id']}' has 200,\d+ tokens, "):
        ask([questions[0], long])
    assert not asked


def test_a_missing_question_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"q\.jsonl: no such question file"):
        read_questions(tmp_path / "q.jsonl")


def test_a_good_question_file_is_read_as_it_is(tmp_path):
    rows = [QUESTION, {**QUESTION, "id": "2", "options": ["x", "y"], "answer": "B", "prompt": "?"}]
    assert read_questions(write(tmp_path / "q.jsonl", *rows)) == rows


def test_the_given_reader_is_used(ask, setup, questions, world):
    class Counting(FrameReader):
        seen = []

        def video(self, name):
            self.seen.append(name)
            return super().video(name)

    reader = Counting(world, setup.config.model.num_frames, 48)
    ask(questions, reader=reader)
    assert sorted(Counting.seen) == sorted({q["video"] for q in questions})  # once each


def test_choices_are_the_only_replies(ask, questions, tmp_path):
    rows = [{**q, "choices": synthetic.valid_replies(q)} for q in questions]
    ask(rows, max_new_tokens=4, prompts_per_batch=5)
    replies = {row["id"]: row["reply"] for row in rows_of(tmp_path / "predictions.jsonl")}
    assert len(replies) == len(rows)
    assert all(replies[row["id"]] in row["choices"] for row in rows)


def test_choices_for_some_questions_only_are_refused(questions, tmp_path):
    rows = [questions[0], {**questions[1], "choices": ["red"]}]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="question 2: either all questions have choices or none"):
        read_questions(tmp_path / "val.jsonl")
