"""Costs of one example at inference: the paper's equation 1, actual FLOPs, a measured table.

A cost model, everywhere in this package, is a function from configurations [..., K] to a cost
[...]. `PAPER` and `ActualFlops` read (lm_params, num_frames, tokens_per_frame) in that order; a
`CostTable` reads the columns of its own file, in any unit.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fitting.expressions import Formula


def inference_flops(
    lm_params, num_frames, tokens_per_frame, *, vision_params, features_per_frame
) -> np.ndarray:
    """Return the FLOPs to read one video: c = 2 x_T (x_M x_W + x_N x_V), equation 1.

    Text tokens and decoding are disregarded, as in the paper.

    Args:
      lm_params: x_N, language-model parameters without the input embedding, any shape.
      num_frames: x_T, frames per video, broadcast against the others.
      tokens_per_frame: x_V, visual tokens the language model reads per frame.
      vision_params: x_M, parameters of the vision model.
      features_per_frame: x_W, features (patches) the vision model computes per frame.

    Returns:
      FLOPs per example, float64, of the broadcast shape.
    """
    lm_params, num_frames, tokens_per_frame = (
        np.asarray(value, np.float64) for value in (lm_params, num_frames, tokens_per_frame)
    )
    return 2.0 * num_frames * (vision_params * features_per_frame + lm_params * tokens_per_frame)


@dataclass(frozen=True)
class CostConstants:
    """Equation 1 with the vision model fixed: call it with configurations [..., 3].

    Attributes:
      vision_params: x_M, parameters of the vision model.
      features_per_frame: x_W, features computed per frame.
    """

    vision_params: float
    features_per_frame: float

    def __call__(self, x) -> np.ndarray:
        """Return FLOPs [...] of x [..., 3]: lm_params, num_frames, tokens_per_frame."""
        return inference_flops(
            *_three(x), vision_params=self.vision_params, features_per_frame=self.features_per_frame
        )


PAPER = CostConstants(vision_params=0.43e9, features_per_frame=768)
"""SoViT-400m/14 as section 3 of the paper counts it: 768 is its constant, and Table 6's."""


# --- the actual FLOPs ---


class LanguageShape(NamedTuple):
    """A Llama 3.x decoder; vocabulary 128,256, three matrices in each MLP."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tied: bool

    @property
    def block(self) -> int:
        """Return the number of weights in one block's matrices."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        return self.width * (self.head_dim * heads + 3 * self.mlp_dim)

    @property
    def lm_params(self) -> int:
        """Return x_N: parameters without the input embedding; a tied head is that embedding."""
        norms = (2 * self.depth + 1) * self.width
        return self.depth * self.block + norms + (not self.tied) * self.width * VOCAB

    def flops(self, length) -> np.ndarray:
        """Return FLOPs of a causal pass over `length` tokens, one position through the head.

        Two a multiply-add; position i attends to i + 1 positions, so attention counts half.
        """
        length = np.asarray(length, np.float64)
        scores = length * (length + 1) * self.num_heads * self.head_dim
        return 2 * (self.depth * (length * self.block + scores) + self.width * VOCAB)


class VisionShape(NamedTuple):
    """A ViT whose last block is not run: the projector reads the features of the one before."""

    width: int
    blocks_run: int
    mlp_dim: int
    patch_size: int

    def flops(self, features) -> float:
        """Return FLOPs of one frame of `features` patches; every patch attends to all."""
        embedding = 3 * self.patch_size**2 * self.width
        block = 4 * self.width**2 + 2 * self.width * self.mlp_dim + 2 * features * self.width
        return 2.0 * features * (embedding + self.blocks_run * block)


VOCAB = 128_256
LLAMA = (
    LanguageShape(2048, 16, 8192, 32, 8, 64, tied=True),
    LanguageShape(3072, 28, 8192, 24, 8, 128, tied=True),
    LanguageShape(4096, 32, 14336, 32, 8, 128, tied=False),
)
"""Llama 3.2 1B and 3B, Llama 3.1 8B, from their published config.json (Hugging Face); the paper's
1B, 2.8B and 7.5B without the input embedding."""
SOVIT = VisionShape(width=1152, blocks_run=26, mlp_dim=4304, patch_size=14)
"""SoViT-400m/14 (Alabdulmohsin et al., arXiv 2305.13035): 27 blocks, of which 26 are run."""


class FlopParts(NamedTuple):
    """FLOPs [...] of one example, by model."""

    vision: np.ndarray
    projector: np.ndarray
    lm: np.ndarray


