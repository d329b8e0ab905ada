"""Options of a fit, as plain data: no jax here, so that a command line can read it at once."""

import dataclasses
from dataclasses import dataclass

AGGREGATES = ("median", "mean")
RESAMPLINGS = ("iid", "stratified")
SOLVERS = ("lm", "lbfgs")


@dataclass(frozen=True)
class FitConfig:
    """How to fit one law; the defaults are the paper's (Appendix D) except the cap and the solver.

    Attributes:
      form: a name in `fitting.forms.FORMS`.
      resamples: bootstrap resamples B of the runs; one member of the bag each.
      starts: random starts I of each resample; the best optimum is kept.
      seed: of the resamples and the starts; the same seed gives the same fit.
      aggregate: how members become one prediction, 'median' or 'mean'.
      exponent_cap: largest |exponent|, kept by a smooth map; None for the paper's free exponents,
        whose optima can run to infinity.
      resampling: 'iid' over all runs, or 'stratified' within each (sweep, lm_params), which cannot
        lose a language-model size.
      solver: 'lm', Levenberg-Marquardt on the residuals, or 'lbfgs' on their squared sum.
      start_coefficient: coefficients start uniform in (0, this), in error points at the
        geometric-mean run.
      start_exponent: exponents start uniform in (-this, this).
    """

    form: str = "add-interact"
    resamples: int = 100
    starts: int = 500
    seed: int = 0
    aggregate: str = "median"
    exponent_cap: float | None = 4.0
    resampling: str = "iid"
    solver: str = "lm"
    start_coefficient: float = 30.0
    start_exponent: float = 1.0

    def __post_init__(self):
        _choice("aggregate", self.aggregate, AGGREGATES)
        _choice("resampling", self.resampling, RESAMPLINGS)
        _choice("solver", self.solver, SOLVERS)
        for name, least in (("resamples", 1), ("starts", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"FitConfig.{name} must be an integer >= {least}, got {value!r}")
        if self.exponent_cap is not None and not self.exponent_cap > 0:
            raise ValueError(
                f"FitConfig.exponent_cap must be positive or None, got {self.exponent_cap!r}"
            )
        for name in ("start_coefficient", "start_exponent"):
            if not getattr(self, name) > 0:
                raise ValueError(f"FitConfig.{name} must be positive, got {getattr(self, name)!r}")

    def replace(self, **changes) -> "FitConfig":
        """A copy with some fields changed and the whole validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """The fields as JSON-ready values; `FitConfig(**d)` reads them back."""
        return dataclasses.asdict(self)


def _choice(name: str, value, allowed: tuple):
    if value not in allowed:
        raise ValueError(f"FitConfig.{name} must be one of {', '.join(allowed)}; got {value!r}")
