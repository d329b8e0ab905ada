"""Read annotation files, and order examples so that smaller subsets are prefixes of larger ones."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vvlm_jax.config import ConfigError
from vvlm_jax.data import chat
from vvlm_jax.storage import files

KINDS = ("video", "image")


class Medium(NamedTuple):
    """A video or an image of a row, and how many frames of the row it is."""

    kind: str
    name: str
    num_frames: int


def read_conversations(path: str | Path) -> list[dict]:
    """Return the rows of a LLaVA-style `.json` (a list) or `.jsonl` file.

    A row has `id`, `conversations`, and optionally `video` and `image` (a path or a list of paths).

    Raises ValueError naming the file and the row when the JSON is broken, a row has no
    conversation, or a path is not a string.
    """
    path = files.path_of(path)
    try:
        rows = read_rows(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such annotation file (data.annotations)") from None
    for i, row in enumerate(rows):
        turns = row.get("conversations") if isinstance(row, dict) else None
        well_formed = isinstance(turns, list) and turns
        if not well_formed or not all(
            isinstance(t, dict) and {"from", "value"} <= t.keys() for t in turns
        ):
            raise ValueError(
                f"{path}: row {i + 1} has no `conversations` list of {{from, value}} turns"
            )
        for kind in KINDS:
            names = names_of(row, kind)
            if not all(isinstance(name, str) and name and "\0" not in name for name in names):
                raise ValueError(
                    f"{path}: row {i + 1}: {kind} = {row[kind]!r}: must be a path or a list of "
                    "paths"
                )
    return rows


def read_rows(path: Path) -> list:
    """Return the values of a `.jsonl` file or of a list in a `.json` file.

    Raises ValueError naming the file and the line.
    """
    return read_jsonl(path) if path.suffix == ".jsonl" else _read_json_list(path)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON strings may contain unpaired surrogates."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def names_of(row: dict, kind: str) -> list:
    """Return the list of a row's paths of one kind, `video` or `image`; empty without any."""
    names = row.get(kind)
    return names if isinstance(names, list) else [] if names is None else [names]


def media_in(row: dict, num_frames: int) -> list[Medium]:
    """Return the media of a row, videos first.

    A video has `num_frames` frames. An image that is the only medium of its row is repeated to
    `num_frames` frames, as in stage 1; beside other media it is one frame.
    """
    videos, images = (names_of(row, kind) for kind in KINDS)
    alone = len(videos) + len(images) == 1
    return [Medium("video", name, num_frames) for name in videos] + [
        Medium("image", name, num_frames if alone else 1) for name in images
    ]


def row_media(row: dict, num_frames: int) -> list[Medium]:
    """Return `media_in` in the order of the placeholders in the conversation.

    In a row with videos and images, `<video>` takes the next video and `<image>` the next image. In
    a row with one kind only, both take the next medium.

    Raises ValueError when the placeholders of a mixed row do not match its media one to one.
    """
    media = media_in(row, num_frames)
    if len({m.kind for m in media}) < 2:
        return media
    wanted = [place.strip("<>") for place in chat.placeholders(row["conversations"])]
    for kind in KINDS:
        asked, there = wanted.count(kind), sum(m.kind == kind for m in media)
        if asked != there:
            raise ValueError(f"conversation has {asked} <{kind}> placeholders for {there} {kind}s")
    queues = {kind: iter([m for m in media if m.kind == kind]) for kind in KINDS}
    return [next(queues[kind]) for kind in wanted]


def read_jsonl(path: str | Path) -> list[dict]:
    """Return the JSON value of every line; skip empty lines. ValueError names file and line."""
    rows = []
    for number, line in enumerate(files.read_text(files.path_of(path)).split("\n"), 1):
        if line.strip():
            rows.append(_parsed(path, line, number))
    return rows


def _read_json_list(path: Path) -> list:
    rows = _parsed(path, files.read_text(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must be a JSON list of examples")
    return rows


def _parsed(path, text: str, line: int | None = None):
    """Return the JSON value of a file, or of one of its lines."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: line {line or e.lineno} is not JSON: {e.msg}") from None
    except (
        ValueError,
        RecursionError,
    ) as e:  # a number of thousands of digits; brackets nested too deeply
        where = f"line {line} is" if line else "is"
        raise ValueError(f"{path}: {where} not readable JSON: {e}") from None


def nested_subset(total: int, num_examples: int | None, seed: int) -> np.ndarray:
    """Return int64 [n], the first n of `total` examples in an order that the seed fixes.

    A smaller set is a prefix of every larger one. None takes all. Raises ConfigError when n is not
    in 1..total.
    """
    n = total if num_examples is None else num_examples
    if not 1 <= n <= total:
        raise ConfigError(
            f"data.num_examples = {n}: must be from 1 to {total}, the number of examples"
        )
    return np.random.default_rng(seed).permutation(total)[:n]
