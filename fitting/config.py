"""Options of a fit, as plain data: no jax here, so that a command line can read it at once."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

FACTORS = ("lm_params", "num_frames", "tokens_per_frame")
"""The paper's factors x_N, x_T, x_V: columns of a table of runs unless others are named."""

AGGREGATES = ("median", "mean")
INITS = ("coefficient", "log-coefficient", "zero", "projected")
LOSSES = ("mse", "huber")
RESAMPLINGS = ("iid", "stratified", "wild", "bayesian", "none")
SOLVERS = ("lm", "lbfgs", "jaxopt-lm")
SPACES = ("log", "linear")
UNITS = {"lm_params": 1e9, "num_examples": 1e6}  # the paper's tables; other columns 1


@dataclass(frozen=True)
class FitConfig:
    """How to fit one law; the defaults are the paper's (Appendix D) except the cap and the solver.

    Attributes:
      form: a name in `fitting.forms.FORMS`.
      resamples: bootstrap resamples B of the runs; one member of the bag each.
      starts: random starts I of each resample; the best optimum is kept.
      seed: of the resamples and the starts; the same seed gives the same fit.
      aggregate: how members become one prediction, 'median' or 'mean'.
      exponent_cap: largest |exponent|; None for the paper's free exponents, whose optima can run
        to infinity.
      bound_exponents: whether exponents are kept >= 0 (Table 8's 'bounded positive').
      free_floor: whether the floor may go negative; in linear space only.
      space: residuals of 'log' error, as in equation 7, or of the error itself, 'linear'.
      loss: 'mse', squared residuals, or 'huber'.
      huber_delta: |residual| from which the Huber loss grows linearly; in the residual's own unit,
        log error or error.
      resampling: 'iid' over all runs (the paper's); 'stratified' within each sweep and level of
        the factor with the fewest levels, which cannot lose such a level; 'wild', residuals of the
        whole fit with random signs (HC2); 'bayesian', Dirichlet weights; 'none', one member, the
        fit to all runs.
      init: where starts come from: 'coefficient', coefficients uniform in (0, start_coefficient)
        and exponents uniform in (-start_exponent, start_exponent); 'log-coefficient', the same
        for the coefficients' logs; 'zero', all logs and exponents 0, one start; 'projected', such
        exponents and, for each, the best coefficients >= 0.
      solver: 'lm', Levenberg-Marquardt on the residuals, starts pruned and optima shared; or every
        start of every resample to its end with jaxopt's 'lbfgs', the paper's procedure, or with
        its 'jaxopt-lm'.
      units: what a factor is measured in while starts are drawn and parameters reported: None for
        1e9 of lm_params, 1e6 of num_examples and 1 of any other column; 'geomean' for geometric
        means over the runs; or {column: unit} that replaces some of the former.
      start_coefficient: see init; in error points of a scale of 100.
      start_exponent: see init.
    """

    form: str = "add-interact"
    resamples: int = 100
    starts: int = 500
    seed: int = 0
    aggregate: str = "median"
    exponent_cap: float | None = 4.0
    bound_exponents: bool = False
    free_floor: bool = False
    space: str = "log"
    loss: str = "mse"
    huber_delta: float = 1e-3
    resampling: str = "iid"
    init: str = "coefficient"
    solver: str = "lm"
    units: str | Mapping[str, float] | None = None
    start_coefficient: float = 30.0
    start_exponent: float = 1.0

    def __post_init__(self):
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"FitConfig.{name} must be one of {', '.join(allowed)}; got {value!r}"
                )
        for name, least in (("resamples", 1), ("starts", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"FitConfig.{name} must be an integer >= {least}, got {value!r}")
        for name in ("bound_exponents", "free_floor"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"FitConfig.{name} must be True or False, got {getattr(self, name)!r}"
                )
        for name in ("exponent_cap", "huber_delta", "start_coefficient", "start_exponent"):
            value = getattr(self, name)
            if not (value is None and name == "exponent_cap") and not _positive(value):
                also = " or None" * (name == "exponent_cap")
                raise ValueError(f"FitConfig.{name} must be positive{also}, got {value!r}")
        if self.free_floor and self.space != "linear":
            raise ValueError(
                "FitConfig.free_floor needs space='linear': a negative floor has no logarithm"
            )
        self._check_units()

    def _check_units(self):
        if isinstance(self.units, Mapping):
            for column, value in self.units.items():
                if not _positive(value):
                    raise ValueError(
                        f"FitConfig.units[{column!r}] must be a positive number, got {value!r}"
                    )
        elif self.units not in (None, "geomean"):
            raise ValueError(
                f"FitConfig.units must be None, 'geomean' or a mapping; got {self.units!r}"
            )

    def unit(self, column: str) -> float:
        """The unit of a column, where `units` is not 'geomean'."""
        chosen = {} if self.units is None else self.units
        return float(chosen.get(column, UNITS.get(column, 1.0)))

    def replace(self, **changes) -> "FitConfig":
        """A copy with some fields changed and the whole validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """The fields as JSON-ready values; `FitConfig(**d)` reads them back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.units, Mapping):
            fields["units"] = {name: float(value) for name, value in sorted(self.units.items())}
        return fields


_CHOICES = {
    "aggregate": AGGREGATES,
    "init": INITS,
    "loss": LOSSES,
    "resampling": RESAMPLINGS,
    "solver": SOLVERS,
    "space": SPACES,
}


def _positive(value) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value < math.inf
