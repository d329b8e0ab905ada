"""What fits, found by few compiles: where to look, and when to believe a prediction."""

import math
from collections.abc import Callable

import numpy as np

from tools._compile_programs import Measured
from vvlm_jax.config import TrainConfig, visual_length

SURE = 1.15
"""A need predicted at so many times the memory is believed without a compile."""


def search(
    rows: list[int],
    remats,
    limit: float,
    at: Callable[[int, object], Measured],
    predict: Callable[[int, object], float | None] = lambda r, remat: None,
):
    """(rows, remat, Measured): the largest rows that fit with the most remat, then the least remat
    that fits with these; the smallest with the most, not fitting, when none does.

    Memory is nearly affine in the rows, so that a prediction, or two compiles, say where to look.
    What is chosen has been compiled; that more does not fit has too, unless it was predicted far
    beyond (`SURE`).
    """
    most, known = remats[-1], {}
    low, high = -1, len(rows)  # rows[low] fits, rows[high] does not
    while high - low > 1:
        expected = [predict(r, most) for r in rows]
        if None in expected:
            expected = _extrapolated(known, rows)
        guess = low + 1
        if known and expected[guess] > SURE * limit:
            break
        guess = max([guess, *(i for i in range(low + 1, high) if expected[i] < limit)])
        known[rows[guess]] = measured = at(rows[guess], most)
        low, high = (guess, high) if measured.fits else (low, guess)
    if low < 0:
        return rows[0], most, known.get(rows[0]) or at(rows[0], most)
    found, rest = (most, known[rows[low]]), list(remats[:-1])  # from the least on
    while rest:
        expected = [predict(rows[low], remat) for remat in rest]
        # Each needs less than the one before: without predictions the next one after `found`.
        guess = len(rest) - 1
        if None not in expected:
            guess = next((i for i, x in enumerate(expected) if x < limit), guess)
            if expected[guess] > SURE * limit:
                break
        measured = at(rows[low], rest[guess])
        if measured.fits:
            found, rest = (rest[guess], measured), rest[:guess]
        else:
            rest = rest[guess + 1 :]
    return rows[low], *found


def _extrapolated(known: dict[int, Measured], rows: list[int]) -> list[float]:
    """Bytes for each of `rows`, through the two largest known. Nothing is sure below two, or where
    the compiler gave no number.
    """
    known = {r: m.needed for r, m in sorted(known.items()) if math.isfinite(m.needed)}
    if len(known) < 2:
        return [1.0 if i == 0 and not known else math.nan for i in range(len(rows))]
    (r1, n1), (r2, n2) = list(known.items())[-2:]
    return [n2 + (n2 - n1) / (r2 - r1) * (r - r2) for r in rows]


class Memory:
    """Predicts what a step needs from those measured before, of the same language model and remat:
    a part that stays, one a frame, and one a position of the microbatch's rows.
    """

    def __init__(self):
        self._measured: dict = {}

    def add(self, config: TrainConfig, rows: int, needed: float) -> None:
        """Learns from a compile."""
        if math.isfinite(needed):
            of_kind = self._measured.setdefault(self._kind(config), {})
            of_kind[self._features(config, rows)] = needed

    def predict(self, config: TrainConfig, rows: int) -> float | None:
        """Bytes; None before enough is known, or far from what is."""
        known = self._measured.get(self._kind(config), {})
        if len(known) <= 3:
            return None
        features, scale = np.array(list(known)), np.array(list(known)).max(axis=0)
        features, here = features / scale, np.array(self._features(config, rows)) / scale
        if np.linalg.matrix_rank(features, tol=1e-3) < 3:
            return None
        inverse = np.linalg.pinv(features)
        if here @ inverse @ inverse.T @ here > 4:  # its leverage: how far from all that is known
            return None
        return float(here @ inverse @ np.array(list(known.values())))

    def _kind(self, config: TrainConfig):
        return config.model.llm, config.model.remat

    def _features(self, config: TrainConfig, rows: int):
        c = config.model
        length = visual_length(c.num_frames, c.tokens_per_frame, c.newline)
        return 1.0, rows * c.num_frames, rows * (length + config.data.max_text_tokens)
