"""Options of a fit, as plain data: no jax here, so that a command line can read it at once."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

FACTORS = ("lm_params", "num_frames", "tokens_per_frame")
"""The paper's factors x_N, x_T, x_V: columns of a table of runs unless others are named."""

AGGREGATES = ("median", "mean")
LINKS = ("none", "logit", "log-accuracy")
AUTO = "auto"
AUTO_FORMS = (
    "add-interact",
    "add-interact-cross",
    "add",
    "mult-plateau",
    "mult-plateau@logit",
    "mult-break@logit",
)
"""What `auto` stands for: forms that are weighed by their predictions of held-out runs."""
INITS = ("coefficient", "log-coefficient", "zero", "projected")
LOSSES = ("mse", "huber")
RESAMPLINGS = ("iid", "stratified", "wild", "bayesian", "none")
SOLVERS = ("lm", "lbfgs")
SPACES = ("log", "linear")
UNITS = {"lm_params": 1e9, "num_examples": 1e6}  # the paper's tables; other columns 1


@dataclass(frozen=True)
class FitConfig:
    """How to fit a law; the defaults are the paper's (Appendix D) except the cap and the solver."""

    form: str = "add-interact"
    """mult, add, add-interact-s, add-interact (equation 3), or another of fitting/forms.py;
    NAME@LINK for a link of its own. Several with commas, or auto, share one bag, weighted by how
    well each predicts the same held-out runs."""

    resamples: int = 100
    """Bootstrap resamples of the runs; each gives one member of the bag."""

    starts: int = 500
    """Random starts of each resample; the best optimum is kept."""

    seed: int = 0
    """Seed of resamples, starts and folds: the same seed gives the same fit."""

    aggregate: str = "median"
    """How members become one prediction: median or mean."""

    exponent_cap: float | None = 4.0
    """Largest |exponent|; none is the paper's, with optima that can run to infinity."""

    bound_exponents: bool = False
    """Keep exponents at 0 or above (Table 8)."""

    free_floor: bool = False
    """Let the floor become negative; needs linear space."""

    space: str = "log"
    """Residuals of the log error (log, equation 7) or of the error itself (linear)."""

    link: str = "none"
    """What the terms add up to: none, the error; logit, e / (1 - e), or log-accuracy,
    -log(1 - e), of e = error / (scale - chance), for scores that cannot leave their scale."""

    chance: float = 0.0
    """Score of guessing, such as 25 with four choices; used by a link."""

    loss: str = "mse"
    """mse, squared residuals, or huber."""

    huber_delta: float = 1e-3
    """Residual above which huber grows linearly: log error, or error in linear space."""

    resampling: str = "iid"
    """iid, over all runs (the paper's); stratified, within each sweep and level of the factor with
    the fewest levels, so that no level is lost; wild, residuals with random signs (HC2); bayesian,
    Dirichlet weights; none, a single fit to all runs."""

    init: str = "coefficient"
    """Starts: coefficient, uniform coefficients and exponents; log-coefficient, uniform logs; zero,
    one start of zeros; projected, the best coefficients >= 0 of random exponents."""

    solver: str = "lm"
    """lm, Levenberg-Marquardt, which prunes starts and shares optima between resamples; or lbfgs,
    the paper's procedure: L-BFGS (jaxopt) from every start of every resample to its end. Both reach
    the same optima; lbfgs takes a hundred times as long, so lm is the default."""

    units: str | Mapping[str, float] | None = None
    """Units of the factors in starts and reported parameters: geomean, geometric means of the runs;
    or COLUMN=NUMBER. By default lm_params=1e9, num_examples=1e6, and 1 for other columns."""

    fix: Mapping[str, float] | None = None
    """Parameters held at a value, NAME=NUMBER: exponents, and coefficients in error points, in the
    units of the report; such as epsilon=1.6."""

    start_coefficient: float = 30.0
    """Upper end of the uniform starts of coefficients (or their logs), in points of 100."""

    start_exponent: float = 1.0
    """Starts of exponents are uniform between minus and plus this."""

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
                raise ValueError(f"FitConfig.{name} must be a positive number{also}, got {value!r}")
        if self.free_floor and self.space != "linear":
            raise ValueError(
                "FitConfig.free_floor needs space='linear': a negative floor has no logarithm"
            )
        self._check_link()
        self._check_units()
        self._check_fix()
        if self.is_mixed or "@" in self.form:
            _ = self.forms  # each entry is checked by itself

    def _check_link(self):
        chance = self.chance
        if (
            isinstance(chance, bool)
            or not isinstance(chance, (int, float))
            or not 0 <= chance < math.inf
        ):
            raise ValueError(f"FitConfig.chance must be a number >= 0, got {chance!r}")
        if self.link != "none" and self.space != "log":
            raise ValueError(
                f"FitConfig.link={self.link!r} has a space of its own: leave space='log'"
            )
        if self.link == "none" and chance and not self.is_mixed and "@" not in self.form:
            raise ValueError(
                "FitConfig.chance is for a link, 'logit' or 'log-accuracy'; without one the law "
                "has no chance level"
            )

    def _check_units(self):
        if isinstance(self.units, Mapping):
            for column, value in self.units.items():
                if not _positive(value):
                    raise ValueError(
                        f"FitConfig.units[{column!r}] must be a positive number, got {value!r}"
                    )
        elif self.units not in (None, "geomean"):
            raise ValueError(
                "FitConfig.units must be None, 'geomean' or a mapping {column: number}; got "
                f"{self.units!r}"
            )

    @property
    def is_mixed(self) -> bool:
        """Return whether several forms share the bag."""
        return self.is_auto or "," in self.form

    @property
    def is_auto(self) -> bool:
        """Return whether the forms are those of `AUTO_FORMS`."""
        return self.form.partition("~")[0] == AUTO

    @property
    def forms(self) -> tuple["FitConfig", ...]:
        """Return the options of each form, with NAME@LINK taken apart; of one form, itself.

        Raises:
          ValueError: an entry without a name, or with an unknown link.
        """
        if not self.is_mixed and "@" not in self.form:
            return (self,)
        names, tilde, ties = self.form.partition("~")  # ties hold in all forms
        found = {}
        for entry in AUTO_FORMS if self.is_auto else names.split(","):
            name, at, link = (part.strip() for part in entry.partition("@"))
            link = link if at else self.link
            if self.is_auto and at and self.space != "log":
                continue  # a link has a space of its own
            if not name or name == AUTO:
                raise ValueError(f"FitConfig.form {self.form!r}: {entry!r} names no form")
            chance = 0.0 if link == "none" else self.chance
            one = self.replace(form=name + tilde + ties, link=link, chance=chance)
            found[one.label] = one
        return tuple(found.values())

    @property
    def label(self) -> str:
        """Return the form as it is written in a list: NAME or NAME@LINK."""
        return self.form if self.link == "none" or self.is_mixed else f"{self.form}@{self.link}"

    def _check_fix(self):
        if self.fix is None:
            return
        if not isinstance(self.fix, Mapping) or not self.fix:
            raise ValueError(f"FitConfig.fix must be None or NAME=NUMBER, got {self.fix!r}")
        for name, value in self.fix.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value):
                raise ValueError(f"FitConfig.fix[{name!r}] must be a number, got {value!r}")
        if self.solver != "lm":
            raise ValueError("FitConfig.fix needs solver='lm'")

    def unit(self, column: str) -> float:
        """Return the unit of a column, where `units` is not 'geomean'."""
        chosen = {} if self.units is None else self.units
        return float(chosen.get(column, UNITS.get(column, 1.0)))

    def replace(self, **changes) -> "FitConfig":
        """Return a copy with some fields changed and the whole validated again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """Return the fields as JSON-ready values; `FitConfig(**d)` reads them back.

        The link is left out where there is none, as files of earlier versions have it.
        """
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if isinstance(self.units, Mapping):
            fields["units"] = {name: float(value) for name, value in sorted(self.units.items())}
        if self.link == "none" and not self.chance:
            del fields["link"], fields["chance"]
        if self.fix is None:  # as files of earlier versions have it
            del fields["fix"]
        else:
            fields["fix"] = {name: float(value) for name, value in sorted(self.fix.items())}
        return fields


_CHOICES = {
    "aggregate": AGGREGATES,
    "init": INITS,
    "link": LINKS,
    "loss": LOSSES,
    "resampling": RESAMPLINGS,
    "solver": SOLVERS,
    "space": SPACES,
}


def _positive(value) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value < math.inf
