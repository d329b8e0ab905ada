"""Fits one law to a table of runs: resamples x starts -> a `BaggedFit` that keeps its members.

Each bootstrap resample gives one member, the best optimum over all starts; the prediction is the
median of the members' predictions (Appendix D). Inside, every factor is divided by its geometric
mean over the runs (`units`), so that a coefficient reads as the error points of its term at a
typical run, and exponents have no unit.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fitting.bootstrap import lost_levels, resample_weights
from fitting.config import FitConfig
from fitting.forms import Form, get_form, log_sum_exp
from fitting.runs import FACTORS, RunTable
from fitting.solve import FAILED, STATUS_TEXT, solve

AT_CAP = 0.98  # of the cap: the smooth map reaches the cap itself only at infinity
ABSENT = 1e-4  # error points at a typical run below which a term does nothing
_ARRAYS = ("units", "ranges", "theta", "objective", "gradient_norm", "status", "whole_theta")


@dataclass(frozen=True, eq=False)
class BaggedFit:
    """A fitted law, members kept.

    Attributes:
      config: how it was fitted.
      metric: what it describes; the law predicts the error, 100 - score.
      num_runs: runs fitted.
      units: geometric means [K + 1] of the factors and n, that theta is relative to.
      ranges: least and largest fitted value [K + 1, 2] of the factors and n.
      theta: [B, P], the members in normalised units; NaN where the fit failed.
      objective, gradient_norm, status: [B], see `fitting.solve.Solution`.
      whole_theta: [P], the fit to all runs, each once.
      whole_objective: its sum of squared log residuals, equation 7.
      lost_levels: resamples without any run of some language-model size.
    """

    config: FitConfig
    metric: str
    num_runs: int
    units: np.ndarray
    ranges: np.ndarray
    theta: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    status: np.ndarray
    whole_theta: np.ndarray
    whole_objective: float
    lost_levels: int

    @property
    def form(self) -> Form:
        """The functional form."""
        return get_form(self.config.form)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of theta's columns; coefficients are held as their logs."""
        return self.form.parameters(len(self.units) - 1)

    @property
    def failures(self) -> int:
        """Members of which no start stayed finite; they take no part in predictions."""
        return int((self.status == FAILED).sum())

    @property
    def at_cap(self) -> np.ndarray:
        """Int [P]: members whose exponent sits at the cap; 0 for coefficients and without a cap."""
        if self.config.exponent_cap is None:
            return np.zeros(self.theta.shape[1], int)
        close_BP = np.abs(self.theta) >= AT_CAP * self.config.exponent_cap
        return (close_BP & self._is_exponent).sum(axis=0)

    @property
    def values(self) -> np.ndarray:
        """Members [B, P] in readable form: coefficients in error points, exponents as they are."""
        return np.where(self._is_exponent, self.theta, np.exp(self.theta))

    @property
    def aicc(self) -> float:
        """Corrected Akaike criterion of the whole fit (log residuals); NaN with too few runs."""
        runs, free = self.num_runs, self.theta.shape[1] + 1  # + 1: the noise variance
        if runs <= free + 1:
            return float("nan")
        likelihood = runs * np.log(max(self.whole_objective, 1e-300) / runs)
        return float(likelihood + 2 * free + 2 * free * (free + 1) / (runs - free - 1))

    def predict(self, x, n) -> np.ndarray:
        """Error on the 0-100 scale, the aggregate over members.

        Args:
          x: configurations [..., K] in factor order.
          n: data sizes, broadcast against [...].

        Returns:
          [...] float64.
        """
        return self._aggregate(self._members(x, n, self.theta[self.status != FAILED]))

    def predict_members(self, x, n) -> np.ndarray:
        """Error [B, ...] of every member; NaN for those that failed."""
        return np.moveaxis(self._members(x, n, self.theta), -1, 0)

    def interval(self, x, n, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central interval, (low [...], high [...]), of the members; run noise comes on top."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        members = self._members(x, n, self.theta[self.status != FAILED])
        low, high = np.quantile(members, [(1 - level) / 2, (1 + level) / 2], axis=-1)
        return low, high

    def predict_grid(self, x, n) -> np.ndarray:
        """Error [X, M] at every x [X, K] and every n [M]: `predict`, at the price of one n.

        A term is a function of x times a power of n, so the first is computed once.
        """
        members_XBM = self.predict_members_grid(x, n)
        return np.stack([self._aggregate(members_XB) for members_XB in members_XBM], axis=1)

    def predict_members_grid(self, x, n):
        """Yields errors [X, B'] of the members that did not fail, for one n [M] at a time."""
        theta_BP = self.theta[self.status != FAILED]
        log_x, unit_n = np.log(np.asarray(x, np.float64) / self.units[:-1]), self.units[-1]
        log_n = np.log(np.asarray(n, np.float64) / unit_n)
        at_zero = self.form.design(log_x, np.zeros(len(log_x)))
        per_log_n = self.form.design(np.zeros((1, log_x.shape[1])), np.ones(1))
        per_log_n = per_log_n - self.form.design(np.zeros((1, log_x.shape[1])), np.zeros(1))
        terms_XBT = np.exp(np.einsum("xtp,bp->xbt", at_zero, theta_BP, optimize=True))
        slopes_BT = np.einsum("xtp,bp->bt", per_log_n, theta_BP)
        for value in log_n:
            yield np.einsum("xbt,bt->xb", terms_XBT, np.exp(slopes_BT * value))

    def summary(self) -> str:
        """Values and spread of every parameter, hits of the cap, failures, as text."""
        lines = [
            f"{self.config.form} on {self.metric}: {self.num_runs} runs, "
            f"{len(self.theta)} resamples x {self.config.starts} starts ({self.config.resampling})",
            "coefficients in error points at the geometric-mean run "
            + ", ".join(f"{u:.3g} {name}" for u, name in zip(self.units, _NAMES, strict=True)),
            f"{'parameter':<10} {'whole fit':>11} {'median':>11} {'5%':>11} {'95%':>11}  note",
        ]
        lines += [
            f"{name:<10} {whole:>11.4g} {mid:>11.4g} {low:>11.4g} {high:>11.4g}  {note}".rstrip()
            for name, whole, mid, low, high, note in self.parameter_rows()
        ]
        counts = np.bincount(self.status, minlength=len(STATUS_TEXT))
        text = ", ".join(f"{c} {t}" for c, t in zip(counts, STATUS_TEXT, strict=True))
        lines.append(f"members: {text}; {self.lost_levels} lost a language-model size")
        return "\n".join(lines)

    def parameter_rows(self) -> list[tuple]:
        """(name, whole fit, median, 5%, 95%, note) of every parameter, in readable form."""
        good_BP = self.values[self.status != FAILED]
        low, mid, high = np.quantile(good_BP, [0.05, 0.5, 0.95], axis=0)
        whole = np.where(self._is_exponent, self.whole_theta, np.exp(self.whole_theta))
        absent_P = ((good_BP < ABSENT) & ~self._is_exponent).sum(axis=0)
        notes = [
            f"at the cap in {cap} of {len(good_BP)}" * bool(cap)
            + f"absent in {absent} of {len(good_BP)}" * bool(absent)
            for cap, absent in zip(self.at_cap, absent_P, strict=True)
        ]
        return list(zip(self.parameters, whole, mid, low, high, notes, strict=True))

    def save(self, folder) -> Path:
        """Writes `fit.json` into the folder and returns its path; the same fit, the same bytes."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["config"] = self.config.to_dict()
        for name in _ARRAYS:
            fields[name] = _encode(fields[name])
        fields["parameters"] = list(self.parameters)
        path = Path(folder) / "fit.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder) -> "BaggedFit":
        """Reads what `save` wrote; ValueError if the form has other parameters by now."""
        path = Path(folder) / "fit.json"
        fields = json.loads(path.read_text(encoding="utf-8"))
        names = tuple(fields.pop("parameters"))
        fields["config"] = FitConfig(**fields["config"])
        for name in _ARRAYS:
            kind = int if name == "status" else float
            fields[name] = np.array(_decode(fields[name]), kind)
        fit = cls(**fields)
        if fit.parameters != names:
            raise ValueError(f"{path}: parameters {names} are not those of {fit.config.form!r} now")
        return fit

    @property
    def _is_exponent(self) -> np.ndarray:
        return self.form.is_exponent(len(self.units) - 1)

    def _aggregate(self, members) -> np.ndarray:
        """[..., B] -> [...]; a sort is far faster than np.median on a long last axis."""
        if self.config.aggregate == "mean":
            return members.mean(axis=-1)
        ordered, half = np.sort(members, axis=-1), members.shape[-1] // 2
        return (ordered[..., half] + ordered[..., -1 - half]) / 2

    def _members(self, x, n, theta) -> np.ndarray:
        x, n = np.asarray(x, np.float64), np.asarray(n, np.float64)
        shape = np.broadcast_shapes(x.shape[:-1], n.shape)
        x = np.broadcast_to(x, (*shape, x.shape[-1])).reshape(-1, x.shape[-1])
        log_x = np.log(x / self.units[:-1])
        log_n = np.log(np.broadcast_to(n, shape).reshape(-1) / self.units[-1])
        design_RMP = self.form.design(log_x, log_n)
        log_terms_RBM = np.swapaxes(design_RMP @ theta.T, 1, 2)
        return np.exp(log_sum_exp(log_terms_RBM)).reshape(*shape, len(theta))


_NAMES = (*FACTORS, "num_examples")


def fit(table: RunTable, config: FitConfig | None = None, *, rows=None) -> BaggedFit:
    """Fits the law of `config.form` to the errors of one metric.

    Args:
      table: runs of a single metric.
      config: options, the defaults if None; its seed decides resamples and starts, so the fit is
        deterministic.
      rows: bool [R], the runs to use; all by default. Leaving runs out this way keeps array
        shapes, so that folds share one compilation.

    Raises:
      ValueError: several metrics, an error of 0, or no resample that could be fitted.
    """
    config = FitConfig() if config is None else config
    rows_R = np.ones(len(table), bool) if rows is None else np.asarray(rows, bool)
    _check(table, rows_R)
    form, levels = get_form(config.form), np.stack([*table.x.T, table.n], axis=1)
    units = np.exp(np.log(levels).mean(axis=0))
    log_z = np.log(levels / units)
    strata = None
    if config.resampling == "stratified":
        groups = np.char.add(np.char.add(table.sweep, " "), table.lm_params.astype(str))
        strata = np.unique(groups, return_inverse=True)[1]
    weights_BR = resample_weights(
        len(table), config.resamples, config.seed, rows=rows_R, strata=strata
    )
    solution = solve(
        form.design(log_z[:, :-1], log_z[:, -1]),
        np.log(table.error),
        np.concatenate([rows_R[None].astype(float), weights_BR]),
        random_starts(form, log_z.shape[1] - 1, config),
        is_exponent=form.is_exponent(log_z.shape[1] - 1),
        exponent_cap=config.exponent_cap,
        solver=config.solver,
    )
    if (solution.status[1:] == FAILED).all() or solution.status[0] == FAILED:
        raise ValueError(f"form {config.form!r}: no start stayed finite on {rows_R.sum()} runs")
    return BaggedFit(
        config=config,
        metric=table.metrics[0],
        num_runs=int(rows_R.sum()),
        units=units,
        ranges=np.stack([levels[rows_R].min(axis=0), levels[rows_R].max(axis=0)], axis=1),
        theta=solution.theta[1:],
        objective=solution.objective[1:],
        gradient_norm=solution.gradient_norm[1:],
        status=solution.status[1:],
        whole_theta=solution.theta[0],
        whole_objective=float(solution.objective[0]),
        lost_levels=int(lost_levels(weights_BR, table.lm_params).sum()),
    )


def random_starts(form: Form, num_factors: int, config: FitConfig) -> np.ndarray:
    """Starts theta [I, P]: coefficients and exponents uniform in the ranges of the config."""
    is_exponent = form.is_exponent(num_factors)
    rng = np.random.default_rng([config.seed, 1])  # a stream apart from the resamples'
    uniform_IP = rng.uniform(size=(config.starts, len(is_exponent)))
    coefficients = np.log(config.start_coefficient * np.maximum(uniform_IP, 1e-6))
    return np.where(is_exponent, config.start_exponent * (2 * uniform_IP - 1), coefficients)


def _check(table: RunTable, rows_R) -> None:
    if len(table.metrics) != 1:
        raise ValueError(
            f"a law describes one metric; the table has {', '.join(table.metrics)}: "
            "use table.select(metric=...)"
        )
    if rows_R.shape != (len(table),) or not rows_R.any():
        raise ValueError(f"rows must be a mask of {len(table)} runs with at least one True")
    perfect = np.flatnonzero(table.error <= 0)
    if perfect.size:
        raise ValueError(
            f"run '{table.run_id[perfect[0]]}' has score 100: an error of 0 has no logarithm; "
            "leave the run out"
        )


def _encode(values) -> list:
    """Nested lists with None for what JSON cannot hold."""
    return [_encode(v) for v in values] if np.ndim(values) else _finite(values)


def _finite(value):
    return value.item() if np.isfinite(value) else None


def _decode(values):
    if isinstance(values, list):
        return [_decode(v) for v in values]
    return float("nan") if values is None else values
