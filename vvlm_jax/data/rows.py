"""The rows that a run chooses from, whether they lie in an annotation file or a prepared set."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vvlm_jax.data import chat
from vvlm_jax.data.datasets import read_conversations
from vvlm_jax.data.prepared import PreparedRows, is_prepared
from vvlm_jax.storage import files


def open_rows(annotations: str | Path) -> list[dict] | PreparedRows:
    """Rows of a LLaVA-style file, or of a folder that `tools.prepare` made."""
    path = files.path_of(annotations)
    if is_prepared(path):
        return PreparedRows(path)
    if path.is_dir():
        raise ValueError(f"{path}: no data set that tools.prepare made (data.annotations)")
    return read_conversations(path)


def count_rows(annotations: str | Path) -> int:
    """How many there are."""
    return len(open_rows(annotations))


class Chosen(Sequence):
    """Some of the rows, in an order. Those of a prepared set stay on disk."""

    def __init__(self, rows: list[dict] | PreparedRows, numbers_N: np.ndarray):
        self.numbers_N, self._prepared = numbers_N, None
        if isinstance(rows, PreparedRows):
            self._prepared = rows
        else:  # the others can go
            self._rows = [rows[i] for i in numbers_N]

    def __len__(self) -> int:
        return len(self.numbers_N)

    def __getitem__(self, place) -> dict:
        if self._prepared is not None:
            return self._prepared[self.numbers_N[place]]
        return self._rows[place]

    def most_tokens(self, places, system: str) -> list[int]:
        """`chat.most_tokens` of the rows at these places; of a prepared set none is read for it."""
        if self._prepared is None:
            return [chat.most_tokens(self[place]["conversations"], system) for place in places]
        more = chat.most_tokens([], system) - chat.most_tokens([])
        return (self._prepared.most_tokens[self.numbers_N[places]] + more).tolist()

    def kinds(self) -> Iterator[dict]:
        """Rows with as many media as any has: those of the choice, or one of each kind that the
        prepared set has.
        """
        if self._prepared is None:
            yield from self._rows
            return
        for videos, images in self._prepared.card["kinds"]:
            yield {"video": ["?"] * videos, "image": ["?"] * images}

    def checksum(self) -> int:
        """Of what is chosen and its order; in other data it is another."""
        if self._prepared is None:
            names = "\n".join(
                f"{row.get('id')} {row.get('video')} {row.get('image')}" for row in self._rows
            )
            return zlib.crc32(names.encode())
        numbers = self.numbers_N.astype("<i8").tobytes()
        return zlib.crc32(numbers, self._prepared.card["fingerprint"])
