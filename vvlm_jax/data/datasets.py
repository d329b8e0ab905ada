"""Annotation files to lists of conversations, and the seeded order in which subsets are nested."""

import json
from pathlib import Path

import numpy as np

from vvlm_jax.config import ConfigError


def read_conversations(path: str | Path) -> list[dict]:
    """Rows of a LLaVA-style `.json` (a list) or `.jsonl` file: `id`, `video` or `image`,
    `conversations`.

    Raises ValueError naming the file and the row when the JSON is broken or a row lacks its
    conversation.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file (data.annotations)")
    rows = read_jsonl(path) if path.suffix == ".jsonl" else _read_json_list(path)
    for i, row in enumerate(rows):
        turns = row.get("conversations") if isinstance(row, dict) else None
        well_formed = isinstance(turns, list) and turns
        if not well_formed or not all(
            isinstance(t, dict) and {"from", "value"} <= t.keys() for t in turns
        ):
            raise ValueError(
                f"{path}: row {i + 1} has no `conversations` list of {{from, value}} turns"
            )
    return rows


def read_jsonl(path: str | Path) -> list[dict]:
    """One JSON value a line; empty lines are passed over. ValueError names file and line."""
    rows = []
    for number, line in enumerate(_read_text(Path(path)).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as e:
                raise ValueError(f"{path}: line {number} is not JSON: {e.msg}") from None
    return rows


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: byte {e.start} is not UTF-8 text") from None


def _read_json_list(path: Path) -> list:
    try:
        rows = json.loads(_read_text(path))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: line {e.lineno} is not JSON: {e.msg}") from None
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must be a JSON list of examples")
    return rows


def nested_subset(total: int, num_examples: int | None, seed: int) -> np.ndarray:
    """Indices of the first n examples in an order fixed by the seed: smaller sets lie inside larger
    ones.

    Raises ConfigError when n exceeds `total`.
    """
    n = total if num_examples is None else num_examples
    if not 1 <= n <= total:
        raise ConfigError(
            f"data.num_examples = {n}: must be from 1 to {total}, the examples there are"
        )
    return np.random.default_rng(seed).permutation(total)[:n]
