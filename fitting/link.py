"""The space in which a law is a sum of terms and its residuals are taken.

A law describes the error itself, or y of the error, which no prediction can take out of bounds:

    e' = error / (scale - chance)
    logit:         y = e' / (1 - e')         odds of an error above chance
    log-accuracy:  y = -log(1 - e')          accuracy above chance is exp(-y)

Either way log y = logsumexp(terms), as log f is without a link (`fitting.forms`), so a link changes
the targets of a fit and what is made of its predictions, and nothing in between. `chance` is the
score of guessing: 25 with four choices.
"""

from typing import NamedTuple

import numpy as np

from fitting.config import FitConfig


class Space(NamedTuple):
    """Where a law is fitted, and the way back to errors.

    Attributes:
      kind: 'log', 'linear' (both without a link), 'logit' or 'log-accuracy'.
      unit: what coefficients are measured in: the scale, or 1 of y.
      ceiling: of links, the error of guessing: scale - chance.
    """

    kind: str
    unit: float
    ceiling: float

    @classmethod
    def of(cls, config: FitConfig, scale: float, reference: float) -> "Space":
        """Return the space of a fit's options.

        Args:
          config: its space, link and chance.
          scale: the error of a complete failure, infinite for a loss.
          reference: the size that errors are measured by without a link.
        """
        if config.link == "none":
            return cls(config.space, reference, scale)
        return cls(config.link, 1.0, scale - config.chance)

    @property
    def linked(self) -> bool:
        """Return whether terms add up to y in place of the error."""
        return self.kind not in ("log", "linear")

    @property
    def name(self) -> str:
        """Return what residuals are taken of, in words."""
        names = {"log": "log error", "linear": "error", "logit": "logit of the error"}
        return names.get(self.kind, "log of log accuracy")

    def forward(self, error) -> np.ndarray:
        """Return errors as residuals take them: log error, error, logit or log of -log accuracy."""
        if self.kind == "linear":
            return np.asarray(error, float)
        if not self.linked:
            return np.log(error)
        share = np.asarray(error, float) / self.ceiling
        if self.kind == "logit":
            return np.log(share) - np.log1p(-share)
        return np.log(-np.log1p(-share))

    def back(self, value) -> np.ndarray:
        """Return the errors of what `forward` gave."""
        if self.kind == "linear":
            return value
        with np.errstate(over="ignore"):
            total = np.exp(value)
        return self.of_sum(total)

    def of_sum(self, total) -> np.ndarray:
        """Return the error of a sum of terms, y; the sum itself without a link."""
        if not self.linked:
            return total
        if self.kind == "logit":
            with np.errstate(divide="ignore"):  # a sum of 0 is an error of 0
                return self.ceiling / (1 + 1 / total)
        return -self.ceiling * np.expm1(-total)

    def shifted(self, error, noise) -> np.ndarray:
        """Return errors moved by noise, which is in the units of `forward`."""
        if self.kind == "linear":
            return error + noise
        return self.back(self.forward(error) + noise) if self.linked else error * np.exp(noise)

    def slope(self, error) -> np.ndarray:
        """Return d forward / d error: what small noise of the error is in the fitted space."""
        error = np.asarray(error, float)
        if self.kind == "linear":
            return np.ones_like(error)
        if not self.linked:
            return 1 / error
        share = error / self.ceiling
        above = share if self.kind == "logit" else -np.log1p(-share)
        return 1 / (self.ceiling * above * (1 - share))
