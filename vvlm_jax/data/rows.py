"""Open the rows that a run chooses from: an annotation file or a prepared data set."""

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vvlm_jax.data import chat
from vvlm_jax.data.datasets import read_conversations
from vvlm_jax.data.prepared import PreparedRows, is_prepared
from vvlm_jax.storage import files


def open_rows(annotations: str | Path) -> list[dict] | PreparedRows:
    """Return the rows of a LLaVA-style file, or of a folder that `vvlm prepare` made.

    Raises ValueError naming the path when it is neither.
    """
    path = files.path_of(annotations)
    if is_prepared(path):
        return PreparedRows(path)
    if path.is_dir():
        raise ValueError(f"{path}: not a data set that vvlm prepare made (data.annotations)")
    return read_conversations(path)


def count_rows(annotations: str | Path) -> int:
    """Return the number of rows."""
    return len(open_rows(annotations))


class Chosen(Sequence):
    """A selection of rows in a given order. Rows of a prepared set stay on disk."""

    def __init__(self, rows: list[dict] | PreparedRows, numbers_N: np.ndarray):
        self.numbers_N, self._prepared = numbers_N, None
        if isinstance(rows, PreparedRows):
            self._prepared = rows
        else:  # drop the other rows
            self._rows = [rows[i] for i in numbers_N]

    def __len__(self) -> int:
        return len(self.numbers_N)

    def __getitem__(self, place) -> dict:
        if self._prepared is not None:
            return self._prepared[self.numbers_N[place]]
        return self._rows[place]

    def most_tokens(self, places, system: str) -> list[int]:
        """Return `chat.most_tokens` of the rows at these places, without reading prepared rows."""
        if self._prepared is None:
            return [chat.most_tokens(self[place]["conversations"], system) for place in places]
        more = chat.most_tokens([], system) - chat.most_tokens([])
        return (self._prepared.most_tokens[self.numbers_N[places]] + more).tolist()

    def kinds(self) -> Iterator[dict]:
        """Yield rows that cover every combination of media counts: all selected rows, or one dummy
        row for each combination that a prepared set lists in its card.
        """
        if self._prepared is None:
            yield from self._rows
            return
        for videos, images in self._prepared.card["kinds"]:
            yield {"video": ["?"] * videos, "image": ["?"] * images}

    def checksum(self) -> int:
        """Return a checksum of the selected rows and their order."""
        if self._prepared is None:
            names = "\n".join(
                f"{row.get('id')} {row.get('video')} {row.get('image')}" for row in self._rows
            )
            return zlib.crc32(names.encode())
        numbers = self.numbers_N.astype("<i8").tobytes()
        return zlib.crc32(numbers, self._prepared.card["fingerprint"])
