"""A seeded synthetic world whose questions have graded difficulty, so that errors fall smoothly.

A clip shows a 4 × 4 board of coloured squares on a dim ground, which is lit in another colour for a
while. Three kinds of questions; each is one word and has a colour as its answer:

- `flash` ("flash"): the colour that lights the ground. Events last from one frame to the whole clip
  (`EVENT_LENGTHS`), so that a perfect reader of T evenly spread frames misses about T^-0.7 of them.
- `cell` ("b3"): the colour of a named cell. Quadrants often share a colour, and so does the whole
  board, so that a mean over many cells tells part of the answer and finer tokens tell more.
- `word` ("bako"): the ground's colour in the words of a dialect, which turns the circle of colours
  by a fixed number of places. Pretraining teaches `KNOWN` dialects. Those of the questions are new:
  a seed draws their turns, and their frequencies follow Zipf's law, so that finetuning learns the
  rare ones late.

Each error is an average over many events, neighbourhoods and words, none of which decides it.
Captions are "word answer word answer …", the format of stage 1, in which a question costs two
tokens. All data are synthetic and resemble no benchmark.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vvlm_jax import atomic
from vvlm_jax.data.tokenizer import word_level
from vvlm_jax.data.video import write_video

COLOURS = {
    "red": (225, 30, 30),
    "green": (30, 190, 50),
    "blue": (40, 60, 240),
    "yellow": (240, 220, 40),
    "pink": (240, 80, 220),
    "cyan": (40, 220, 230),
    "white": (245, 245, 245),
    "orange": (245, 140, 30),
}
"""Colours in the order of their circle."""
NAMES = tuple(COLOURS)
SIDE = 4
CELLS = tuple(f"{row}{col}" for row in "abcd" for col in "1234")
_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aou")
NEW, KNOWN = 32, 32
"""Numbers of dialects: those that a seed draws, and those that pretraining teaches."""
DIALECTS = tuple(
    _SYLLABLES[i % len(_SYLLABLES)] + _SYLLABLES[(i + 17 + 5 * (i // len(_SYLLABLES))) % 42]
    for i in range(NEW + KNOWN)
)
"""Made-up words, first the new ones by falling frequency, then those that pretraining teaches."""
TASKS = ("flash", "cell", "word")
CHANCE = dict.fromkeys(TASKS, 100 / len(NAMES))
"""Expected score, 0–100, of guessing among the valid answers."""
WORDS = (*NAMES, *CELLS, *DIALECTS, "flash", "user", "assistant", "system")
"""The whole vocabulary, for `tokenizer.word_level`."""
EVENT_LENGTHS = {1: 0.12, 2: 0.08, 4: 0.12, 8: 0.18, 16: 0.25, 32: 0.25}
"""Length of an event in frames → its probability."""
SHARED = 0.4, 0.7
"""Probability that a quadrant has the board's colour, and a cell its quadrant's."""
VARIED = 0.3, 0.5
"""The same on the clips of pretraining, which teach every cell."""
_PALETTE = np.array(list(COLOURS.values()), np.uint8)


@dataclass(frozen=True)
class Scene:
    """The content of a clip: `board[i]` is the colour index of cell i, row-major.

    The event begins at frame `start`, perhaps before the clip, and may end after it.
    """

    board: tuple[int, ...]
    ground: int
    flash: int
    start: int
    length: int
    num_frames: int


def make_scene(rng: np.random.Generator, num_frames: int = 32) -> Scene:
    """Return a random scene. An event may be cut by the clip's ends, and one frame shows it."""
    length = int(rng.choice(list(EVENT_LENGTHS), p=list(EVENT_LENGTHS.values())))
    start = int(rng.integers(1 - length, num_frames))
    return _scene(rng, SHARED, start, length, num_frames)


def make_pair(rng: np.random.Generator) -> Scene:
    """Return a scene of two frames, one of which is lit."""
    return _scene(rng, VARIED, int(rng.integers(2)), 1, 2)


def _scene(rng, shared, start, length, num_frames) -> Scene:
    of_quadrant, of_cell = shared
    draw = rng.integers
    quadrants = np.where(rng.random((2, 2)) < of_quadrant, draw(8), draw(8, size=(2, 2)))
    cells = quadrants.repeat(2, axis=0).repeat(2, axis=1)
    board = np.where(rng.random((SIDE, SIDE)) < of_cell, cells, draw(8, size=(SIDE, SIDE)))
    ground, flash = draw(8, size=2).tolist()
    return Scene(tuple(board.ravel().tolist()), ground, flash, start, length, num_frames)


