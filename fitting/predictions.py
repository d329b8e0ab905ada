"""Predict with a fitted law, whether its members are of one form or of several.

The prediction is the median (or mean) of the members' predictions (Appendix D).
"""

import numpy as np

from fitting import extent
from fitting.runs import reference

BLOCK = 2048  # configurations predicted at once
ROUNDING = 1e-9  # a value so close to the end of a range is inside it


class Law:
    """Predictions, intervals and the reach of the runs, from members and fitted runs.

    A law has `config`, `factors`, `examples`, `scale`, `runs` and `member_errors`.
    """

    def member_errors(self, z) -> np.ndarray:
        """Return the error [B', X] at z [X, C] of the members that did not fail."""
        raise NotImplementedError

    @property
    def reference(self) -> float:
        """Return the size that errors are measured by: the scale, or the largest loss."""
        return reference(self.scale, self.runs.error)

    @property
    def num_members(self) -> int:
        """Return the number of members, those that failed too."""
        return len(self.status)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the factors and of n, in the order of `units` and `ranges`."""
        return self.factors if self.examples is None else (*self.factors, self.examples)

    @property
    def num_runs(self) -> int:
        """Return the number of fitted runs."""
        return len(self.runs.error)

    @property
    def ranges(self) -> np.ndarray:
        """Return the least and largest fitted value of each column, [C, 2]."""
        return np.stack([self.runs.z.min(axis=0), self.runs.z.max(axis=0)], axis=1)

    def predict(self, x, n=None) -> np.ndarray:
        """Return the error on the fitted scale, aggregated over members.

        Args:
          x: configurations [..., K] in the order of `factors`, in the CSV's units.
          n: data sizes, broadcast against [...]; None for a law without n.

        Returns:
          [...] float64.

        Raises:
          ValueError: another number of factors, n missing or not wanted, a value not positive.
        """
        return self._reduce(x, n, self._aggregate)

    def quantiles(self, x, n=None, q=(0.05, 0.5, 0.95)) -> np.ndarray:
        """Return quantiles [Q, ...] of the members' errors at x [..., K], n, without run noise."""
        q = np.atleast_1d(np.asarray(q, float))
        if not ((q >= 0) & (q <= 1)).all():
            raise ValueError(f"quantiles lie between 0 and 1, got {q.tolist()}")
        return np.moveaxis(
            self._reduce(x, n, lambda m: np.moveaxis(np.quantile(m, q, axis=-1), 0, -1)), -1, 0
        )

    def interval(self, x, n=None, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Return the members' central interval, (low [...], high [...]), without run noise."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        low, high = self.quantiles(x, n, [(1 - level) / 2, (1 + level) / 2])
        return low, high

    def predict_grid(self, x, n) -> np.ndarray:
        """Return `predict` [X, M] at every x [X, K] and every n [M], at the price of one n.

        A term is a function of x times a power of n, so the first is computed once.
        """
        members_XBM = self.predict_members_grid(x, n)
        return np.stack([self._aggregate(members_XB) for members_XB in members_XBM], axis=1)

    def outside(self, x, n=None) -> np.ndarray:
        """Return bool [..., C]: which of x [..., K] and n lie outside the range of the runs."""
        z, shape = self._inputs(x, n)
        return self._is_outside(z).reshape(*shape, -1)

    def distance(self, x, n=None) -> np.ndarray:
        """Return `extent.distance` [...] of x [..., K] and n from the hull of the runs."""
        z, shape = self._inputs(x, n)
        return extent.distance(self.runs.z, z).reshape(shape)

    def extrapolates(self, x, n=None) -> np.ndarray:
        """Return bool [...]: a value is out of its range, or all are `extent.FAR` off the hull."""
        return self.outside(x, n).any(axis=-1) | (self.distance(x, n) > extent.FAR)

    def step_extrapolates(self, num_examples, delta: float) -> np.ndarray:
        """Return bool [M]: n [M], or the n + delta that equation 9 compares it with, is outside."""
        both = np.stack([num_examples, num_examples + delta])
        return self._is_outside(both[..., None], slice(-1, None))[..., 0].any(axis=0)

    def off_scale(self, *errors) -> np.ndarray:
        """Return bool [...]: one of the errors is below 0 or above the scale; no run can be.

        A loss may be any number.
        """
        if not np.isfinite(self.scale):
            return np.zeros(np.broadcast_shapes(*map(np.shape, errors)), bool)
        return np.any([(error < 0) | (error > self.scale) for error in errors], axis=0)

    def _inputs(self, x, n) -> tuple[np.ndarray, tuple]:
        """Return z [X, C], checked, and the shape of the answer."""
        x = np.asarray(x, float)
        if x.ndim == 0 or x.shape[-1] != len(self.factors):
            got = "a single number" if x.ndim == 0 else f"{x.shape[-1]} values"
            raise ValueError(f"x needs the factors {', '.join(self.factors)} last, got {got}")
        if (n is None) != (self.examples is None):
            wants = "has no n" if self.examples is None else f"needs n, the {self.examples}"
            raise ValueError(f"this law {wants}")
        shape = x.shape[:-1]
        columns = [x[..., k] for k in range(len(self.factors))]
        if n is not None:
            n = np.asarray(n, float)
            shape = np.broadcast_shapes(shape, n.shape)
            columns.append(n)
        z = np.stack([np.broadcast_to(c, shape).reshape(-1) for c in columns], axis=-1)
        bad = ~(z > 0) | ~np.isfinite(z)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(f"{self.columns[column]} must be positive, got {z[row, column]}")
        return z, shape

    def _is_outside(self, z, columns=slice(None)) -> np.ndarray:
        low, high = self.ranges[columns].T
        return (z < low * (1 - ROUNDING)) | (z > high * (1 + ROUNDING))

    def _reduce(self, x, n, reduce) -> np.ndarray:
        z, shape = self._inputs(x, n)
        parts = [
            reduce(self.member_errors(z[i : i + BLOCK]).T) for i in range(0, max(1, len(z)), BLOCK)
        ]
        out = np.concatenate(parts)
        return out.reshape((*shape, *out.shape[1:]))

    def _aggregate(self, members) -> np.ndarray:
        """Reduce [..., B] to [...]; a sort is far faster than np.median on a long last axis."""
        if self.config.aggregate == "mean":
            return members.mean(axis=-1)
        ordered, half = np.sort(members, axis=-1), members.shape[-1] // 2
        return (ordered[..., half] + ordered[..., -1 - half]) / 2
