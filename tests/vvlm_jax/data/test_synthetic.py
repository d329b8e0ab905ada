"""The synthetic world, read back from its files as a viewer would."""

import collections
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from vvlm_jax.data import synthetic
from vvlm_jax.data.synthetic import CELLS, COLOURS, LETTERS, NAMES, TASKS
from vvlm_jax.data.video import read_frames

TURNS = (("flash", 1), ("cell", 3), ("most", 1))
CLIP = dict(num_frames=6, flash_lengths=(2,), size=48)
PALETTE = np.array(list(COLOURS.values()), float)


def write_world(folder, seed, count=4):
    synthetic.write_tokenizer(folder)
    synthetic.write_videos(folder, "train", count, TURNS, **CLIP, seed=seed)
    synthetic.write_videos(folder, "val", count, TURNS, **CLIP, seed=seed)
    synthetic.write_stories(folder, 5, TURNS, seed)
    synthetic.write_captions(folder, 5, 48, seed)
    return folder


def contents(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def frames_of(path):
    return read_frames(path, lambda info: np.arange(info.num_frames))


def look(frame):
    """Return ({cell: colour}, background: a colour or None) of one frame, by nearest colours."""
    cells = frame.reshape(4, 12, 4, 12, 3).transpose(0, 2, 1, 3, 4).reshape(16, 12, 12, 3)
    ground = np.median(cells[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3), axis=0)
    grounds = np.concatenate([PALETTE // 2 + 20, [synthetic._GROUND]])
    lit = [*NAMES, None][np.abs(grounds - ground).sum(axis=1).argmin()]
    board = {}
    for name, cell in zip(CELLS, cells, strict=True):
        middle = cell[4:8, 4:8].reshape(-1, 3).mean(axis=0)
        if np.abs(middle - ground).sum() > 30:
            board[name] = NAMES[np.abs(PALETTE - middle).sum(axis=1).argmin()]
    return board, lit


def watch(path):
    """Return (board, colour of the flash, frames that it lights) of a clip."""
    seen = [look(frame) for frame in frames_of(path)]
    lit = [i for i, (_, colour) in enumerate(seen) if colour]
    (flash,) = {seen[i][1] for i in lit}
    boards = [board for board, _ in seen]
    assert all(board == boards[0] for board in boards)
    return boards[0], flash, lit


def expected(text, board, flash):
    """Return the task of a question and its answer, from what there is to see."""
    if text == "which colour flashes ?":
        return "flash", flash
    if match := re.fullmatch(r"what is at (..) \?", text):
        return "cell", f"{match[1]} {board[match[1]]}"
    if match := re.fullmatch(r"which colour is most frequent \? (.*)", text):
        words = match[1].split()
        options = dict(zip(words[1::2], words[::2], strict=True))
        assert list(options.values()) == list(LETTERS)
        (first, n), *others = collections.Counter(board.values()).most_common(2)
        assert not others or others[0][1] < n
        return "most", f"{first} {options[first]}"
    if text == "describe":
        words = [f"{cell}{board[cell]}" for cell in CELLS if cell in board]
        return "describe", " ".join(words + ([f"flash{flash}"] if flash else []))
    listed = text.removeprefix("sort ").split()
    letters = dict(zip(listed[1::2], listed[::2], strict=True))
    return "sort", " ".join(f"{name} {letters[name]}" for name in NAMES)


def pairs(turns):
    assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
    return [(q["value"], a["value"]) for q, a in zip(turns[::2], turns[1::2], strict=True)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("made"), seed=0, count=12)


def rows_of(folder, name):
    text = (folder / name).read_text()
    return json.loads(text) if name.endswith(".json") else list(map(json.loads, text.splitlines()))


# Files.


def test_a_seed_fixes_every_byte(tmp_path):
    worlds = [
        contents(write_world(tmp_path / n, seed)) for n, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert worlds[0] == worlds[1]
    assert len(worlds[0]) == 1 + (4 + 1) + (4 + 1) + 1 + (5 + 1)
    same = [name for name in worlds[0] if worlds[0][name] == worlds[2][name]]
    assert same == ["tokenizer.json"]


def test_an_interrupted_call_continues(made, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(made, folder)
    for name in (
        "train.json",
        "val.jsonl",
        "captions.json",
        "train/000011.mp4",
        "pictures/000003.png",
    ):
        (folder / name).unlink()
    kept = {p: p.stat().st_mtime_ns for p in folder.rglob("0*")}
    write_world(folder, seed=0, count=12)
    assert contents(folder) == contents(made)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_no_clip_is_in_two_splits(made):
    clips = {
        split: {frames_of(path).tobytes() for path in sorted((made / split).glob("*.mp4"))}
        for split in ("train", "val")
    }
    boards = {s: {str(watch(p)[:2]) for p in (made / s).glob("*.mp4")} for s in ("train", "val")}
    for kind in (clips, boards):
        assert len(kind["train"]) == len(kind["val"]) == 12
        assert not kind["train"] & kind["val"]


def test_annotations_are_those_of_llava(made):
    for name, media in (
        ("train.json", "video"),
        ("captions.json", "image"),
        ("stories.json", None),
    ):
        rows = rows_of(made, name)
        assert len({row["id"] for row in rows}) == len(rows)
        for row in rows:
            assert row.keys() == {"id", "conversations"} | ({media} if media else set())
            text = [value for turn in pairs(row["conversations"]) for value in turn]
            assert sum(t.count("<video>") + t.count("<image>") for t in text) == (media is not None)
            if media:
                assert text[0].startswith(f"<{media}>\n")
                assert (made / row[media]).is_file()


def test_every_word_is_in_the_vocabulary(made):
    tok = synthetic.word_level(synthetic.WORDS)
    unknown = tok.token_to_id("<unk>")
    texts = [
        value.removeprefix("<video>").removeprefix("<image>")
        for name in ("train.json", "captions.json", "stories.json")
        for row in rows_of(made, name)
        for pair in pairs(row["conversations"])
        for value in pair
    ]
    texts += [text for q in rows_of(made, "val.jsonl") for text in (q["prompt"], q["answer"])]
    for text in texts:
        assert unknown not in tok.encode(text, add_special_tokens=False).ids, text
    assert tok.get_vocab_size() <= 192  # what the study's models embed


# Answers.


def test_conversations_about_clips_are_true(made):
    counts = collections.Counter()
    for row in rows_of(made, "train.json"):
        board, flash, lit = watch(made / row["video"])
        assert len(board) == 16
        assert lit == list(range(lit[0], lit[0] + 2))
        asked = collections.Counter()
        for text, answer in pairs(row["conversations"]):
            task, right = expected(text.removeprefix("<video>\n"), board, flash)
            assert answer == right
            asked[task] += 1
        assert asked == {**dict(TURNS), "describe": 1}
        counts += asked
    assert counts.keys() >= set(TASKS)


def test_questions_to_be_scored_are_true(made):
    rows = rows_of(made, "val.jsonl")
    assert [row["task"] for row in rows] == [*TASKS] * 12
    for row in rows:
        board, flash, _ = watch(made / row["video"])
        task, right = expected(row["prompt"], board, flash)
        assert task == row["task"]
        assert row["prompt"].startswith(row["question"])
        assert row["answer"] == right.split()[-1] if task == "most" else row["answer"] == right
        if task == "most":
            assert row["options"][LETTERS.index(row["answer"])] == right.split()[0]
            assert len(set(row["options"])) == 4


def test_captions_are_true(made):
    for row in rows_of(made, "captions.json"):
        board, lit = look(np.asarray(Image.open(made / row["image"])))
        ((text, answer),) = pairs(row["conversations"])
        assert expected(text.removeprefix("<image>\n"), board, lit) == ("describe", answer)


def test_stories_are_true(made):
    seen = set()
    for row in rows_of(made, "stories.json"):
        told, _, _ = row["conversations"][0]["value"].partition("\n")
        board = {w[:2]: w[2:] for w in told.split() if w[:2] in CELLS}
        (flash,) = [w.removeprefix("flash") for w in told.split() if w.startswith("flash")]
        for text, answer in pairs(row["conversations"]):
            task, right = expected(text.removeprefix(told + "\n"), board, flash)
            assert answer == right
            seen.add(task)
    assert seen >= {*TASKS, "describe", "sort"}


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_balanced(task):
    rng = np.random.default_rng(5)
    made = [synthetic.question(synthetic.make_scene(rng), task, rng) for _ in range(3000)]
    answers = [q["answer"] for q in made if q]
    kinds = {"flash": [NAMES], "cell": [CELLS, NAMES], "most": [LETTERS]}[task]
    for place, kind in enumerate(kinds):
        assert_uniform([a.split()[place] for a in answers], kind)
    if task == "most":
        right = [q["options"][LETTERS.index(q["answer"])] for q in made if q]
        assert_uniform(right, NAMES)
        for place in range(4):
            assert_uniform([q["options"][place] for q in made if q], NAMES)


def test_always_saying_the_same_scores_chance():
    """Every answer of the questions to be scored appears equally often, to within one."""
    quizzes = list(synthetic.quizzes(np.random.default_rng(3), 50, 6, (1, 2)))
    for task, questions in zip(TASKS, zip(*(q for _, q in quizzes), strict=True), strict=True):
        assert {q["task"] for q in questions} == {task}
        answers = [q["answer"].split()[-1] for q in questions]
        right = (
            [q["options"][LETTERS.index(q["answer"])] for q in questions] if task == "most" else []
        )
        for values, kinds in ((answers, LETTERS if right else NAMES), (right, NAMES)):
            counts = [values.count(kind) for kind in kinds]
            assert sum(counts) == len(values)
            assert max(counts) - min(counts) <= 1


def test_valid_replies_hold_the_right_one_among_as_many_as_chance_says(made):
    for row in rows_of(made, "val.jsonl"):
        replies = synthetic.valid_replies(row)
        assert len(set(replies)) == round(100 / synthetic.CHANCE[row["task"]])
        assert row.get("reply", row["answer"]) in replies


def assert_uniform(values, kinds):
    counts = collections.Counter(values)
    assert set(counts) == set(kinds)
    n, p = len(values), 1 / len(kinds)
    for kind in kinds:
        assert abs(counts[kind] - n * p) < 4 * np.sqrt(n * p * (1 - p)), (kind, counts)


def test_flashes_lie_anywhere_inside_the_clip():
    rng = np.random.default_rng(0)
    starts = [synthetic.make_scene(rng, 8, (2,)).flash_start for _ in range(1400)]
    assert_uniform(starts, range(7))


def test_chance_is_one_in_the_number_of_answers():
    assert pytest.approx({"flash": 100 / 6, "cell": 100 / 6, "most": 25}) == synthetic.CHANCE
