"""Fits one law to a table of runs: resamples x starts -> a `BaggedFit` that keeps its members.

Each bootstrap resample gives one member, the best optimum over all starts; the prediction is the
median of the members' predictions (Appendix D). Starts are drawn and parameters reported in
`FitConfig.units`; inside, factors and errors are divided by their geometric means over the runs,
which conditions the solver and changes no result.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fitting import objective, starts, summary
from fitting.bootstrap import lost_levels, resample_weights, wild_targets
from fitting.config import FitConfig
from fitting.forms import Form, Layout, get_form
from fitting.objective import Loss
from fitting.runs import RunTable
from fitting.solve import BASIN, EXACT, FAILED, SCREEN, STATUSES, Problem, solve

ABSENT = 1e-6  # of the scale: a term that stays below it on every fitted run does nothing
CANCELS = 20.0  # terms this many times their sum cancel: the law is degenerate
FLOOR = 100.0  # of the scale: the largest |free floor|; beyond it the law is degenerate anyway
BLOCK = 2048  # configurations predicted at once
VERSIONS = ("jax", "jaxlib", "jaxopt", "numpy")


class FittedRuns(NamedTuple):
    """The runs that took part, as they were fitted.

    Attributes:
      run_id: [R] names.
      z: [R, C], the K factors and, with examples, n; in the CSV's units.
      error: [R], on the fitted scale.
      weights: [R].
    """

    run_id: np.ndarray
    z: np.ndarray
    error: np.ndarray
    weights: np.ndarray

    @property
    def sha256(self) -> str:
        """Of the numbers, little-endian float64, row by row: factors, n, error, weight."""
        rows = np.column_stack([self.z, self.error, self.weights]).astype("<f8")
        return hashlib.sha256(rows.tobytes()).hexdigest()


class Members(NamedTuple):
    """Fits of one law, one a row.

    Attributes:
      theta: [B, P], log coefficients (the floor itself, if it is free) and exponents, with every
        factor measured in `BaggedFit.units`; NaN where the fit failed.
      objective: [B], sum of w (log f_hat - log f)^2 over sum of w, or the like for another loss.
      gradient_norm: [B], relative to the objective, without what presses on a bound.
      status: [B], CONVERGED, STOPPED or FAILED of `fitting.solve`.
      basin_share: [B], share of the starts followed to the end that reached this optimum.
    """

    theta: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    status: np.ndarray
    basin_share: np.ndarray


@dataclass(frozen=True, eq=False)
class BaggedFit:
    """A fitted law, members kept. Predictions are errors on the fitted scale.

    Attributes:
      config: how it was fitted.
      metric: what the error is of.
      factors: names of the K columns of a configuration.
      examples: name of the column of n; None for a law without n.
      scale: 100 or 1, the error of a complete failure.
      source: name of the file of the runs.
      units: [C], what theta measures the factors and n in.
      bag: `Members`, one a resample.
      whole: `Members` of one row, the fit to all runs.
      runs: `FittedRuns`.
      lost_levels: resamples without any run of some level of `level_factor`.
      level_factor: the factor with the fewest levels.
      versions: of the packages that computed it.
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
    lost_levels: int
    level_factor: str
    versions: dict[str, str]

    # --- what it is ---

    @property
    def form(self) -> Form:
        """The functional form."""
        return get_form(self.config.form)

    @property
    def layout(self) -> Layout:
        """The form as indices, for these factors."""
        return self.form.layout(len(self.factors), self.examples is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the factors and, with examples, of n: what `units` and `ranges` are of."""
        return self.factors if self.examples is None else (*self.factors, self.examples)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of theta's columns; coefficients are held as their logs."""
        return self.form.parameters(len(self.factors), self.examples is not None)

    @property
    def is_exponent(self) -> np.ndarray:
        """Bool [P]."""
        return np.arange(self.layout.num_parameters) >= self.layout.num_terms

    @property
    def num_runs(self) -> int:
        """Runs fitted."""
        return len(self.runs.error)

    @property
    def ranges(self) -> np.ndarray:
        """Least and largest fitted value of each column, [C, 2]."""
        return np.stack([self.runs.z.min(axis=0), self.runs.z.max(axis=0)], axis=1)

    @property
    def theta(self) -> np.ndarray:
        """[B, P], see `Members`."""
        return self.bag.theta

    @property
    def status(self) -> np.ndarray:
        """[B], see `Members`."""
        return self.bag.status

    @property
    def status_names(self) -> tuple[str, ...]:
        """What the numbers of `status` stand for."""
        return STATUSES

    @property
    def objective(self) -> np.ndarray:
        """[B], see `Members`."""
        return self.bag.objective

    @property
    def members(self) -> list[dict]:
        """{theta, objective, gradient_norm, status, basin_share} of each member, JSON-ready."""
        return _rows(self.bag)

    @property
    def failures(self) -> int:
        """Members of which no start stayed finite; they take no part in predictions."""
        return int((self.status == FAILED).sum())

    @property
    def values(self) -> np.ndarray:
        """Members [B, P] in readable form: coefficients in error points, exponents as they are."""
        return self.readable(self.theta)

    def readable(self, theta) -> np.ndarray:
        """theta [..., P] with coefficients in place of their logs."""
        plain_P = self.is_exponent.copy()
        if self.config.free_floor:
            plain_P[self.layout.floor] = True
        with np.errstate(over="ignore"):
            return np.where(plain_P, theta, np.exp(theta))

    @property
    def at_cap(self) -> np.ndarray:
        """Int [P]: members whose exponent sits at a bound; 0 for coefficients."""
        return (self._pressed(self.theta) & self.is_exponent).sum(axis=0)

    @property
    def absent(self) -> np.ndarray:
        """Bool [B, P]: coefficients of terms that do nothing on any fitted run of a member."""
        return self.absent_in(self.theta)

    def absent_in(self, theta) -> np.ndarray:
        """`absent`, of any theta [B, P]."""
        absent = np.zeros(theta.shape, bool)
        largest_BM = np.abs(self._terms(theta)).max(axis=-1)
        absent[:, : self.layout.num_terms] = largest_BM < ABSENT * self.scale
        return absent

    @property
    def aicc(self) -> float:
        """Corrected Akaike criterion of the whole fit; NaN with too few runs."""
        runs, free = self.num_runs, self.theta.shape[1] + 1  # + 1: the noise variance
        if runs <= free + 1:
            return float("nan")
        likelihood = runs * np.log(max(float(self.whole.objective[0]), 1e-300))
        return float(likelihood + 2 * free + 2 * free * (free + 1) / (runs - free - 1))

    @cached_property
    def degenerate(self) -> str | None:
        """Why the parameters of the whole fit mean nothing, or None.

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

    # --- what it predicts ---

    def predict(self, x, n=None) -> np.ndarray:
        """Error on the fitted scale, the aggregate over members.

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
        """Quantiles [Q, ...] of the members' errors at x [..., K], n; run noise comes on top."""
        q = np.atleast_1d(np.asarray(q, float))
        if not ((q >= 0) & (q <= 1)).all():
            raise ValueError(f"quantiles lie between 0 and 1, got {q.tolist()}")
        return np.moveaxis(
            self._reduce(x, n, lambda m: np.moveaxis(np.quantile(m, q, axis=-1), 0, -1)), -1, 0
        )

    def interval(self, x, n=None, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central interval, (low [...], high [...]), of the members; run noise comes on top."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        low, high = self.quantiles(x, n, [(1 - level) / 2, (1 + level) / 2])
        return low, high

    def predict_members(self, x, n=None) -> np.ndarray:
        """Error [B, ...] of every member; NaN for those that failed."""
        z, shape = self._inputs(x, n)
        return self._predict(z, self.theta).reshape(len(self.theta), *shape)

    def predict_whole(self, z) -> np.ndarray:
        """Error [X] of the whole fit at z [X, C]: the factors and, with examples, n."""
        return self._predict(np.asarray(z, float), self.whole.theta)[0]

    def predict_grid(self, x, n) -> np.ndarray:
        """Error [X, M] at every x [X, K] and every n [M]: `predict`, at the price of one n.

        A term is a function of x times a power of n, so the first is computed once.
        """
        members_XBM = self.predict_members_grid(x, n)
        return np.stack([self._aggregate(members_XB) for members_XB in members_XBM], axis=1)

    def predict_members_grid(self, x, n):
        """Yields errors [X, B'] of the members that did not fail, for one n [M] at a time."""
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

    def extrapolates(self, x, n=None) -> np.ndarray:
        """Bool [...]: x or n lies outside the range of the fitted runs."""
        z, shape = self._inputs(x, n)
        low, high = self.ranges.T
        return ((z < low * (1 - 1e-9)) | (z > high * (1 + 1e-9))).any(axis=1).reshape(shape)

    # --- what it says and where it is kept ---

    def report(self) -> str:
        """The fit as a page of text: card, parameters, health, residuals, ranges."""
        return summary.report(self)

    def parameter_rows(self) -> list[tuple]:
        """(name, whole fit, median, 5%, 95%, note) of every parameter, in readable form."""
        return summary.parameter_rows(self)

    def save(self, folder) -> Path:
        """Writes `fit.json` into the folder and returns its path; the same fit, the same bytes."""
        path = Path(folder) / "fit.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = ["exponent" if e else "log coefficient" for e in self.is_exponent]
        if self.config.free_floor:
            kinds[self.layout.floor] = "coefficient"
        fields = {
            "format": 1,
            "form": self.config.form,
            "metric": self.metric,
            "factors": list(self.factors),
            "examples": self.examples,
            "scale": self.scale,
            "aggregate": self.config.aggregate,
            "parameters": [
                {"name": name, "kind": kind}
                for name, kind in zip(self.parameters, kinds, strict=True)
            ],
            "units": dict(zip(self.columns, self.units.tolist(), strict=True)),
            "normalisation": "theta describes error(column / unit); no other",
            "settings": self.config.to_dict(),
            "whole": _rows(self.whole)[0],
            "members": self.members,
            "failures": self.failures,
            "lost_levels": {"column": self.level_factor, "resamples": self.lost_levels},
            "degenerate": self.degenerate,
            "data": {
                "source": self.source,
                "sha256": self.runs.sha256,
                "columns": [*self.columns, "error", "weight"],
                "run_id": self.runs.run_id.tolist(),
                "rows": np.column_stack(self.runs[1:]).tolist(),
            },
            "versions": self.versions,
        }
        path.write_text(json.dumps(fields, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder) -> "BaggedFit":
        """Reads what `save` wrote into the folder.

        Raises:
          FileNotFoundError, ValueError: one line; no fit there, not one, or of a form that has
            other parameters by now.
        """
        path = Path(folder)
        path = path / "fit.json" if path.is_dir() or path.suffix != ".json" else path
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: no such file; `save` writes it") from None
        try:
            fields = json.loads(text)
            data = fields["data"]
            rows = np.array(data["rows"], float).reshape(len(data["run_id"]), -1)
            fit = cls(
                config=FitConfig(**fields["settings"]),
                metric=fields["metric"],
                factors=tuple(fields["factors"]),
                examples=fields["examples"],
                scale=fields["scale"],
                source=data["source"],
                units=np.array(list(fields["units"].values()), float),
                bag=_members(fields["members"]),
                whole=_members([fields["whole"]]),
                runs=FittedRuns(np.array(data["run_id"]), rows[:, :-2], rows[:, -2], rows[:, -1]),
                lost_levels=fields["lost_levels"]["resamples"],
                level_factor=fields["lost_levels"]["column"],
                versions=fields["versions"],
            )
            names = tuple(parameter["name"] for parameter in fields["parameters"])
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path}: not a fit of this version: {e!r}") from None
        if fit.parameters != names:
            raise ValueError(f"{path}: parameters {names} are not those of {fit.config.form!r} now")
        return fit

    # --- helpers ---

    def _inputs(self, x, n) -> tuple[np.ndarray, tuple]:
        """Checked z [X, C] and the shape of the answer."""
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

    def _loss(self) -> Loss:
        return Loss("linear" if self.config.free_floor else "log", None, self.config.free_floor)

    def _predict(self, z, theta) -> np.ndarray:
        """Error [B, X]."""
        log_z, loss = np.log(z / self.units).T[None], self._loss()
        blocks = [log_z[..., i : i + BLOCK] for i in range(0, max(1, len(z)), BLOCK)]
        values = [objective.model(theta, block, self.layout, loss)[0] for block in blocks]
        value = np.concatenate(values, axis=1)
        return np.exp(value) if loss.space == "log" else value

    def _terms(self, theta, z=None) -> np.ndarray:
        """Error points of every term, [B, M, X], at z [X, C] or the fitted runs."""
        z = self.runs.z if z is None else z
        loss = Loss("linear", None, self.config.free_floor)
        terms = objective.model(theta, np.log(z / self.units).T[None], self.layout, loss)[1]
        if self.config.free_floor:
            terms = terms.copy()
            terms[:, self.layout.floor] = theta[:, self.layout.floor, None]
        return terms

    def _pressed(self, theta) -> np.ndarray:
        """Bool [B, P]: at a bound of the exponents."""
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
        """[..., B] -> [...]; a sort is far faster than np.median on a long last axis."""
        if self.config.aggregate == "mean":
            return members.mean(axis=-1)
        ordered, half = np.sort(members, axis=-1), members.shape[-1] // 2
        return (ordered[..., half] + ordered[..., -1 - half]) / 2


# --- fitting ---


def fit(
    table: RunTable,
    config: FitConfig | None = None,
    *,
    rows=None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BaggedFit:
    """Fits the law of `config.form` to the errors of one metric.

    Args:
      table: runs of a single metric.
      config: options, the defaults if None; its seed decides resamples and starts, so the fit is
        deterministic.
      rows: bool [R], the runs to use; all by default.
      on_progress: called with (members done, members in all).

    Raises:
      ValueError: one line; several metrics, no error to take the log of, a form that needs n, a
        unit of an unknown column, or no descent that stayed finite.
    """
    return fit_many([(table, rows)], config, on_progress=on_progress)[0]


def fit_many(
    problems: Sequence[tuple[RunTable, object]],
    config: FitConfig | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[BaggedFit]:
    """Several fits with one config as lanes of one batch: metrics, folds, splits.

    Each is the fit that `fit` gives alone (to rounding, where tables differ in length); together
    they fill the machine better.

    Args:
      problems: (table, rows) pairs as for `fit`; as many factors in each, all with n or none.
      config: options, for all.
      on_progress: called with (members done, members in all).

    Raises:
      ValueError: as `fit`, or tables of different kinds.
    """
    config = FitConfig() if config is None else config
    problems = list(problems)
    if not problems:
        return []
    size = max(len(table) for table, _ in problems)
    cases = [_case(table, rows, config, size) for table, rows in problems]
    kinds = {(case.layout, case.log_z.shape[1], case.table.scale) for case in cases}
    if len(kinds) > 1:
        raise ValueError("fit_many needs tables with as many factors, n in all or none, one scale")
    layout, scale = cases[0].layout, cases[0].table.scale
    delta = config.huber_delta / _unit(config, scale) if config.loss == "huber" else None
    loss = Loss(config.space, delta, config.free_floor)
    lower, upper = _bounds(layout, config)
    options = dict(layout=layout, loss=loss, solver=config.solver, lower=lower, upper=upper)
    wholes = bags = solve([case.problem() for case in cases], stages=SCREEN, **options)
    lost = [0] * len(cases)
    if config.resampling != "none":
        resampled = [
            _resampled(case, config, whole, loss) for case, whole in zip(cases, wholes, strict=True)
        ]
        batch, lost = zip(*resampled, strict=True)
        bags = solve(batch, on_progress=on_progress, **options)
    return [
        _bagged(case, config, whole, bag, losses)
        for case, whole, bag, losses in zip(cases, wholes, bags, lost, strict=True)
    ]


class _Case(NamedTuple):
    """One table made ready: normalised, padded to the batch's number of runs."""

    table: RunTable
    rows: np.ndarray  # bool [len(table)]
    layout: Layout
    units: np.ndarray  # [C], of starts and reports
    typical: np.ndarray  # [C], geometric means
    log_z: np.ndarray  # [R, C]
    target: np.ndarray  # [R]
    weights: np.ndarray  # [R]
    starts: np.ndarray  # [I, P]

    def problem(self) -> Problem:
        """The fit to all runs from all starts."""
        return Problem(self.log_z, self.target[None], self.weights[None], self.starts)

    def to_inner(self, theta, free_floor: bool) -> np.ndarray:
        """theta [I, P] in `units`, all coefficients as logs, to the solver's."""
        design_MP = self.layout.design(np.log(self.typical / self.units)[None])[0]
        inner, terms = theta.copy(), self.layout.num_terms
        inner[:, :terms] = theta @ design_MP.T - np.log(self.table.scale)
        if free_floor:
            inner[:, self.layout.floor] = np.exp(inner[:, self.layout.floor])
        return inner

    def to_outer(self, theta, free_floor: bool) -> np.ndarray:
        """The solver's theta [B, P] to `units`."""
        design_MP = self.layout.design(np.log(self.units / self.typical)[None])[0]
        outer, terms = theta.copy(), self.layout.num_terms
        outer[:, :terms] = theta @ design_MP.T + np.log(self.table.scale)
        if free_floor:
            outer[:, self.layout.floor] = theta[:, self.layout.floor] * self.table.scale
        return outer


def _case(table: RunTable, rows, config: FitConfig, size: int) -> _Case:
    rows_R = np.ones(len(table), bool) if rows is None else np.asarray(rows, bool)
    _check(table, rows_R, config)
    rows_R = rows_R & (table.weights > 0)
    with_n = table.examples is not None
    layout = get_form(config.form).layout(len(table.factors), with_n)
    columns = (*table.factors, *[table.examples] * with_n)
    z_RC = np.column_stack([table.x, table.n]) if with_n else np.asarray(table.x, float)
    typical = np.exp(np.log(z_RC[rows_R]).mean(axis=0))
    case = _Case(
        table=table,
        rows=rows_R,
        layout=layout,
        units=typical if config.units == "geomean" else _units(columns, config, table.source),
        typical=typical,
        log_z=_padded(np.log(z_RC / typical), size),
        target=_padded(_to_space(table.error / table.scale, rows_R, config.space), size),
        weights=_padded(np.where(rows_R, table.weights, 0.0), size),
        starts=np.empty(0),
    )
    drawn = case.to_inner(starts.draw(layout, config, table.scale), False)
    if config.init == "projected":
        error = _padded(np.where(rows_R, table.error / table.scale, 1.0), size)
        drawn = starts.project(drawn, case.log_z, error, case.weights, layout)
    if config.free_floor:
        drawn[:, layout.floor] = np.exp(drawn[:, layout.floor])
    return case._replace(starts=drawn)


def _resampled(case: _Case, config: FitConfig, whole, loss: Loss) -> tuple[Problem, int]:
    """The whole fit again as row 0 and then every resample; and how many lost a level."""
    size, table, kind = len(case.weights), case.table, config.resampling
    level_R = table.x[:, _level_factor(table)]
    if kind == "wild":
        weights_BR = np.tile(case.weights, (config.resamples, 1))
        ones = np.ones((1, size))
        plain = Loss(loss.space, None, loss.free_floor)
        fitted, jacobian = objective.residuals_and_jacobian(
            whole.theta, case.log_z.T[None], 0 * ones, ones, case.layout, plain
        )
        target_BR = wild_targets(
            fitted[0], case.target, jacobian[0].T, case.weights, config.resamples, config.seed
        )
    else:
        strata = _strata(table, level_R) if kind == "stratified" else None
        counts_BR = resample_weights(
            len(table),
            config.resamples,
            config.seed,
            rows=case.rows,
            strata=strata,
            kind="dirichlet" if kind == "bayesian" else "count",
        )
        weights_BR = _padded((counts_BR * table.weights).T, size).T
        target_BR = np.tile(case.target, (config.resamples, 1))
    lost = int(lost_levels(weights_BR[:, : len(table)], level_R).sum())
    begin = case.starts
    if config.solver == "lm":
        begin = np.concatenate([whole.theta, whole.arrivals])
        begin = begin[np.isfinite(begin).all(axis=1)]
    problem = Problem(
        case.log_z,
        np.concatenate([case.target[None], target_BR]),
        np.concatenate([case.weights[None], weights_BR]),
        begin,
    )
    return problem, lost


def _bagged(case: _Case, config: FitConfig, first, bag, lost: int) -> BaggedFit:
    """A `BaggedFit` of what the solver found: `first` on all runs, `bag` on them and resamples."""
    table, rows = case.table, case.rows
    if (bag.status == FAILED).all() or bag.status[0] == FAILED:
        raise ValueError(
            f"{table.source}: form {config.form!r}: no descent stayed finite on {rows.sum()} runs"
        )
    unit = _unit(config, table.scale) ** 2
    share = bag.basin_share.copy()
    reached = first.objective[0] <= (1 + BASIN) * bag.objective[0] + EXACT
    share[0] = first.basin_share[0] if reached else 0.0
    everyone = Members(
        case.to_outer(bag.theta, config.free_floor),
        bag.objective * unit,
        bag.gradient_norm,
        bag.status,
        share,
    )
    z = table.x if table.n is None else np.column_stack([table.x, table.n])
    alone = config.resampling == "none"
    return BaggedFit(
        config=config,
        metric=table.metrics[0],
        factors=tuple(table.factors),
        examples=table.examples,
        scale=float(table.scale),
        source=Path(table.source).name,
        units=case.units,
        bag=Members(*(column[0 if alone else 1 :] for column in everyone)),
        whole=Members(*(column[:1] for column in everyone)),
        runs=FittedRuns(table.run_id[rows], z[rows], table.error[rows], table.weights[rows]),
        lost_levels=lost,
        level_factor=table.factors[_level_factor(table)],
        versions={name: metadata.version(name) for name in VERSIONS},
    )


def _unit(config: FitConfig, scale: float) -> float:
    """What a residual of 1 inside the solver is worth outside."""
    return 1.0 if config.space == "log" else scale


def _bounds(layout: Layout, config: FitConfig) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [P] of the solver's theta; a log coefficient ends where its term is nothing."""
    cap = np.inf if config.exponent_cap is None else config.exponent_cap
    gone = -1000.0 if config.exponent_cap is None else -60.0 - 10.0 * cap
    lower = np.full(layout.num_parameters, 0.0 if config.bound_exponents else -cap)
    upper = np.full(layout.num_parameters, cap)
    lower[: layout.num_terms], upper[: layout.num_terms] = gone, np.inf
    if config.free_floor:
        lower[layout.floor], upper[layout.floor] = -FLOOR, FLOOR
    return lower, upper


def _units(columns: tuple[str, ...], config: FitConfig, source: str) -> np.ndarray:
    for name in config.units or ():
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f" (the nearest is {near[0]!r})" if near else ""
            raise ValueError(
                f"{source}: units of {name!r}{hint}, which is no factor: {', '.join(columns)}"
            )
    return np.array([config.unit(name) for name in columns])


def _to_space(error, rows, space: str) -> np.ndarray:
    return np.log(np.where(rows, error, 1.0)) if space == "log" else np.where(rows, error, 0.0)


def _padded(values, size: int) -> np.ndarray:
    """values [R, ...] with zeros appended to `size` rows."""
    missing = np.zeros((size - len(values), *np.shape(values)[1:]))
    return np.concatenate([values, missing])


def _level_factor(table: RunTable) -> int:
    """The factor with the fewest levels above one, which a resample loses most easily."""
    counts = [len(np.unique(column)) for column in table.x.T]
    return min(range(len(counts)), key=lambda k: (counts[k] == 1, counts[k]))


def _strata(table: RunTable, level_R) -> np.ndarray:
    """Labels [R]: the sweep, where there is one, and the level."""
    sweep_R = table.columns.get("sweep", np.full(len(table), ""))
    pairs = np.char.add(np.char.add(sweep_R.astype(str), " "), level_R.astype(str))
    return np.unique(pairs, return_inverse=True)[1]


def _check(table: RunTable, rows_R, config: FitConfig) -> None:
    if len(table.metrics) != 1:
        raise ValueError(
            f"{table.source}: a law describes one metric; the table has "
            f"{', '.join(table.metrics)}: use table.select(metric=...)"
        )
    if rows_R.shape != (len(table),) or not (rows_R & (table.weights > 0)).any():
        raise ValueError(f"rows must be a mask of {len(table)} runs, with one of weight or more")
    perfect = np.flatnonzero((table.error <= 0) & rows_R & (table.weights > 0))
    if config.space == "log" and perfect.size:
        raise ValueError(
            f"{table.source}: run {str(table.run_id[perfect[0]])!r} has error "
            f"{table.error[perfect[0]]:g}, which has no logarithm; leave the run out or fit in "
            "linear space"
        )


# --- to and from JSON ---


def _rows(members: Members) -> list[dict]:
    """One dict a member; None for what JSON cannot hold."""
    return [
        {
            "theta": None if status == FAILED else theta.tolist(),
            "objective": _finite(value),
            "gradient_norm": _finite(norm),
            "status": STATUSES[status],
            "basin_share": float(share),
        }
        for theta, value, norm, status, share in zip(*members, strict=True)
    ]


def _members(rows: list[dict]) -> Members:
    width = max(len(row["theta"] or ()) for row in rows)
    missing = [float("nan")] * width
    return Members(
        np.array([row["theta"] or missing for row in rows], float),
        np.array([_number(row["objective"]) for row in rows]),
        np.array([_number(row["gradient_norm"]) for row in rows]),
        np.array([STATUSES.index(row["status"]) for row in rows]),
        np.array([row["basin_share"] for row in rows], float),
    )


def _finite(value):
    return float(value) if np.isfinite(value) else None


def _number(value) -> float:
    return float("nan") if value is None else value
