"""The graded world, read back from its files as a viewer would."""

import collections
import hashlib
import json

import numpy as np
import pytest

from vvlm_jax.data import graded, tokenizer
from vvlm_jax.data.graded import CELLS, COLOURS, DIALECTS, NAMES, NEW
from vvlm_jax.data.video import read_frames

CLIP = dict(num_frames=8, size=64)  # at 32, 4:2:0 mixes the ground's colour with the squares'
ASKED = (("flash", 1), ("cell", 8), ("word", 4))
PALETTE = np.array(list(COLOURS.values()), float)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graded")
    write(folder, 4)
    return folder


def write(folder, seed, count=10):
    graded.write_tokenizer(folder)
    for kind in ("pairs", "train", "val"):
        graded.write_clips(folder, kind, count, turns=ASKED, seed=seed, captions=2, **CLIP)


def look(frame):
    """({cell: colour}, the ground's or None, the light's or None), by nearest colours."""
    cells = (
        frame.reshape(4, 16, 4, 16, 3).transpose(0, 2, 1, 3, 4).reshape(16, 16, 16, 3).astype(float)
    )
    corners = np.median(cells[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3), axis=0)
    grounds = np.concatenate([PALETTE * 0.35, (PALETTE * 0.5 + 90).clip(0, 255)])
    kind = int(np.abs(grounds - corners).sum(axis=1).argmin())
    middle = cells[:, 6:10, 6:10].mean(axis=(1, 2))
    nearest = np.abs(PALETTE[None] - middle[:, None]).sum(axis=2).argmin(axis=1)
    board = {name: NAMES[i] for name, i in zip(CELLS, nearest, strict=True)}
    return board, NAMES[kind] if kind < 8 else None, NAMES[kind - 8] if kind >= 8 else None


def watch(path):
    """(board, ground or None, flash or None) of a clip."""
    seen = [look(f) for f in read_frames(path, lambda info: np.arange(info.num_frames))]
    assert all(board == seen[0][0] for board, _, _ in seen)
    return seen[0][0], *(next((s[i] for s in seen if s[i]), None) for i in (1, 2))


def expected(text, seen, turns):
    """The answer to a question, from what there is to see; None where nothing shows it."""
    board, ground, flash = seen
    if text == "flash":
        return flash
    if text in board:
        return board[text]
    turn = turns[DIALECTS.index(text)]
    return ground and NAMES[(NAMES.index(ground) + turn) % len(NAMES)]


def asked_of(folder, kind):
    """[(clip, question, answer)] of a kind of clips."""
    if kind == "val":
        rows = map(json.loads, (folder / "val.jsonl").read_text().splitlines())
        return [(row["video"], row["prompt"], row["answer"]) for row in rows]
    rows = json.loads((folder / f"{kind}.json").read_text())
    found = []
    for row in rows:
        human, gpt = row["conversations"]
        assert human["value"] == "<video>"
        words = gpt["value"].split()
        found += [(row["video"], *pair) for pair in zip(words[::2], words[1::2], strict=True)]
    return found


@pytest.mark.parametrize("kind", ["pairs", "train", "val"])
def test_what_can_be_seen_is_what_is_answered(made, kind):
    turns, clips, shown = graded.turns_of(4), {}, 0
    for video, text, answer in asked_of(made, kind):
        seen = clips.setdefault(video, watch(made / video))
        right = expected(text, seen, turns)
        shown += right is not None
        assert right in (answer, None), (video, text)
    assert len(clips) == 10
    assert kind != "pairs" or shown == 10 * 2 * 13, "a pair shows all that is asked"


def test_a_seed_fixes_every_byte_and_more_clips_change_none(made, tmp_path):
    def contents(folder):
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in files}

    write(tmp_path / "more", 4, count=11)
    write(tmp_path / "other", 5)
    first, more, other = (contents(f) for f in (made, tmp_path / "more", tmp_path / "other"))
    clips = {name for name in first if name.endswith(".mp4")}
    assert len(clips) == 30
    assert all(more[name] == first[name] for name in clips)
    assert not any(other[name] == first[name] for name in clips)


def test_every_word_has_an_id(made):
    tok, unknown = tokenizer.load(made), graded.word_level(graded.WORDS).token_to_id("<unk>")
    assert len(set(graded.WORDS)) == len(graded.WORDS)
    ids = tok.encode(" ".join(graded.WORDS))
    assert len(ids) == len(graded.WORDS)
    assert unknown not in ids


def test_new_dialects_follow_zipf_and_pretraining_asks_for_known_ones():
    rng, turns = np.random.default_rng(0), graded.turns_of(0)
    scene = graded.make_scene(rng)
    said = [graded.question(scene, "word", rng, turns, False)["prompt"] for _ in range(4000)]
    counts = collections.Counter(said)
    assert set(said) <= set(DIALECTS[:NEW])
    assert counts[DIALECTS[0]] / counts[DIALECTS[3]] == pytest.approx(4, rel=0.3)
    known = {graded.question(scene, "word", rng, turns, True)["prompt"] for _ in range(500)}
    assert known == set(DIALECTS[NEW:])
    assert (graded.turns_of(0)[NEW:] == graded.turns_of(1)[NEW:]).all()
    assert (graded.turns_of(0)[:NEW] != graded.turns_of(1)[:NEW]).any()


def test_a_reader_of_more_frames_misses_fewer_events_by_a_power_law():
    rng, frames = np.random.default_rng(0), (1, 2, 4, 8, 16)
    scenes = [graded.make_scene(rng) for _ in range(4000)]

    def missed(count):
        at = np.linspace(0, 31, count, dtype=int)
        seen = [((at >= s.start) & (at < s.start + s.length)).any() for s in scenes]
        return 1 - np.mean(seen)

    falls = -np.diff(np.log2([missed(count) for count in frames]))
    assert falls.min() > 0.5
    assert falls.max() < 1.4


def test_coarser_tokens_tell_a_part_of_the_board():
    rng = np.random.default_rng(0)
    boards = [np.reshape(graded.make_scene(rng).board, (4, 4)) for _ in range(1000)]

    def most(cells):
        return np.bincount(cells.ravel(), minlength=8).max() / cells.size

    whole = np.mean([most(b) for b in boards])
    quarters = np.mean(
        [most(b[i : i + 2, j : j + 2]) for b in boards for i in (0, 2) for j in (0, 2)]
    )
    assert 0.3 < whole < 0.6
    assert 0.65 < quarters < 0.9
