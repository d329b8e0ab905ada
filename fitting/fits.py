"""Fit one law to a table of runs: resamples x starts -> a `BaggedFit` that keeps its members.

Each bootstrap resample gives one member, the best optimum over all starts (Appendix D). Starts are
drawn in `FitConfig.units`; inside, factors and errors are divided by their geometric means over the
runs, which conditions the solver and changes no result.
"""

import contextlib
import math
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fitting import naming, noise, own_forms
from fitting.bootstrap import (
    fewest_levels,
    freedom_of_clusters,
    inflation_of,
    lost_levels,
    resample_weights,
    wild_targets,
)
from fitting.config import FitConfig
from fitting.formatting import nearest
from fitting.forms import Layout, get_form
from fitting.law import BaggedFit, FittedRuns, Members
from fitting.link import Space
from fitting.optimise import objective, starts
from fitting.optimise.batch import BASIN, Batch
from fitting.optimise.lanes import FAILED, Problem
from fitting.optimise.levenberg_marquardt import EXACT
from fitting.optimise.objective import Loss
from fitting.optimise.search import SCREEN, solve
from fitting.predictions import Law
from fitting.runs import RunTable, read_runs

FLOOR = 100.0  # of the scale: the largest |free floor|; beyond it the law is degenerate anyway
REFIT_LANES, REFIT_STEPS = 3, 40  # of a simulated table: the law's own optima are near
VERSIONS = ("vvlm_jax", "jax", "jaxlib", "jaxopt", "numpy")


