"""Pytrees that pass between packages, and the legend of shape letters.

Model: B batch, T frames, P patches a frame, V visual tokens a frame, L sequence, S cache, D width,
F feed-forward, N query heads, K key-value heads, H head size, M answer positions.
Fitting: R runs, K factors, P parameters, I starts, B resamples.
"""

from typing import NamedTuple

import numpy as np


class Example(NamedTuple):
    """One training example, tokenised and padded; NumPy arrays without a batch axis."""

    tokens_L: np.ndarray
    """int32 ids; the placeholder id stands once for every visual token; padding on the right."""
    target_pos_M: np.ndarray
    """int32 positions whose *next* token is an answer token; padded with 0."""
    target_ids_M: np.ndarray
    """int32 ids to predict there."""
    target_weight_M: np.ndarray
    """float32: 1 on answer tokens, 0 on padding."""
    frames_THWC: np.ndarray
    """uint8 pixels; T is 0 for text-only stages."""
    query_Q: np.ndarray | None = None
    """int32 ids of the question, padded on the right, where visual tokens depend on it (QueCC)."""
    query_length: np.ndarray | None = None
    """int32 scalar."""
    index: np.ndarray | None = None
    """int32 scalar: row of the annotations, from 0."""


class Batch(NamedTuple):
    """`Example`s stacked along B: the input of a train step."""

    tokens_BL: np.ndarray
    target_pos_BM: np.ndarray
    target_ids_BM: np.ndarray
    target_weight_BM: np.ndarray
    frames_BTHWC: np.ndarray
    query_BQ: np.ndarray | None = None
    query_lengths_B: np.ndarray | None = None
    index_B: np.ndarray | None = None
