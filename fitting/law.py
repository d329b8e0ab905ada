"""A fitted law that keeps its bootstrap members: properties, predictions, report, file.

The prediction is the median (or mean) of the members' predictions (Appendix D). Parameters are
held and reported in `FitConfig.units`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fitting import extent, law_file, naming, summary, views
from fitting import noise as noise_parts
from fitting.bootstrap import fewest_levels, mostly_single
from fitting.config import FitConfig
from fitting.forms import Form, Layout, get_form
from fitting.law_file import FittedRuns, Members
from fitting.noise import Scatter
from fitting.optimise import objective
from fitting.optimise.lanes import FAILED, STATUSES
from fitting.optimise.objective import Loss
from fitting.runs import reference
from fitting.verdict import Verdict

ABSENT = 1e-6  # of the scale: a term that stays below it on every fitted run does nothing
CANCELS = 20.0  # terms this many times their sum cancel: the law is degenerate
TINY_NOISE = 100.0  # residuals this many times a noise column: it may be in another unit
BLOCK = 2048  # configurations predicted at once
ROUNDING = 1e-9  # a value so close to the end of a range is inside it


@dataclass(frozen=True, eq=False)
class BaggedFit:
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
    def columns(self) -> tuple[str, ...]:
        """Return the names of the factors and of n, in the order of `units` and `ranges`."""
        return self.factors if self.examples is None else (*self.factors, self.examples)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of theta's columns; coefficients are stored as their logs."""
        return naming.parameters(self.form, self.factors, self.examples is not None)

    @property
    def is_exponent(self) -> np.ndarray:
        """Return bool [P]: which parameters are exponents."""
        return np.arange(self.layout.num_parameters) >= self.layout.num_terms

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
    def num_runs(self) -> int:
        """Return the number of fitted runs."""
        return len(self.runs.error)

    @property
    def ranges(self) -> np.ndarray:
        """Return the least and largest fitted value of each column, [C, 2]."""
        return np.stack([self.runs.z.min(axis=0), self.runs.z.max(axis=0)], axis=1)

    @property
    def reference(self) -> float:
        """Return the size that errors are measured by: the scale, or the largest loss."""
        return reference(self.scale, self.runs.error)

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
        absent[:, : self.layout.num_terms] = largest_BM < ABSENT * self.reference
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
        fitted = self.predict_whole(self.runs.z) if self.config.space == "log" else 1.0
        return np.asarray(noise) / fitted

    @cached_property
    def degenerate(self) -> str | None:
        """Return why the parameters of the whole fit mean nothing, or None.

        Where large terms cancel, an infinite family of parameters describes the runs alike, and
        the optimum lies at infinity (Li et al.'s law with a free floor).
        """
        terms_M = np.abs(self._terms(self.whole.theta)[0]).mean(axis=-1)
        ratio = terms_M.sum() / np.abs(self.predict_whole(self.runs.z)).mean()
        if ratio <= CANCELS:
            return None
        floor = self.whole.theta[0, self.layout.floor]
        return (
            f"the floor runs to {floor:.3g} and the other terms cancel it ({ratio:.0f} times the "
            "error): the optimum lies at infinity, with exponents near 0"
        )

    # --- predictions ---

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

    def predict_members(self, x, n=None) -> np.ndarray:
        """Return the error [B, ...] of every member; NaN for those that failed."""
        z, shape = self._inputs(x, n)
        return self._predict(z, self.theta).reshape(len(self.theta), *shape)

    def predict_whole(self, z) -> np.ndarray:
        """Return the error [X] of the whole fit at z [X, C]: the factors and, with examples, n."""
        return self._predict(np.asarray(z, float), self.whole.theta)[0]

    def predict_grid(self, x, n) -> np.ndarray:
        """Return `predict` [X, M] at every x [X, K] and every n [M], at the price of one n.

        A term is a function of x times a power of n, so the first is computed once.
        """
        members_XBM = self.predict_members_grid(x, n)
        return np.stack([self._aggregate(members_XB) for members_XB in members_XBM], axis=1)

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
            yield np.einsum("xbt,bt->xb", terms_XBT, growth_BT)

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

    # --- report and file ---

    def report(self) -> str:
        """Return the fit as text: settings, parameters, convergence, residuals, ranges."""
        return summary.report(self)

    def parameter_rows(self) -> list[tuple]:
        """Return (name, whole fit, median, 5%, 95%, note) of each parameter, as in `readable`."""
        return summary.parameter_rows(self)

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
        path, fields, names = law_file.read(folder)
        fit = cls(**fields)
        plain = fit.form.parameters(len(fit.factors), fit.examples is not None)
        if names not in (fit.parameters, plain):  # plain in files of earlier versions
            raise ValueError(f"{path}: parameters {names} are not those of {fit.config.form!r} now")
        return fit

    # --- helpers ---

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

    def _loss(self) -> Loss:
        return Loss("linear" if self.config.free_floor else "log", None, self.config.free_floor)

    def _predict(self, z, theta) -> np.ndarray:
        """Return the error [B, X] at z [X, C] of theta [B, P]."""
        log_z, loss = np.log(z / self.units).T[None], self._loss()
        blocks = [log_z[..., i : i + BLOCK] for i in range(0, max(1, len(z)), BLOCK)]
        values = [objective.model(theta, block, self.layout, loss)[0] for block in blocks]
        value = np.concatenate(values, axis=1)
        return np.exp(value) if loss.space == "log" else value

    def _terms(self, theta, z=None) -> np.ndarray:
        """Return every term in error points, [B, M, X], at z [X, C] or the fitted runs."""
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

    def _reduce(self, x, n, reduce) -> np.ndarray:
        z, shape = self._inputs(x, n)
        theta_BP = self.theta[self.status != FAILED]
        parts = [
            reduce(self._predict(z[i : i + BLOCK], theta_BP).T)
            for i in range(0, max(1, len(z)), BLOCK)
        ]
        out = np.concatenate(parts)
        return out.reshape((*shape, *out.shape[1:]))

    def _aggregate(self, members) -> np.ndarray:
        """Reduce [..., B] to [...]; a sort is far faster than np.median on a long last axis."""
        if self.config.aggregate == "mean":
            return members.mean(axis=-1)
        ordered, half = np.sort(members, axis=-1), members.shape[-1] // 2
        return (ordered[..., half] + ordered[..., -1 - half]) / 2