def fit(
    table: RunTable,
    config: FitConfig | None = None,
    *,
    rows=None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Law:
    """Fit the law of `config.form` to the errors of one metric.

    Returns a `BaggedFit`, or a `MixedLaw` where the config names several forms.

    Args:
      table: runs of a single metric: a `RunTable`, or what `read_runs` takes with the default
        columns, such as a data frame.
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
) -> list[Law]:
    """Fit several tables or subsets with one config, as lanes of one batch.

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
    problems = [
        (table if isinstance(table, RunTable) else read_runs(table), rows)
        for table, rows in problems
    ]
    if config.is_mixed:
        from fitting.mixing import fit_mixed

        return fit_mixed(problems, config, fit_many, on_progress=on_progress)
    (config,) = config.forms
    size = max(len(table) for table, _ in problems)
    unit = max(table.reference for table, _ in problems)
    cases = [_case(table, rows, config, size, unit) for table, rows in problems]
    kinds = {(case.layout, case.log_z.shape[1], case.table.scale) for case in cases}
    if len(kinds) > 1:
        raise ValueError("fit_many needs tables with as many factors, n in all or none, one scale")
    layout = cases[0].layout
    delta = config.huber_delta / _unit(config, unit) if config.loss == "huber" else None
    loss = Loss(config.space, delta, config.free_floor)
    lower, upper = bounds(layout, config)
    for p, value in cases[0].held.items():
        lower[p] = upper[p] = max(value, lower[p])
    options = dict(layout=layout, loss=loss, solver=config.solver, lower=lower, upper=upper)
    wholes = bags = solve([case.problem() for case in cases], stages=SCREEN, **options)
    if any(case.table.noise is not None for case in cases):
        cases = [_weighted(case, whole, loss) for case, whole in zip(cases, wholes, strict=True)]
        again = [
            case.problem()._replace(starts=_begin(case, config, whole))
            for case, whole in zip(cases, wholes, strict=True)
        ]
        wholes = bags = [
            new._replace(arrivals=old.arrivals, basin_share=old.basin_share)
            for new, old in zip(solve(again, **options), wholes, strict=True)
        ]
    lost = [{}] * len(cases)
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


class Refits(NamedTuple):
    """Fits of one law to simulated targets, S at once, in the space of the fit.

    Attributes:
      target, fitted: [S, R].
      residual: [S, R], target - fitted times root.
      jacobian: [S, R, P], of fitted by theta.
      basis: [S, R, P], orthonormal columns that span the weighted Jacobian, the others 0.
      rank: int [S], how many those are.
      root: [R], square roots of the weights.
    """

    target: np.ndarray
    fitted: np.ndarray
    residual: np.ndarray
    jacobian: np.ndarray
    basis: np.ndarray
    rank: np.ndarray
    root: np.ndarray


def refit(law: BaggedFit, table: RunTable, targets=None) -> Refits:
    """Return fits to other targets at the same runs, started from the law's own optima.

    Args:
      law: fitted to all rows of the table.
      table: its runs.
      targets: [S, R], in the space of the fit as `Refits.target`; None evaluates the whole fit at
        its own runs, without a step.
    """
    config = law.config
    case = _case(
        table, None, config.replace(starts=1, init="coefficient"), len(table), table.reference
    )
    delta = config.huber_delta / _unit(config, table.reference) if config.loss == "huber" else None
    loss = Loss(config.space, delta, config.free_floor)
    plain, weight_R = Loss(config.space, None, config.free_floor), law.runs.weights
    root_R = np.sqrt(weight_R / weight_R.mean())
    own = np.concatenate([law.whole.theta, law.theta[law.status != FAILED]])
    theta = case.to_inner(own, config.free_floor)
    if targets is None:
        targets, theta = case.target[None], theta[:1]
    else:
        problem = Problem(case.log_z, targets, np.tile(weight_R, (len(targets), 1)), theta)
        batch = Batch([problem], case.layout, *bounds(case.layout, config), loss)
        lanes = batch.descend(batch.rank(0, theta, REFIT_LANES), REFIT_STEPS)
        theta = lanes.best(1).theta
    fitted, jacobian = objective.residuals_and_jacobian(
        theta, case.log_z.T[None], 0 * targets, np.ones((1, len(table))), case.layout, plain
    )
    jacobian = np.swapaxes(jacobian, 1, 2)
    weighted = jacobian * root_R[:, None]
    weighted = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    basis, size, _ = np.linalg.svd(weighted, full_matrices=False)
    seen = size > 1e-6 * size.max(axis=1, keepdims=True)
    return Refits(
        targets,
        fitted,
        (targets - fitted) * root_R,
        jacobian,
        basis * seen[:, None],
        seen.sum(axis=1),
        root_R,
    )


class _Case(NamedTuple):
    """One table prepared for the solver: normalised, padded to the batch's number of runs."""

    table: RunTable
    rows: np.ndarray  # bool [len(table)]
    layout: Layout
    space: Space
    reference: float  # errors, or y of a link, are divided by it
    units: np.ndarray  # [C], of starts and reports
    typical: np.ndarray  # [C], geometric means
    log_z: np.ndarray  # [R, C]
    target: np.ndarray  # [R]
    weights: np.ndarray  # [R]
    starts: np.ndarray  # [I, P]
    held: dict  # parameter: the solver's value that it is fixed at

    def problem(self) -> Problem:
        """Return the fit to all runs from all starts."""
        return Problem(self.log_z, self.target[None], self.weights[None], self.starts)

    def to_inner(self, theta, free_floor: bool) -> np.ndarray:
        """Return the solver's theta [I, P] of theta in `units`, all coefficients as logs."""
        design_MP = self.layout.design(np.log(self.typical / self.units)[None])[0]
        inner, logs = theta.copy(), theta @ design_MP.T - np.log(self.reference)
        inner[:, : self.layout.num_coefficients] = self.layout.solve_coefficients(logs)
        if free_floor:
            inner[:, self.layout.floor] = np.exp(inner[:, self.layout.floor])
        return inner

    def to_outer(self, theta, free_floor: bool) -> np.ndarray:
        """Return theta in `units` of the solver's theta [B, P]."""
        design_MP = self.layout.design(np.log(self.units / self.typical)[None])[0]
        outer, logs = theta.copy(), theta @ design_MP.T + np.log(self.reference)
        outer[:, : self.layout.num_coefficients] = self.layout.solve_coefficients(logs)
        if free_floor:
            outer[:, self.layout.floor] = theta[:, self.layout.floor] * self.reference
        return outer


def _case(table: RunTable, rows, config: FitConfig, size: int, unit: float) -> _Case:
    rows_R = np.ones(len(table), bool) if rows is None else np.asarray(rows, bool)
    _check(table, rows_R, config)
    rows_R = rows_R & (table.weights > 0)
    with_n = table.examples is not None
    layout = get_form(config.form).layout(len(table.factors), with_n)
    columns = (*table.factors, *[table.examples] * with_n)
    z_RC = np.column_stack([table.x, table.n]) if with_n else np.asarray(table.x, float)
    typical = np.exp(np.log(z_RC[rows_R]).mean(axis=0))
    space = Space.of(config, table.scale, unit)
    units = typical if config.units == "geomean" else _units(columns, config, table.source)
    held = _held(table, layout, config, space)
    if any(p < layout.num_coefficients and p != layout.floor for p in held):
        typical = units  # such a log coefficient is then a plain coordinate of the solver
    case = _Case(
        table=table,
        rows=rows_R,
        layout=layout,
        space=space,
        reference=space.unit,
        units=units,
        typical=typical,
        log_z=_padded(np.log(z_RC / typical), size),
        target=_padded(_targets(table.error, rows_R, space), size),
        weights=_padded(np.where(rows_R, table.weights, 0.0), size),
        starts=np.empty(0),
        held=held,
    )
    drawn = case.to_inner(starts.draw(layout, config, space.unit), False)
    if config.init == "projected" and layout.shared is None:
        targets = _targets(table.error, rows_R, space)
        sums = np.exp(targets) if space.linked else table.error / unit
        value = _padded(np.where(rows_R, sums, 1.0), size)
        drawn = starts.project(drawn, case.log_z, value, case.weights, layout)
    if config.free_floor:
        drawn[:, layout.floor] = np.exp(drawn[:, layout.floor])
    drawn[:, list(held)] = list(held.values())
    return case._replace(starts=drawn)


def _held(table: RunTable, layout: Layout, config: FitConfig, space: Space) -> dict[int, float]:
    """Return the solver's value of each fixed parameter, by its number.

    Raises:
      ValueError: no such parameter, or a value outside its bounds.
    """
    names = get_form(config.form).parameters(len(table.factors), table.n is not None)
    held, (lower, upper) = {}, bounds(layout, config)
    for name, value in (config.fix or {}).items():
        own = naming.in_form(name, table.factors)
        if own not in names:
            names = naming.parameters(get_form(config.form), table.factors, table.n is not None)
            raise ValueError(
                f"{table.source}: fixed {name!r}{nearest(name, names)} is no parameter of "
                f"{config.form!r}: {', '.join(names)}"
            )
        p = names.index(own)
        low, high, inner = lower[p], upper[p], value
        if p < layout.num_coefficients:
            low, high = 0.0, math.inf if space.linked or layout.shared else table.scale
            free = config.free_floor and p == layout.floor
            low = -math.inf if free else low
            with np.errstate(divide="ignore", invalid="ignore"):
                inner = value / space.unit if free else float(np.log(value / space.unit))
        if not low <= value <= high:
            raise ValueError(
                f"{table.source}: {name} fixed at {value:g} is outside its bounds, {low:g} to "
                f"{high:g}"
            )
        held[p] = inner
    return held


def _begin(case: _Case, config: FitConfig, whole) -> np.ndarray:
    """Return starts [I, P] for other weights: with 'lm', where those of the fit to all arrived."""
    if config.solver != "lm":
        return case.starts
    begin = np.concatenate([whole.theta, whole.arrivals])
    return begin[np.isfinite(begin).all(axis=1)]


def _weighted(case: _Case, whole, loss: Loss) -> _Case:
    """Return the case with weights by the noise of each run and what trainings add to it.

    The latter is estimated from the residuals of a fit in which all runs weigh alike.
    """
    table, rows = case.table, case.rows
    if table.noise is None or not np.isfinite(whole.theta).all():
        return case
    fitted_R, jacobian_RP = _linearised(case, whole, loss)
    noise_R = table.noise / case.reference
    if case.space.linked:
        noise_R = table.noise * case.space.slope(case.space.back(fitted_R))
    elif loss.space == "log":
        noise_R = noise_R / np.exp(fitted_R)
    found = noise.scatter(
        (case.target[: len(table)] - fitted_R)[rows],
        jacobian_RP[rows],
        noise_R[rows],
        None if table.cluster is None else table.cluster[rows],
    )
    if np.isnan(found.training):  # no residuals left: the evaluation's noise is all that is known
        found = found._replace(training=0.0)
    weights_R = np.zeros(len(table))
    weights_R[rows] = noise.weights_of(found, noise_R[rows])
    return case._replace(weights=_padded(weights_R, len(case.weights)))


def _linearised(case: _Case, whole, loss: Loss) -> tuple[np.ndarray, np.ndarray]:
    """Return the fitted values [R] and their Jacobian [R, P], of the parameters that are not
    fixed, at the fit to all runs.
    """
    ones = np.ones((1, len(case.weights)))
    fitted, jacobian = objective.residuals_and_jacobian(
        whole.theta,
        case.log_z.T[None],
        0 * ones,
        ones,
        case.layout,
        Loss(loss.space, None, loss.free_floor),
    )
    free_RP = np.delete(jacobian[0].T[: len(case.table)], list(case.held), axis=1)
    return fitted[0, : len(case.table)], free_RP


def _resampled(case: _Case, config: FitConfig, whole, loss: Loss) -> tuple[Problem, dict]:
    """Return the problem of all resamples, with the fit to all runs as row 0, and for each column
    how many resamples lost one of its levels.
    """
    size, table, kind = len(case.weights), case.table, config.resampling
    level_R = table.x[:, fewest_levels(table.x)]
    if table.cluster is not None and len(np.unique(table.cluster[case.rows])) < 2:
        raise ValueError(
            f"{table.source}: the {case.rows.sum()} runs to fit are of one cluster; resampling "
            "needs several"
        )
    if kind == "wild":
        weights_BR = np.tile(case.weights, (config.resamples, 1))
        used = len(table)
        target_BR = np.tile(case.target, (config.resamples, 1))
        fitted_R, jacobian_RP = _linearised(case, whole, loss)
        target_BR[:, :used] = wild_targets(
            fitted_R,
            case.target[:used],
            jacobian_RP,
            case.weights[:used],
            config.resamples,
            config.seed,
            table.cluster,
        )
    else:
        strata = _strata(table, level_R, case.rows) if kind == "stratified" else None
        inflation, draw = 1.0, "dirichlet" if kind == "bayesian" else "count"
        if table.cluster is not None and np.isfinite(whole.theta).all():
            jacobian_RP = _linearised(case, whole, loss)[1]
            freedom = freedom_of_clusters(jacobian_RP, case.weights[: len(table)], table.cluster)
            inflation = inflation_of(*freedom, draw)
        counts_BR = resample_weights(
            len(table),
            config.resamples,
            config.seed,
            rows=case.rows,
            strata=strata,
            clusters=table.cluster,
            kind=draw,
            inflation=inflation,
        )
        weights_BR = _padded((counts_BR * case.weights[: len(table)]).T, size).T
        target_BR = np.tile(case.target, (config.resamples, 1))
    named = {**dict(zip(table.factors, table.x.T, strict=True)), table.examples: table.n}
    lost = {
        name: int(lost_levels(weights_BR[:, : len(table)], column_R).sum())
        for name, column_R in named.items()
        if column_R is not None
    }
    problem = Problem(
        case.log_z,
        np.concatenate([case.target[None], target_BR]),
        np.concatenate([case.weights[None], weights_BR]),
        _begin(case, config, whole),
    )
    return problem, lost


def _bagged(case: _Case, config: FitConfig, first, bag, lost: dict[str, int]) -> BaggedFit:
    """Return a `BaggedFit` of two solutions: `first` on all runs, `bag` on them and resamples."""
    table, rows = case.table, case.rows
    if (bag.status == FAILED).all() or bag.status[0] == FAILED:
        raise ValueError(
            f"{table.source}: form {config.form!r}: no descent stayed finite on {rows.sum()} runs"
        )
    unit = _unit(config, case.reference) ** 2
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
        runs=FittedRuns(
            table.run_id[rows],
            z[rows],
            table.error[rows],
            case.weights[: len(table)][rows],
            None if table.noise is None else table.noise[rows],
            None if table.cluster is None else table.cluster[rows],
        ),
        lost=lost,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Return the versions of the packages that compute; one that is not installed has none."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _unit(config: FitConfig, reference: float) -> float:
    """Return the size, outside the solver, of a residual of 1 inside."""
    return 1.0 if config.space == "log" else reference


def bounds(layout: Layout, config: FitConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return bounds [P] of the solver's theta; at its lower bound a log coefficient's term is 0."""
    cap = np.inf if config.exponent_cap is None else config.exponent_cap
    gone = -1000.0 if config.exponent_cap is None else -60.0 - 10.0 * cap
    lower = np.full(layout.num_parameters, 0.0 if config.bound_exponents else -cap)
    upper = np.full(layout.num_parameters, cap)
    logs = slice(0, layout.num_coefficients)
    lower[logs], upper[logs] = gone, np.inf
    if config.free_floor:
        lower[layout.floor], upper[layout.floor] = -FLOOR, FLOOR
    return lower, upper


def _units(columns: tuple[str, ...], config: FitConfig, source: str) -> np.ndarray:
    for name in config.units or ():
        if name not in columns:
            raise ValueError(
                f"{source}: units of {name!r}{nearest(name, columns)}, which is no factor: "
                f"{', '.join(columns)}"
            )
    return np.array([config.unit(name) for name in columns])


def _targets(error, rows, space: Space) -> np.ndarray:
    """Return the solver's targets [R]: of errors as shares of the scale, or of y of a link."""
    if space.linked:
        return space.forward(np.where(rows, error, space.ceiling / 2))
    share = np.where(rows, error / space.unit, 1.0)
    return np.log(share) if space.kind == "log" else np.where(rows, share, 0.0)


def _padded(values, size: int) -> np.ndarray:
    """Return values [R, ...] with zeros appended to `size` rows."""
    missing = np.zeros((size - len(values), *np.shape(values)[1:]))
    return np.concatenate([values, missing])


def _strata(table: RunTable, level_R, rows_R) -> np.ndarray:
    """Return labels [R]: the sweep, where there is one, and the level.

    Raises:
      ValueError: no stratum holds two runs, so that every resample would be the table itself.
    """
    sweep_R = table.columns.get("sweep", np.full(len(table), ""))
    pairs = np.char.add(np.char.add(sweep_R.astype(str), " "), level_R.astype(str))
    strata_R = np.unique(pairs, return_inverse=True)[1]
    if np.bincount(strata_R[rows_R]).max() < 2:
        raise ValueError(
            f"{table.source}: resampling 'stratified' draws within each level of "
            f"{table.factors[fewest_levels(table.x)]}, and each holds a single run; 'wild' and "
            "'bayesian' can do without"
        )
    return strata_R


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
        others = f" (and {perfect.size - 1} more)" if perfect.size > 1 else ""
        if not np.isfinite(table.scale):
            raise ValueError(
                f"{table.source}: run {str(table.run_id[perfect[0]])!r}{others} has a loss of "
                f"{table.error[perfect[0]]:g}, which has no logarithm; fit in linear space "
                "(--space linear --free-floor)"
            )
        raise ValueError(
            f"{table.source}: run {str(table.run_id[perfect[0]])!r}{others} has error 0, a score "
            f"of {table.scale:g}, which has no logarithm; leave it out or fit in linear space"
        )
    space = Space.of(config, table.scale, table.reference)
    guessed = np.flatnonzero((table.error >= space.ceiling) & rows_R & (table.weights > 0))
    if space.linked and not np.isfinite(table.scale):
        raise ValueError(
            f"{table.source}: link {config.link!r} is for scores with a best value; a loss has none"
        )
    if space.linked and guessed.size:
        worst = guessed[np.argmax(table.error[guessed])]
        raise ValueError(
            f"{table.source}: link {config.link!r} with chance {config.chance:g}: run "
            f"{str(table.run_id[worst])!r} has a score of {table.scale - table.error[worst]:.6g}, "
            "which is not above it; lower the chance, leave the run out, or fit without a link"
        )
    form = get_form(config.form)
    own_forms.check_ties(
        config.form,
        get_form(config.form.partition("~")[0]),
        len(table.factors),
        table.n is not None,
    )
    if config.free_floor and form.layout(len(table.factors), table.n is not None).floor is None:
        raise ValueError(f"{table.source}: form {config.form!r} has no floor to be free")
    if table.n is not None and not form.has_n:
        raise ValueError(
            f"{table.source}: form {config.form!r} has no number of examples; leave out "
            f"{table.examples}"
        )