def render(scene: Scene, size: int = 32) -> np.ndarray:
    """Return the frames of a clip, uint8 [T, size, size, 3]."""
    cell = size // SIDE
    y, x = np.mgrid[:cell, :cell] - (cell - 1) / 2
    square = np.maximum(abs(x), abs(y)) <= 0.32 * cell
    mask = np.tile(square, (SIDE, SIDE))[..., None]
    board = _PALETTE[np.array(scene.board)].reshape(SIDE, SIDE, 3)
    board = board.repeat(cell, axis=0).repeat(cell, axis=1)
    dim = (_PALETTE[scene.ground] * 0.35).astype(np.uint8)
    lit = (_PALETTE[scene.flash] * 0.5 + 90).clip(0, 255).astype(np.uint8)
    frames = np.repeat(np.where(mask, board, dim)[None], scene.num_frames, axis=0)
    frames[max(0, scene.start) : scene.start + scene.length] = np.where(mask, board, lit)
    return frames.astype(np.uint8)


def turns_of(seed: int) -> np.ndarray:
    """Return int [NEW + KNOWN]: the places by which each dialect turns the circle of colours.

    A seed draws those of the new dialects; the known ones are the same for all seeds.
    """
    new = np.random.default_rng([seed, 1]).integers(len(NAMES), size=NEW)
    return np.concatenate([new, np.arange(KNOWN) % len(NAMES)])


def question(scene: Scene, task: str, rng: np.random.Generator, turns, known: bool) -> dict:
    """Return {task, question, answer, prompt, valid}, of a random cell or dialect.

    `valid` holds all replies in the form of an answer, as `CHANCE` counts them.

    Args:
      turns: from `turns_of`.
      known: ask for known dialects, all equally often, in place of the new ones.
    """
    if task == "flash":
        text, colour = "flash", scene.flash
    elif task == "cell":
        i = int(rng.integers(SIDE * SIDE))
        text, colour = CELLS[i], scene.board[i]
    else:
        shares = 1 / np.arange(1, NEW + 1)
        i = NEW + int(rng.integers(KNOWN)) if known else rng.choice(NEW, p=shares / shares.sum())
        text, colour = DIALECTS[i], (scene.ground + turns[i]) % len(NAMES)
    return dict(task=task, question=text, answer=NAMES[colour], prompt=text, valid=list(NAMES))


def caption(scene: Scene, asked, rng: np.random.Generator, turns, known: bool = False) -> str:
    """Return questions with their answers, in random order.

    Args:
      asked: ((task, number of questions), …).
    """
    tasks = rng.permutation([task for task, count in asked for _ in range(count)])
    pairs = [question(scene, task, rng, turns, known) for task in tasks]
    return " ".join(f"{q['prompt']} {q['answer']}" for q in pairs)


# --- files ---


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` over the closed vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    word_level(WORDS).save(str(folder / "tokenizer.json"))


_STREAMS = {"pairs": 2, "train": 3, "val": 4, "test": 5}
"""Kind of clips → its stream of random numbers, so that no clip is of two kinds."""


def write_clips(
    folder: Path, kind: str, count: int, *, turns, seed, num_frames, size, captions=1, on_done=None
) -> None:
    """Write `{kind}/*.mp4` (H.264, one frame a second) and their annotations.

    `pairs` are clips of two frames, for pretraining, and `train` are those to finetune on, in
    `{kind}.json`; `val` and `test` have one question a task and clip in `{kind}.jsonl`. Existing
    clips are kept, so an interrupted call continues; clip i does not depend on `count`.

    Args:
      turns: ((task, questions in a caption), …).
      captions: conversations a clip, of pairs and training clips.
    """
    (folder / kind).mkdir(parents=True, exist_ok=True)
    places, rows = turns_of(seed), []
    for i in range(count):
        rng = np.random.default_rng([seed, _STREAMS[kind], i])
        scene = make_pair(rng) if kind == "pairs" else make_scene(rng, num_frames)
        name = f"{kind}/{i:06d}.mp4"
        if not (folder / name).exists():
            write_video(folder / name, render(scene, size), fps=1)
        if kind in ("val", "test"):
            asked = [question(scene, task, rng, places, False) for task in TASKS]
            rows += [{"id": f"{kind}-{i}-{q['task']}", "video": name, **q} for q in asked]
        else:
            texts = [caption(scene, turns, rng, places, kind == "pairs") for _ in range(captions)]
            rows += [
                {"id": f"{kind}-{i}-{j}", "video": name, "conversations": _captioned(text)}
                for j, text in enumerate(texts)
            ]
        if on_done:
            on_done(i + 1)
    lines = [json.dumps(row) for row in rows]
    if kind in ("val", "test"):
        atomic.write_text(folder / f"{kind}.jsonl", "".join(f"{line}\n" for line in lines))
    else:
        atomic.write_text(folder / f"{kind}.json", "[\n" + ",\n".join(lines) + "\n]\n")


def _captioned(text: str) -> list[dict]:
    return [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": text}]
