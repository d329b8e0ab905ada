"""A fitted law that keeps its bootstrap members: properties, predictions, report, file.

The prediction is the median (or mean) of the members' predictions (Appendix D). Parameters are
held and reported in `FitConfig.units`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fitting import law_file, naming, summary, views
from fitting import noise as noise_parts
from fitting.bootstrap import fewest_levels, mostly_single
from fitting.config import FitConfig
from fitting.forms import Form, Layout, get_form
from fitting.law_file import FittedRuns, Members
from fitting.link import Space
from fitting.noise import Scatter
from fitting.optimise import objective
from fitting.optimise.lanes import FAILED, STATUSES
from fitting.optimise.objective import Loss
from fitting.predictions import BLOCK, Law
from fitting.verdict import Verdict

ABSENT = 1e-6  # of the scale: a term that stays below it on every fitted run does nothing
CANCELS = 20.0  # terms this many times their sum cancel: the law is degenerate
TINY_NOISE = 100.0  # residuals this many times a noise column: it may be in another unit


@dataclass(frozen=True, eq=False)
class BaggedFit(Law):
    """A fitted law with its members. Predictions are errors on the fitted scale.

    Attributes:
      config: how it was fitted.
      metric: what the error is of.
      factors: names of the K columns of a configuration.
      examples: name of the column of n; None for a law without n.
      scale: the error of a complete failure, such as 100 or 1; infinite for a loss.
      source: name of the file of the runs.
      units: [C], what theta measures the factors and n in.
      bag: `Members`, one a resample.
      whole: `Members` of one row, the fit to all runs.
      runs: `FittedRuns`.
      lost: of each column, the resamples without any run of one of its levels.
      versions: of the packages that computed it.
      verdict: whether the runs contradict the form (`fitting.lack_of_fit`); None if not tested.
    """

    config: FitConfig
    metric: str
    factors: tuple[str, ...]
    examples: str | None
    scale: float
    source: str
    units: np.ndarray
    bag: Members
    whole: Members
    runs: FittedRuns
    lost: dict[str, int]
    versions: dict[str, str]
    verdict: Verdict | None = None

    # --- properties ---

    @property
    def form(self) -> Form:
        """Return the functional form."""
        return get_form(self.config.form)

    @property
    def layout(self) -> Layout:
        """Return the form as indices, for these factors."""
        return self.form.layout(len(self.factors), self.examples is not None)

    @property
    def space(self) -> Space:
        """Return the space of the fit: residuals, run noise and the sum of terms live there."""
        return Space.of(self.config, self.scale, self.reference)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of theta's columns; coefficients are stored as their logs."""
        return naming.parameters(self.form, self.factors, self.examples is not None)

    @property
    def is_exponent(self) -> np.ndarray:
        """Return bool [P]: which parameters are exponents."""
        return np.arange(self.layout.num_parameters) >= self.layout.num_coefficients

    @property
    def fixed(self) -> np.ndarray:
        """Return bool [P]: which parameters were held at a value."""
        held = [naming.in_form(name, self.factors) for name in self.config.fix or ()]
        names = self.form.parameters(len(self.factors), self.examples is not None)
        return np.isin(names, held)

    @property
    def num_free(self) -> int:
        """Return the number of parameters that were fitted."""
        return int((~self.fixed).sum())

    @property
    def theta(self) -> np.ndarray:
        """Return theta [B, P] of the members, see `Members`."""
        return self.bag.theta

    @property
    def status(self) -> np.ndarray:
        """Return the status [B] of the members, see `Members`."""
        return self.bag.status

    @property
    def status_names(self) -> tuple[str, ...]:
        """Return the names of the numbers in `status`."""
        return STATUSES

    @property
    def objective(self) -> np.ndarray:
        """Return the objective [B] of the members, see `Members`."""
        return self.bag.objective

    @property
    def members(self) -> list[dict]:
        """Return one JSON-ready dict per member, with the fields of `Members`."""
        return law_file.to_rows(self.bag)

    @property
    def level_factor(self) -> str:
        """Return the factor with the fewest levels, two or more: resamples lose those first."""
        return self.factors[fewest_levels(self.runs.z[:, : len(self.factors)])]

    @property
    def lost_levels(self) -> int:
        """Return the number of resamples without any run of some level of `level_factor`.

        0 where most of its levels have a single run: every resample loses some of those.
        """
        if mostly_single(self.runs.z[:, self.factors.index(self.level_factor)]):
            return 0
        return self.lost.get(self.level_factor, 0)

    @property
    def failures(self) -> int:
        """Return the number of members without a finite start; predictions leave them out."""
        return int((self.status == FAILED).sum())

    @property
    def values(self) -> np.ndarray:
        """Return members [B, P] with coefficients, in error points, in place of their logs."""
        return self.readable(self.theta)

    def readable(self, theta) -> np.ndarray:
        """Return theta [..., P] with coefficients in place of their logs."""
        plain_P = self.is_exponent.copy()
        if self.config.free_floor:
            plain_P[self.layout.floor] = True
        with np.errstate(over="ignore"):
            return np.where(plain_P, theta, np.exp(theta))

    @property
    def at_cap(self) -> np.ndarray:
        """Return int [P]: how many members have this exponent at a bound; 0 for coefficients."""
        return (self._pressed(self.theta) & self.is_exponent).sum(axis=0)

    @property
    def absent(self) -> np.ndarray:
        """Return bool [B, P]: coefficients of terms that are negligible on every fitted run."""
        return self.absent_in(self.theta)

    def absent_in(self, theta) -> np.ndarray:
        """Return `absent` for any theta [B, P]."""
        absent = np.zeros(theta.shape, bool)
        largest_BM = np.abs(self._terms(theta)).max(axis=-1)
        for q in range(self.layout.num_coefficients):
            holding = [
                m for m in range(self.layout.num_terms) if q in self.layout.coefficients_of(m)
            ]
            absent[:, q] = (largest_BM[:, holding] < ABSENT * self.space.unit).all(axis=1)
        return absent

    @property
    def aicc(self) -> float:
        """Return the corrected Akaike criterion of the whole fit.

        NaN with too few runs, and with the Huber loss, which is no likelihood.
        """
        runs, free = self.num_runs, self.num_free + 1  # + 1: the noise variance
        if runs <= free + 1 or self.config.loss == "huber":
            return float("nan")
        likelihood = runs * np.log(max(float(self.whole.objective[0]), 1e-300))
        if self.space.linked:  # of the log error, as without a link
            likelihood -= 2 * np.log(self.space.slope(self.runs.error) * self.runs.error).sum()
        return float(likelihood + 2 * free + 2 * free * (free + 1) / (runs - free - 1))

    @cached_property
    def scatter(self) -> Scatter:
        """Return the variances of a run around the law, in the space it was fitted in.

        Of the whole fit's residuals. Without a noise column and clusters it is one variance:
        weighted, with a degree of freedom off for each parameter. NaN where parameters exhaust the
        runs.
        """
        runs = self.runs
        residual_R, jacobian_RP = summary.linearised(self)
        if runs.noise is not None or runs.cluster is not None:
            noise = None if runs.noise is None else self.in_fitted_space(runs.noise)
            return noise_parts.scatter(residual_R, jacobian_RP, noise, runs.cluster)
        spare = self.num_runs - self.num_free
        if spare <= 0:
            return noise_parts.UNKNOWN
        square = np.average(residual_R**2, weights=runs.weights)
        return Scatter(float(square * self.num_runs / spare), 0.0, 1.0)

    @property
    def tiny_noise(self) -> str:
        """Return a sentence where the known noise is a hundredth of the residuals, or ''."""
        if self.runs.noise is None:
            return ""
        noise = float(np.median(self.runs.noise))
        off = float(np.std(self.predict_whole(self.runs.z) - self.runs.error))
        if off < TINY_NOISE * noise:
            return ""
        return (
            f"{self.source}: the noise column ({noise:.3g} points, median) is {off / noise:.0f} "
            "times smaller than the residuals: is it in the scores' unit? It hardly weighs runs"
        )

    def in_fitted_space(self, noise) -> np.ndarray:
        """Return standard deviations [R] of the runs' scores as those of what was fitted."""
        if self.space.linked:
            return np.asarray(noise) * self.space.slope(self.predict_whole(self.runs.z))
        fitted = self.predict_whole(self.runs.z) if self.config.space == "log" else 1.0
        return np.asarray(noise) / fitted

    @cached_property
    def degenerate(self) -> str | None:
        """Return why the parameters of the whole fit mean nothing, or None.

        Where large terms cancel, an infinite family of parameters describes the runs alike, and
        the optimum lies at infinity (Li et al.'s law with a free floor).
        """
        terms_M = np.abs(self._terms(self.whole.theta)[0]).mean(axis=-1)
        if self.space.linked:
            return None  # terms >= 0 cannot cancel
        ratio = terms_M.sum() / np.abs(self.predict_whole(self.runs.z)).mean()
        if ratio <= CANCELS:
            return None
        floor = self.whole.theta[0, self.layout.floor]
        return (
            f"the floor runs to {floor:.3g} and the other terms cancel it ({ratio:.0f} times the "
            "error): the optimum lies at infinity, with exponents near 0"
        )

    # --- predictions ---

    @property
    def pooled(self) -> tuple["BaggedFit", ...]:
        """Return the fits of one form each whose members are those of the law: itself."""
        return (self,)

    @property
    def components(self) -> tuple["BaggedFit", ...]:
        """Return the fits of one form each, as `MixedLaw` has them: itself."""
        return (self,)

    @property
    def weights(self) -> np.ndarray:
        """Return the weights of `components`."""
        return np.ones(1)

    @property
    def lead(self) -> "BaggedFit":
        """Return the fit whose parameters are reported: itself."""
        return self

    @property
    def label(self) -> str:
        """Return the form in words."""
        return self.config.label

    def member_errors(self, z) -> np.ndarray:
        """Return the error [B', X] at z [X, C] of the members that did not fail."""
        return self._predict(z, self.theta[self.status != FAILED])

    def predict_members(self, x, n=None) -> np.ndarray:
        """Return the error [B, ...] of every member; NaN for those that failed."""
        z, shape = self._inputs(x, n)
        return self._predict(z, self.theta).reshape(len(self.theta), *shape)

    def predict_whole(self, z) -> np.ndarray:
        """Return the error [X] of the whole fit at z [X, C]: the factors and, with examples, n."""
        return self._predict(np.asarray(z, float), self.whole.theta)[0]

    def predict_members_grid(self, x, n):
        """Yield errors [X, B'] of the members that did not fail, for one n [M] at a time."""
        theta_BP = self.theta[self.status != FAILED]
        x, layout = np.asarray(x, float), self.layout
        by_n_MP = np.zeros((layout.num_terms, layout.num_parameters))
        for m, p, sign, column in layout.powers:
            by_n_MP[m, p] += sign * (column == len(self.factors))
        z, _ = self._inputs(x, None if self.examples is None else self.units[-1])
        terms_XBT = np.moveaxis(self._terms(theta_BP, z), -1, 0)
        slopes_BT = theta_BP @ by_n_MP.T
        for value in np.atleast_1d(np.asarray(n, float)):
            growth_BT = np.exp(slopes_BT * np.log(value / self.units[-1]))
            yield self.space.of_sum(np.einsum("xbt,bt->xb", terms_XBT, growth_BT))

    # --- report and file ---

    def report(self) -> str:
        """Return the fit as text: settings, parameters, convergence, residuals, ranges."""
        return summary.report(self)

    def parameter_rows(self) -> list[tuple]:
        """Return (name, whole fit, median, 5%, 95%, note) of each parameter, as in `readable`."""
        return summary.parameter_rows(self)

    def to_fields(self) -> dict:
        """Return the fit as JSON-ready fields, of which `from_fields` makes it again."""
        return law_file.to_fields(self)

    def to_frame(self):
        """Return the parameters as a pandas data frame: all_runs, median, low, high, note."""
        return views.law_frame(self)

    def __repr__(self) -> str:
        return views.law_text(self)

    def _repr_html_(self) -> str:
        return views.law_html(self)

    def save(self, folder) -> Path:
        """Write `fit.json` into the folder and return its path; the same fit, the same bytes."""
        return law_file.write(self, folder)

    @classmethod
    def load(cls, folder) -> "BaggedFit":
        """Return what `save` wrote into the folder.

        Raises:
          FileNotFoundError, ValueError: one line; no fit there, not one, one that was changed by
            hand or cut short, or of a form that has other parameters by now.
        """
        path, fields = law_file.read(folder)
        if "components" in fields:
            raise ValueError(f"{path}: a law of several forms; read it with fitting.load_law")
        return cls.from_fields(path, fields)

    @classmethod
    def from_fields(cls, path, fields: dict) -> "BaggedFit":
        """Return the fit of what `law_file.to_fields` gave; as `load`."""
        fields, names = law_file.from_fields(path, fields)
        fit = cls(**fields)
        plain = fit.form.parameters(len(fit.factors), fit.examples is not None)
        if names not in (fit.parameters, plain):  # plain in files of earlier versions
            raise ValueError(f"{path}: parameters {names} are not those of {fit.config.form!r} now")
        return fit

    # --- helpers ---

    def _loss(self) -> Loss:
        return Loss("linear" if self.config.free_floor else "log", None, self.config.free_floor)

    def _predict(self, z, theta) -> np.ndarray:
        """Return the error [B, X] at z [X, C] of theta [B, P]."""
        log_z, loss = np.log(z / self.units).T[None], self._loss()
        blocks = [log_z[..., i : i + BLOCK] for i in range(0, max(1, len(z)), BLOCK)]
        values = [objective.model(theta, block, self.layout, loss)[0] for block in blocks]
        value = np.concatenate(values, axis=1)
        return self.space.of_sum(np.exp(value)) if loss.space == "log" else value

    def _terms(self, theta, z=None) -> np.ndarray:
        """Return every term, [B, M, X], in error points or y, at z [X, C] or the fitted runs."""
        z = self.runs.z if z is None else z
        loss = Loss("linear", None, self.config.free_floor)
        terms = objective.model(theta, np.log(z / self.units).T[None], self.layout, loss)[1]
        if self.config.free_floor:
            terms = terms.copy()
            terms[:, self.layout.floor] = theta[:, self.layout.floor, None]
        return terms

    def _pressed(self, theta) -> np.ndarray:
        """Return bool [B, P]: exponents at a bound."""
        pressed = np.zeros(np.shape(theta), bool)
        if self.config.exponent_cap is not None:
            pressed |= np.abs(theta) >= self.config.exponent_cap * (1 - 1e-9)
        if self.config.bound_exponents:
            pressed |= theta <= 0
        return pressed & self.is_exponent
