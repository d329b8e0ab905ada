"""Search for the largest microbatch and the least remat that fit, with few compiles."""

import functools
import math
from collections.abc import Callable

import numpy as np

from vvlm_jax.compile.programs import Measured
from vvlm_jax.config import TrainConfig, visual_length

SURE = 1.15
"""A choice predicted to need more than this multiple of the limit is not compiled."""


def search(
    rows: list[int],
    remats,
    limit: float,
    at: Callable[[int, object], Measured],
    predict: Callable[[int, object], float | None] = lambda r, remat: None,
):
    """Return (rows, remat, Measured): the largest rows that fit with the most remat, then the least
    remat that fits with these rows. If nothing fits, the fewest rows with the most remat.

    Memory is nearly affine in the rows, so a prediction, or two compiles, tell where to search.
    The choice itself is always compiled. The next larger choice is compiled, too, and does not fit,
    unless its prediction is far beyond the limit (`SURE`).

    Args:
      rows: rows of a microbatch, ascending.
      remats: remat policies, from the least to the most.
      limit: bytes of a chip.
      at: compiles a choice.
      predict: predicts the bytes of a choice; None where it cannot.
    """
    at, most, known = functools.cache(at), remats[-1], {}

    def compiled(r: int):
        """Compile with the remat predicted to fit, then with the most: (index, Measured)."""
        first = _least_predicted(r, remats, predict, limit)
        measured = at(r, remats[first])
        if measured.fits or first == len(remats) - 1:
            return first, measured
        return len(remats) - 1, at(r, most)

    low, high, found = -1, len(rows), None  # rows[low] fits, rows[high] does not
    # Less remat needs more memory: if all rows fit with less remat, they fit with the most.
    if (first := _least_predicted(rows[-1], remats, predict, limit)) < len(remats) - 1:
        measured = at(rows[-1], remats[first])
        if measured.fits:
            low, found = len(rows) - 1, (first, measured)
    while high - low > 1:
        expected = [predict(r, most) for r in rows]
        if guessing := None in expected:
            expected = _extrapolated(known, rows)
        guess = low + 1
        if (known or found) and expected[guess] > SURE * limit:
            break
        guess = max([guess, *(i for i in range(low + 1, high) if expected[i] < limit)])
        r = rows[guess]
        first, measured = (len(remats) - 1, at(r, most)) if guessing else compiled(r)
        if remats[first] == most:
            known[rows[guess]] = measured
        if measured.fits:
            low, found = guess, (first, measured)
        else:
            high = guess
    if found is None:
        return rows[0], most, at(rows[0], most)
    first, measured = found
    return rows[low], *_least_remat(rows[low], remats, first, measured, limit, at, predict)


def _least_predicted(r: int, remats, predict, limit: float) -> int:
    """Return the index of the least remat that is predicted to fit, among the policies after the
    last one that is predicted not to; the most remat if none is predicted to fit.
    """
    found = len(remats) - 1
    for i in reversed(range(len(remats))):
        expected = predict(r, remats[i])
        if expected is not None and expected >= limit:
            break
        if expected is not None:
            found = i
    return found


def _least_remat(r: int, remats, first: int, measured: Measured, limit: float, at, predict):
    """Return (remat, Measured) with the least remat that fits r rows; `remats[first]` does."""
    remat, rest = remats[first], list(remats[:first])
    while rest:
        # Each policy needs less memory than the one before. Without predictions the next one below
        # `remat` is tried.
        guess, expected = _least_predicted(r, rest, predict, limit), predict(r, rest[-1])
        if expected is not None and expected > SURE * limit:
            break
        less = at(r, rest[guess])
        if less.fits:
            remat, measured, rest = rest[guess], less, rest[:guess]
        else:
            rest = rest[guess + 1 :]
    return remat, measured


def _extrapolated(known: dict[int, Measured], rows: list[int]) -> list[float]:
    """Return the bytes for each of `rows`, on the line through the two largest known. With fewer
    than two known it is NaN, but for the smallest rows, which are then tried first.
    """
    known = {r: m.needed for r, m in sorted(known.items()) if math.isfinite(m.needed)}
    if len(known) < 2:
        return [1.0 if i == 0 and not known else math.nan for i in range(len(rows))]
    (r1, n1), (r2, n2) = list(known.items())[-2:]
    return [n2 + (n2 - n1) / (r2 - r1) * (r - r2) for r in rows]


class Memory:
    """Memory of train steps, predicted from those measured with the same language model and remat.

    The prediction is a linear fit with three terms: one that is divided among the chips, one for
    each frame, and one for each position of the microbatch's rows.

    Args:
      chips: number of chips.
      elsewhere: a predictor from measurements on another topology, used where there are too few
        for this one.
    """

    def __init__(self, chips: int, elsewhere: "Memory | None" = None):
        self.chips, self.elsewhere = chips, elsewhere
        self._measured: dict = {}

    def add(self, config: TrainConfig, rows: int, needed: float) -> None:
        """Add a measurement; NaN is ignored."""
        if math.isfinite(needed):
            of_kind = self._measured.setdefault(self._kind(config), {})
            of_kind[self._features(config, rows, self.chips)] = needed

    def predict(self, config: TrainConfig, rows: int, chips: int | None = None) -> float | None:
        """Return the bytes, or None with too few measurements, or none near this config."""
        chips = chips or self.chips
        expected = self._fitted(config, rows, chips)
        if expected is None and self.elsewhere is not None:
            return self.elsewhere.predict(config, rows, chips)
        return expected

    def _fitted(self, config: TrainConfig, rows: int, chips: int) -> float | None:
        known = self._measured.get(self._kind(config), {})
        if (itself := known.get(self._features(config, rows, chips))) is not None:
            return itself
        if len(known) <= 3:
            return None
        features, scale = np.array(list(known)), np.array(list(known)).max(axis=0)
        features, here = features / scale, np.array(self._features(config, rows, chips)) / scale
        if np.linalg.matrix_rank(features, tol=1e-3) < 3:
            return None
        inverse = np.linalg.pinv(features)
        # The leverage tells how far this config is from the measured ones.
        if here @ inverse @ inverse.T @ here > 4:
            return None
        return float(here @ inverse @ np.array(list(known.values())))

    def _kind(self, config: TrainConfig):
        return config.model.llm, config.model.remat

    def _features(self, config: TrainConfig, rows: int, chips: int):
        c = config.model
        length = visual_length(c.num_frames, c.tokens_per_frame, c.newline)
        return 1 / chips, rows * c.num_frames, rows * (length + config.data.max_text_tokens)
