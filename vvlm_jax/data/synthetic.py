"""A seeded synthetic world in which more frames, tokens a frame, model size and examples each help.

A scene is a 4 × 4 board of small coloured shapes, still for the whole clip, whose background
flashes in one colour for a while, short or long, at a random time. Three questions:

- `flash` (open-ended, scored exactly): the flash's colour. Visible only if a sampled frame falls on
  it, so it needs frames.
- `cell` (open-ended, scored exactly): the colour of a named cell. It needs the position of one cell
  of 16, so tokens a frame.
- `most` (multiple choice, A–D): the most frequent colour of four. It combines sixteen facts with a
  list of options, so it needs a larger model.

All data are synthetic and resemble no benchmark.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vvlm_jax import atomic
from vvlm_jax.data.tokenizer import word_level
from vvlm_jax.data.video import write_video

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 50),
    "pink": (240, 110, 220),
    "white": (245, 245, 245),
}
NAMES = tuple(COLOURS)
SIDE = 4
CELLS = tuple(f"{row}{col}" for row in "abcd" for col in "1234")
LETTERS = "ABCD"
_LIST_LETTERS = "ABCDEF"
TASKS = ("flash", "cell", "most")
CHANCE = {"flash": 100 / len(NAMES), "cell": 100 / len(NAMES), "most": 100 / len(LETTERS)}
"""Expected score, 0–100, of guessing among the valid answers."""
WORDS = (
    *NAMES,
    *CELLS,
    *(f"{cell}{colour}" for cell in CELLS for colour in NAMES),
    *(f"flash{colour}" for colour in NAMES),
    *_LIST_LETTERS,
    *("which", "what", "colour", "flashes", "is", "at", "most", "frequent", "?"),
    *("describe", "sort", "user", "assistant", "system"),
)
"""The whole vocabulary of questions and captions, for `tokenizer.word_level`."""
_GROUND = (70, 70, 78)


@dataclass(frozen=True)
class Scene:
    """The content of a clip: `board[i]` is the colour index of cell i, row-major."""

    board: tuple[int, ...]
    shapes: tuple[int, ...]
    flash: int
    flash_start: int
    flash_length: int
    num_frames: int


def make_scene(rng: np.random.Generator, num_frames: int = 16, flash_lengths=(2,)) -> Scene:
    """Return a random scene; the flash has one of the lengths and is inside the clip."""
    flash_length = int(rng.choice(flash_lengths))
    return Scene(
        board=tuple(rng.integers(len(NAMES), size=SIDE * SIDE).tolist()),
        shapes=tuple(rng.integers(3, size=SIDE * SIDE).tolist()),
        flash=int(rng.integers(len(NAMES))),
        flash_start=int(rng.integers(num_frames - flash_length + 1)),
        flash_length=flash_length,
        num_frames=num_frames,
    )


def _shape_masks(cell: int) -> np.ndarray:
    """Return bool [3, cell, cell]: a square, a disc and a diamond, about 60% of a cell wide."""
    y, x = np.mgrid[:cell, :cell] - (cell - 1) / 2
    r = 0.32 * cell
    return np.stack(
        [
            np.maximum(abs(x), abs(y)) <= r,
            x**2 + y**2 <= (1.15 * r) ** 2,
            abs(x) + abs(y) <= 1.45 * r,
        ]
    )


def render(scene: Scene, size: int = 48) -> np.ndarray:
    """Return the frames of a clip, uint8 [T, size, size, 3]."""
    cell = size // SIDE
    masks = _shape_masks(cell)[list(scene.shapes)]
    mask = masks.reshape(SIDE, SIDE, cell, cell).transpose(0, 2, 1, 3).reshape(size, size, 1)
    palette = np.array(list(COLOURS.values()), np.uint8)
    board = palette[np.array(scene.board)].reshape(SIDE, SIDE, 3).repeat(cell, 0).repeat(cell, 1)
    still = np.where(mask, board, np.array(_GROUND, np.uint8))
    lit = np.where(mask, board, palette[scene.flash] // 2 + 20)
    frames = np.repeat(still[None], scene.num_frames, axis=0)
    frames[scene.flash_start : scene.flash_start + scene.flash_length] = lit
    return frames.astype(np.uint8)


def question(
    scene: Scene, task: str, rng: np.random.Generator, cells=range(SIDE * SIDE)
) -> dict | None:
    """Return {task, question, answer, prompt} and, for multiple choice, options and reply.

    Only the given `cells` count. Return None when `most` has no single most frequent colour.
    """
    if task == "flash":
        return _open(task, "which colour flashes ?", NAMES[scene.flash])
    if task == "cell":
        i = int(rng.choice(list(cells)))
        return _open(task, f"what is at {CELLS[i]} ?", f"{CELLS[i]} {NAMES[scene.board[i]]}")
    counts = np.bincount([scene.board[i] for i in cells], minlength=len(NAMES))
    lead = int(counts.argmax())
    if (counts == counts[lead]).sum() > 1:
        return None
    others = rng.permutation([c for c in range(len(NAMES)) if c != lead])[: len(LETTERS) - 1]
    options = [NAMES[c] for c in rng.permutation([lead, *others])]
    return _choice(
        task, "which colour is most frequent ?", options, LETTERS[options.index(NAMES[lead])]
    )


def _open(task, text, answer):
    return {"task": task, "question": text, "answer": answer, "prompt": text}


def _choice(task, text, options, letter):
    listed = " ".join(f"{letter} {name}" for letter, name in zip(LETTERS, options, strict=True))
    return {
        "task": task,
        "question": text,
        "options": options,
        "answer": letter,
        "prompt": f"{text} {listed}",
        "reply": f"{options[LETTERS.index(letter)]} {letter}",
    }


def valid_replies(row: dict) -> list[str]:
    """Return all replies in the form of an answer to a validation question, as `CHANCE` counts."""
    if row["task"] == "most":
        return [f"{name} {letter}" for letter, name in zip(LETTERS, row["options"], strict=True)]
    place = row["answer"].split()[:-1]
    return [" ".join([*place, name]) for name in NAMES]


def caption(scene: Scene, cells=range(SIDE * SIDE), lit: bool = True) -> str:
    """Return the given cells with their colours in reading order; then the flash, if lit."""
    words = [f"{CELLS[i]}{NAMES[scene.board[i]]}" for i in sorted(cells)]
    return " ".join(words + [f"flash{NAMES[scene.flash]}"] * lit)


def conversation(scene: Scene, turns, rng: np.random.Generator) -> list[dict]:
    """Return a LLaVA conversation about a clip: `turns` is ((task, count), …), in random order.

    The request to describe the clip is last, so that no answer can be copied from it.
    """
    asked = _asked(scene, turns, rng, range(SIDE * SIDE))
    return _dialogue("<video>\n", [*asked, _describe(scene)])


def story(scene: Scene, turns, rng: np.random.Generator) -> list[dict]:
    """Return such a conversation about a text that lists some facts of a scene, in random order.

    Short lists make look-ups easy at first; describing and sorting train the same skills densely.
    """
    cells = _some_cells(rng)
    facts = caption(scene, cells).split()
    asked = [*_asked(scene, turns, rng, cells), _describe(scene, cells), _sorting(rng)]
    shuffled = [asked[i] for i in rng.permutation(len(asked))]
    return _dialogue(" ".join(rng.permutation(facts)) + "\n", shuffled)


def _some_cells(rng):
    """Return a random number of random cells, from one to all."""
    return rng.permutation(SIDE * SIDE)[: rng.integers(1, SIDE * SIDE + 1)].tolist()


def _describe(scene, cells=range(SIDE * SIDE), lit=True):
    return {"prompt": "describe", "answer": caption(scene, cells, lit)}


def _sorting(rng):
    """Return a request to sort lettered colours, which trains finding the letter of an option."""
    order = rng.permutation(len(NAMES))
    listed = " ".join(
        f"{letter} {NAMES[c]}" for letter, c in zip(_LIST_LETTERS, order, strict=True)
    )
    answer = " ".join(f"{NAMES[c]} {_LIST_LETTERS[i]}" for c, i in enumerate(np.argsort(order)))
    return {"prompt": f"sort {listed}", "answer": answer}


def _askable(rng, num_frames, flash_lengths):
    """Return a scene with a single most frequent colour."""
    while True:
        scene = make_scene(rng, num_frames, flash_lengths)
        if question(scene, "most", rng):
            return scene


def quizzes(rng, count, num_frames, flash_lengths):
    """Yield `count` scenes with one question a task, every answer equally often (to within one).

    A model that always gives the same answer then scores exactly `CHANCE`.
    """
    targets = [rng.permutation(np.arange(count) % len(NAMES)) for _ in TASKS]
    letters = rng.permutation(np.arange(count) % len(LETTERS))
    lengths = rng.permutation(np.resize(flash_lengths, count))
    for flash, colour, most, letter, length in zip(*targets, letters, lengths, strict=True):
        cells = []
        while not cells:
            scene = _askable(rng, num_frames, (length,))
            turn = most - np.bincount(scene.board).argmax()
            board = tuple(((np.array(scene.board) + turn) % len(NAMES)).tolist())
            scene = replace(scene, flash=int(flash), board=board)
            cells = [i for i, c in enumerate(board) if c == colour]
        quiz = {task: question(scene, task, rng) for task in ("flash", "most")}
        quiz["cell"] = question(scene, "cell", rng, cells)
        while quiz["most"]["answer"] != LETTERS[letter]:
            quiz["most"] = question(scene, "most", rng)
        yield scene, [quiz[task] for task in TASKS]


def _asked(scene, turns, rng, cells):
    """Return the questions of a conversation, in random order."""
    tasks = [task for task, count in turns for _ in range(count)]
    asked = [question(scene, task, rng, cells) for task in rng.permutation(tasks)]
    return [q for q in asked if q]


def _dialogue(opening, questions):
    turns = []
    for i, q in enumerate(questions):
        turns.append({"from": "human", "value": (opening if i == 0 else "") + q["prompt"]})
        turns.append({"from": "gpt", "value": q.get("reply", q["answer"])})
    return turns


# --- files ---


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` over the closed vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    word_level(WORDS).save(str(folder / "tokenizer.json"))


def write_stories(folder: Path, count: int, turns, seed: int) -> None:
    """Write `stories.json`: text-only conversations for language-model pretraining."""
    rng = np.random.default_rng([seed, 1])
    _write_json(
        folder / "stories.json",
        [
            {"id": f"story-{i}", "conversations": story(make_scene(rng), turns, rng)}
            for i in range(count)
        ],
    )


def write_captions(folder: Path, count: int, size: int, seed: int, on_done=None) -> None:
    """Write `captions.json` and `pictures/*.png`: captioned single frames, half lit by a flash."""
    rng = np.random.default_rng([seed, 2])
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        scene = make_scene(rng, num_frames=2, flash_lengths=(1,))
        name = f"pictures/{i:06d}.png"
        if not (folder / name).exists():
            with atomic.replacing(folder / name) as partial:
                Image.fromarray(render(scene, size)[0]).save(partial)
        asked = _describe(scene, lit=scene.flash_start == 0)
        turns = _dialogue("<image>\n", [asked])
        rows.append({"id": f"caption-{i}", "image": name, "conversations": turns})
        if on_done:
            on_done(i + 1)
    _write_json(folder / "captions.json", rows)


def write_videos(
    folder: Path,
    split: str,
    count: int,
    turns,
    *,
    num_frames,
    flash_lengths,
    size,
    seed,
    on_done=None,
):
    """Write `{split}/*.mp4` (H.264, one frame a second) and their annotations.

    `train` writes `train.json`, one conversation a clip; any other split writes `{split}.jsonl`,
    one question a task and clip, answers balanced. Splits draw from different seeds, so no clip is
    in two of them. Existing files are kept, so an interrupted call continues.
    """
    rng = np.random.default_rng([seed, {"train": 3, "val": 4, "test": 5}[split]])
    (folder / split).mkdir(parents=True, exist_ok=True)
    rows = []
    if split == "train":
        scenes = ((_askable(rng, num_frames, flash_lengths), []) for _ in range(count))
    else:
        scenes = quizzes(rng, count, num_frames, flash_lengths)
    for i, (scene, questions) in enumerate(scenes):
        name = f"{split}/{i:06d}.mp4"
        if not (folder / name).exists():
            write_video(folder / name, render(scene, size), fps=1)
        if split == "train":
            rows.append(
                {
                    "id": f"train-{i}",
                    "video": name,
                    "conversations": conversation(scene, turns, rng),
                }
            )
        else:
            rows += [{"id": f"{split}-{i}-{q['task']}", "video": name, **q} for q in questions]
        if on_done:
            on_done(i + 1)
    if split == "train":
        _write_json(folder / "train.json", rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        atomic.write_text(folder / f"{split}.jsonl", text)


def _write_json(path: Path, rows) -> None:
    # Atomic, because the file's presence tells that its media are complete.
    rows = ",\n".join(json.dumps(row) for row in rows)
    atomic.write_text(path, f"[\n{rows}\n]\n")