@dataclass(frozen=True)
class ActualFlops:
    """FLOPs that the models compute for one example: with attention and text, without decoding.

    Equation 1 counts parameters times tokens, and 768 features. The encoder at 384 px emits 729,
    all of which the two-layer projector reads before the tokens are pooled; attention grows with
    the square of the length.

    Attributes:
      features_per_frame: features the vision model computes per frame.
      text_tokens: tokens of the prompt beside the video.
    """

    features_per_frame: int = 729
    text_tokens: int = 100

    def __call__(self, x) -> np.ndarray:
        """Return FLOPs [...] of configurations x [..., 3]; ValueError as `parts`."""
        return sum(self.parts(x))

    def parts(self, x) -> FlopParts:
        """Return FLOPs of x [..., 3] by model.

        Raises:
          ValueError: lm_params is not within 5% of a known language model.
        """
        lm_params, num_frames, tokens_per_frame = _three(x)
        known = np.array([shape.lm_params for shape in LLAMA], np.float64)
        shape_of = np.abs(np.log(lm_params[..., None] / known)).argmin(axis=-1)
        strange = np.abs(lm_params / known[shape_of] - 1) > 0.05
        if strange.any():
            raise ValueError(
                f"no model shape for lm_params {lm_params[strange].flat[0]:.4g}; actual FLOPs are "
                f"known for {', '.join(f'{value:.3g}' for value in known)}, within 5%"
            )
        length = num_frames * tokens_per_frame + self.text_tokens
        width = np.array([shape.width for shape in LLAMA], np.float64)[shape_of]
        frame = self.features_per_frame
        return FlopParts(
            num_frames * SOVIT.flops(frame),
            2.0 * num_frames * frame * width * (SOVIT.width + width),
            np.choose(shape_of, [shape.flops(length) for shape in LLAMA]),
        )


# --- a formula ---


@dataclass(frozen=True)
class CostFormula:
    """An arithmetic expression of the factors as a cost model, such as 6*N*D.

    Attributes:
      text: as `fitting.expressions.Formula` reads it; raises ValueError for anything else.
      factors: names of the K factors, in the order of x.
    """

    text: str
    factors: tuple[str, ...]

    def __post_init__(self):
        Formula(self.text, self.factors)

    def __call__(self, x) -> np.ndarray:
        """Return costs [...] of x [..., K]; ValueError names one that is not positive."""
        x = np.asarray(x, np.float64)
        value = Formula(self.text, self.factors)(x)
        bad = ~(np.isfinite(value) & (value > 0))
        if bad.any():
            row = x[bad][0]
            where = ", ".join(f"{k}={v:g}" for k, v in zip(self.factors, row, strict=True))
            raise ValueError(
                f"{self.text!r} costs {value[bad].flat[0]:g} for {where}; a cost must be "
                "a positive number"
            )
        return value


# --- a measured table ---


@dataclass(frozen=True, eq=False)
class CostTable:
    """Measured costs, such as latencies: a cost model with its own domain.

    Attributes:
      factors: names of the K factor columns.
      x: configurations [X, K].
      cost: [X], in the unit of the file.
      column: name of the cost column.
      source: the file's name, for messages.
    """

    factors: tuple[str, ...]
    x: np.ndarray
    cost: np.ndarray
    column: str
    source: str

    def configurations(self) -> np.ndarray:
        """Return the measured configurations [X, K]."""
        return self.x

    def __call__(self, x) -> np.ndarray:
        """Return costs [...] of x [..., K]; ValueError names a configuration without a cost."""
        x = np.asarray(x, np.float64)
        known = {tuple(row): value for row, value in zip(self.x, self.cost, strict=True)}
        rows = [tuple(row) for row in x.reshape(-1, len(self.factors))]
        for row in rows:
            if row not in known:
                near = self.x[np.abs(np.log(self.x / row)).sum(axis=1).argmin()]
                raise ValueError(
                    f"{self.source}: no {self.column} for {self._text(row)}; the nearest of "
                    f"{len(self.x)} is {self._text(near)}"
                )
        return np.array([known[row] for row in rows]).reshape(x.shape[:-1])

    def _text(self, row) -> str:
        return ", ".join(f"{k}={v:.6g}" for k, v in zip(self.factors, row, strict=True))


def read_costs(path, factors, column: str | None = None) -> CostTable:
    """Read a CSV with the factor columns and a cost column; # lines are comments.

    Args:
      path: UTF-8, a header, one line a configuration.
      factors: names of the K factor columns.
      column: the cost column; by default the only other column.

    Raises:
      ValueError: one line, naming file, row, column and value.
      FileNotFoundError: one line.
    """
    path, factors = Path(path), tuple(factors)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of costs")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(line for line in file if line.strip() and line[0] != "#"))
    if not rows:
        raise ValueError(f"{path}: no rows; it needs {', '.join(factors)} and a cost")
    header = list(rows[0])
    others = [name for name in header if name not in factors]
    if column is None and len(others) == 1:
        column = others[0]
    for name in (*factors, column):
        if name is None:
            raise ValueError(
                f"{path}: which column is the cost? It has {', '.join(header)}; say {path}:COLUMN"
            )
        if name not in header:
            raise ValueError(f"{path}: no column {name!r}; there are {', '.join(header)}")
    values = np.array(
        [
            [_positive(row[name], f"{path}, row {i}: {name}") for name in (*factors, column)]
            for i, row in enumerate(rows, start=1)
        ]
    )
    seen = {}
    for i, row in enumerate(map(tuple, values[:, :-1]), start=1):
        if row in seen:
            raise ValueError(f"{path}, row {i}: the configuration of row {seen[row]} again")
        seen[row] = i
    return CostTable(factors, values[:, :-1], values[:, -1], column, str(path))


def _positive(text, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value < float("inf"):
        raise ValueError(f"{where} is {text!r}; it must be a positive number")
    return value


def _three(x) -> np.ndarray:
    """Return x [..., 3] as three arrays [...]."""
    x = np.asarray(x, np.float64)
    if x.shape[-1:] != (3,):
        raise ValueError(
            f"a cost needs x [..., 3] = lm_params, num_frames, tokens_per_frame; got {x.shape}"
        )
    return np.moveaxis(x, -1, 0)
