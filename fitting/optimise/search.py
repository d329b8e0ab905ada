"""Many small least-squares fits at once: starts x resamples x problems. The only jaxopt import.

Local minima are real here: the best of 500 starts lies well below the median start, and only a few
starts get there. What makes the search cheap is that the lanes of one problem (a data set and its
resamples) share their valleys:

1. every start descends on all runs;
2. every resample ranks where they arrived, and descends from the best of them on its own weights;
3. its optimum is kicked: each exponent to its bounds, absent terms back to life, and down again;
4. the optima found by all resamples become starts for every resample; 3 and 4 go on while it pays.

Each winner is polished to a gradient tolerance. The step is Levenberg-Marquardt within a box
(exponents that press on their bound are held there). Lanes are cut into chunks of one shape, so
that a single compiled program serves every stage, and chunks go to all local devices; on the CPU,
to a thread a core. Everything is float64, without changing the precision of the process.
"""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fitting.forms import Layout
from fitting.optimise import levenberg_marquardt, objective
from fitting.optimise.levenberg_marquardt import COMPILER, EXACT, STUCK
from fitting.optimise.objective import Loss

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # jaxopt is frozen, and says so on import
    import jaxopt

CONVERGED, STOPPED, FAILED = 0, 1, 2
"""Status of a lane: gradient within tolerance, or so small that a Newton step would gain less than
float64 resolves; best point when iterations ran out; not finite.
"""

STATUSES = ("converged", "stopped", "failed")
ROUNDING = 1e-13  # of the objective: what a sum of squares cannot resolve
SCREEN = ((10, None), (60, None))  # (iterations, lanes kept): every start, on all runs
DESCEND = ((20, 24), (60, 8))  # the best arrivals, on a resample
FINAL = 1  # lanes polished for each resample
POOL = 6  # optima of other resamples tried in each round, and kicks followed on
ROUNDS = 3
NEWTON = 12  # steps at a time
POLISH = 2000  # iterations at most
FADED = 1e-3  # root mean square slope of a term that is next to nothing
BASIN = 1e-3  # relative difference of objectives that lie in one basin
CPU_LANES, ACCELERATOR_LANES = 64, 8192  # a chunk that stays in a core's cache; one that fills
JACOBIAN_BYTES = 2**28  # of a chunk, at most: large tables go in smaller chunks
KICK = 0.02  # of the scale: what a term is brought back with
FAR = 4.0  # an exponent to try where there is no cap
HOPELESS = 1e-2  # relative distance from the best at which a polish gives a lane up
NEAR = 1e-5  # relative distance from an optimum at which a polish of another lane stops
SAME = 1e-6  # relative difference of objectives that are one optimum


class Problem(NamedTuple):
    """One data set with B weightings of it (resamples), and where to start.

    Attributes:
      log_z: [R, C], logs of the normalised factors and of n.
      target: [B, R], log errors, or errors, as the loss has it.
      weights: [B, R], >= 0; 0 leaves a run out and keeps the shapes.
      starts: [I, P], shared by all resamples.
    """

    log_z: np.ndarray
    target: np.ndarray
    weights: np.ndarray
    starts: np.ndarray


class Solution(NamedTuple):
    """The best optimum found for each resample.

    Attributes:
      theta: parameters [B, P]; NaN where no lane stayed finite.
      objective: mean weighted squared residual [B], equation 7 over the sum of weights.
      gradient_norm: of the objective, without what presses on a bound, relative to it [B].
      status: CONVERGED, STOPPED or FAILED, [B].
      basin_share: share of the lanes followed to the last stage that reach the optimum [B].
      arrivals: [I, P], where every start was after the first stage.
    """

    theta: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    status: np.ndarray
    basin_share: np.ndarray
    arrivals: np.ndarray


class _Lanes(NamedTuple):
    """Descents under way: the fit (a resample of a problem) each one serves, how far it is."""

    fit: np.ndarray
    theta: np.ndarray
    damping: np.ndarray
    objective: np.ndarray
    slope: np.ndarray  # norm of the free gradient

    def take(self, chosen) -> "_Lanes":
        return _Lanes(*(column[chosen] for column in self))


def solve(
    problems: Sequence[Problem],
    layout: Layout,
    lower,
    upper,
    *,
    loss: Loss = Loss(),  # noqa: B008  immutable
    solver: str = "lm",
    stages=DESCEND,
    rounds: int = ROUNDS,
    final: int = FINAL,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Solution]:
    """Fits every resample of every problem and keeps the best optimum of each.

    Args:
      problems: of equal R, C and P; any number of resamples and starts.
      layout: of the form.
      lower, upper: bounds [P] of theta; infinite where there is none.
      loss: which residuals.
      solver: 'lm'; or 'lbfgs' or 'jaxopt-lm', jaxopt from every start to the end.
      stages: (iterations, lanes kept for each resample) of 'lm'; kept None follows every start.
      rounds: of kicks and exchanges at most.
      final: lanes polished for each resample.
      on_progress: called with (resamples done, resamples in all).

    Returns:
      a `Solution` a problem; a resample without a finite lane has status FAILED and NaNs.

    Raises:
      ValueError: a target with weight is not finite.
    """
    for problem in problems:
        if not np.isfinite(np.where(problem.weights.max(axis=0) > 0, problem.target, 0.0)).all():
            raise ValueError("solve needs finite targets: in log space every error is positive")
    work = _Work(problems, layout, np.asarray(lower, float), np.asarray(upper, float), loss)
    total = sum(len(p.weights) for p in problems)
    on_progress(0, total)
    if solver == "lm":
        lanes, arrivals = work.search(stages)
    else:
        lanes, arrivals = work.exhaust(solver)
    on_progress(total // 2, total)
    share = work.basin_share(lanes)
    lanes = pool = work.polish(work.best(lanes, final))
    for _ in range(rounds if solver == "lm" else 0):
        lanes, kicked = work.kick(lanes, pool)
        lanes, gained = work.exchange(lanes, _concatenate([pool, kicked]))
        pool = _concatenate([kicked, gained])
    lanes = work.refresh(work.best(lanes, 1))
    on_progress(total, total)
    return work.solutions(lanes, share, arrivals)


class _Work:
    """The fits of all problems as one flat list, and what is done to lanes of them."""

    def __init__(self, problems, layout, lower, upper, loss):
        self.problems, self.layout, self.loss = problems, layout, loss
        self.lower, self.upper = lower, upper
        sizes = [len(problem.weights) for problem in problems]
        self.problem_of_fit = np.repeat(np.arange(len(problems)), sizes)
        self.first_fit = np.cumsum([0, *sizes])
        self.log_z = np.stack([np.asarray(problem.log_z, float).T for problem in problems])
        weights = np.concatenate([problem.weights for problem in problems])
        self.root = np.sqrt(weights / weights.sum(axis=1, keepdims=True))
        target = np.concatenate([problem.target for problem in problems])
        self.target = np.where(self.root > 0, target, 0.0)
        self.devices, chunk = _devices()
        room = JACOBIAN_BYTES // (8 * self.log_z.shape[-1] * len(lower))
        self.chunk = max(1, min(chunk, room))

    # --- the steps of the search ---

    def search(self, stages) -> tuple[_Lanes, list]:
        """Stages of fewer lanes and more iterations: the lanes left, and the first arrivals."""
        (iterations, kept), *later = stages
        parts = [self.rank(g, problem.starts, kept) for g, problem in enumerate(self.problems)]
        lanes = self.descend(_concatenate(parts), iterations)
        arrivals = [
            lanes.theta[lanes.fit == first][: len(problem.starts)] if kept is None else None
            for first, problem in zip(self.first_fit, self.problems, strict=False)
        ]
        for iterations, kept in later:
            lanes = lanes if kept is None else self.best(lanes, kept)
            lanes = self.descend(lanes, iterations)
        return lanes, arrivals

    def rank(self, g: int, candidates, kept: int | None, exclude=None) -> _Lanes:
        """Lanes of every resample of problem g at its `kept` best candidates [C, P]; None: all.

        exclude: [C], a fit that the candidate is not for.
        """
        fits = np.arange(self.first_fit[g], self.first_fit[g + 1])
        count = len(candidates)
        if kept is None or kept >= count:
            chosen = np.broadcast_to(np.arange(count), (len(fits), count))
        else:
            value_BC = self.values(g, candidates, fits)
            if exclude is not None:
                value_BC = np.where(fits[:, None] == exclude, np.inf, value_BC)
            chosen = _lowest_distinct(value_BC, kept)
        return self.start(np.repeat(fits, chosen.shape[1]), candidates[chosen.ravel()])

    def values(self, g: int, candidates, fits) -> np.ndarray:
        """Objective [B, C] of candidates [C, P] on the resamples; not finite is inf."""
        with np.errstate(all="ignore"):
            value_CR, _ = objective.model(candidates, self.log_z[g][None], self.layout, self.loss)
            parts = [
                objective.transform(value_CR - self.target[fit], self.loss)[0] ** 2
                @ self.root[fit] ** 2
                for fit in fits
            ]
        return np.nan_to_num(np.stack(parts), nan=np.inf)

    def polish(self, lanes: _Lanes, rivals: np.ndarray | None = None) -> _Lanes:
        """Descends until the gradient is within tolerance or nothing moves.

        rivals: objectives [B] already had; lanes that will not beat them are given up.
        """
        rivals = np.full(len(self.root), np.inf) if rivals is None else rivals
        spent, step = 0, 40
        while spent < POLISH:
            active = np.isfinite(lanes.objective) & (lanes.damping <= STUCK)
            active &= ~self.converged(lanes)
            best = np.minimum(rivals, self.least(lanes))[lanes.fit]
            active &= lanes.objective <= (1 + HOPELESS / (1 + spent / 40) ** 2) * best
            rival = rivals[lanes.fit]  # a lane that nears one is on its way to the same optimum
            same = (lanes.objective > (1 - SAME) * rival) & (lanes.objective < (1 + NEAR) * rival)
            active &= ~same
            if not active.any():
                break
            moved = self.vanish(lanes.take(active))
            moved = self.descend(self.newton(moved) if spent else moved, step)
            for column, new in zip(lanes, moved, strict=True):
                column[active] = new
            spent, step = spent + step, 2 * step
        return lanes

    @np.errstate(all="ignore")
    def newton(self, lanes: _Lanes) -> _Lanes:
        """A few damped Newton steps within the box, on the host: few lanes get here.

        Levenberg-Marquardt converges slowly along a flat, bent valley; the full Hessian does not.
        Objective and slope of the lanes are left to the next descent.
        """
        out = lanes.theta.copy()
        for rows, data in self.by_problem(lanes.fit):
            theta, damping = out[rows], np.full(len(rows), 1e-9)
            value, gradient, hessian = objective.derivatives(theta, *data)
            for _ in range(NEWTON):
                move, _ = self.newton_step(theta, gradient, hessian, damping)
                new_theta = np.clip(theta - move, self.lower, self.upper)
                new = objective.derivatives(new_theta, *data)
                better = new[0] < value
                theta[better], value[better] = new_theta[better], new[0][better]
                gradient[better], hessian[better] = new[1][better], new[2][better]
                damping = np.where(better, damping / 10, damping * 100)
            out[rows] = theta
        return lanes._replace(theta=out)

    @np.errstate(all="ignore")
    def exhausted(self, lanes: _Lanes) -> np.ndarray:
        """Bool [N]: a Newton step would gain less than rounding, whatever the gradient."""
        gain = np.full(len(lanes.fit), np.inf)
        for rows, data in self.by_problem(lanes.fit):
            theta = lanes.theta[rows]
            _, gradient, hessian = objective.derivatives(theta, *data)
            known = np.isfinite(hessian).all(axis=(1, 2))  # eigh raises on what is not finite
            hessian[~known] = 0.0
            _, gained = self.newton_step(theta, gradient, hessian, np.zeros(len(rows)))
            gain[rows] = np.where(known, gained, np.inf)
        return gain <= ROUNDING * lanes.objective

    def by_problem(self, fit):
        """Yields (rows, what `objective.derivatives` takes after theta) of each problem in fit."""
        for g in np.unique(self.problem_of_fit[fit]):
            rows = np.flatnonzero(self.problem_of_fit[fit] == g)
            data = self.target[fit[rows]], self.root[fit[rows]], self.layout, self.loss
            yield rows, (self.log_z[g], *data)

    def newton_step(self, theta, gradient, hessian, damping):
        """(downhill move [N, P], what it gains by the quadratic model [N]).

        Parameters that press on a bound stay; directions that bend down are turned round.
        """
        low, high = theta <= self.lower, theta >= self.upper
        free = ~((low & (gradient > 0)) | (high & (gradient < 0)))
        matrix = hessian * (free[:, :, None] & free[:, None])
        matrix += np.eye(theta.shape[1]) * ~free[:, None]
        bend, axes = np.linalg.eigh(matrix)
        slope = (np.swapaxes(axes, 1, 2) @ (gradient * free)[..., None])[..., 0]
        along = slope / (np.abs(bend) + damping[:, None])
        along = np.where(slope == 0, 0.0, along)
        return (axes @ along[..., None])[..., 0], (slope * along).sum(axis=1) / 2

    @np.errstate(all="ignore")
    def vanish(self, lanes: _Lanes) -> _Lanes:
        """Lets terms that have become next to nothing, and still shrink, become nothing.

        The gradient of a log coefficient fades with its term: a descent alone would follow it
        towards minus infinity for ever.
        """
        logs = slice(0, self.layout.num_terms)
        log_z, target = self.log_z[self.problem_of_fit[lanes.fit]], self.target[lanes.fit]
        data = target, self.root[lanes.fit], self.layout, self.loss
        r, jac = objective.residuals_and_jacobian(lanes.theta, log_z, *data)
        largest = np.sqrt((jac[:, logs] ** 2).sum(axis=-1))
        shrinks = (jac[:, logs] @ r[..., None])[..., 0] > 0
        goes = (largest < FADED) & shrinks & np.isfinite(self.lower[logs])
        if self.loss.free_floor:
            goes[:, self.layout.floor] = False
        theta = lanes.theta.copy()
        theta[:, logs] = np.where(goes, self.lower[logs], theta[:, logs])
        value = (objective.residuals(theta, log_z, *data) ** 2).sum(axis=1)
        # The other terms have yet to make up for it: let the objective rise a little first.
        gone = goes.any(axis=1) & (value <= (1 + BASIN) * lanes.objective)
        return lanes._replace(theta=np.where(gone[:, None], theta, lanes.theta))

    def refresh(self, lanes: _Lanes) -> _Lanes:
        """Polishes once more, with fresh damping, what stands short of an optimum."""
        short = np.flatnonzero(np.isfinite(lanes.objective) & ~self.converged(lanes))
        if not short.size:
            return lanes
        before = lanes.take(short)
        again = self.start(before.fit, self.vanish(before).theta)
        after = self.polish(self.descend(again, 40))
        better = short[after.objective <= before.objective]
        for column, new in zip(lanes, after.take(after.objective <= before.objective), strict=True):
            column[better] = new
        return lanes

    def kick(self, lanes: _Lanes, pool: _Lanes) -> tuple[_Lanes, _Lanes]:
        """Tries each exponent at its bounds, and absent terms anew, from every optimum in the pool.

        Optima with an exponent at its bound (a term that switches on at one level) are real and
        too narrow for random starts. Returns the best lanes, and the new optima.
        """
        pool, layout = self.best(pool, 1), self.layout
        peaks = np.maximum(self.peaks(pool.fit, pool.theta), np.log(KICK))
        moves = [(p, end) for p in range(layout.num_terms, len(self.lower)) for end in self.ends(p)]
        tried = []
        for p, end in [(None, 0.0), *moves]:
            theta = pool.theta.copy()
            if p is not None:
                theta[:, p] = end
            raised = theta[:, : layout.num_terms] + peaks - self.peaks(pool.fit, theta)
            if self.loss.free_floor:
                raised[:, layout.floor] = theta[:, layout.floor]
            theta[:, : layout.num_terms] = raised
            tried.append(self.start(pool.fit, theta))
        return self.settle(lanes, tried)

    def peaks(self, fit, theta) -> np.ndarray:
        """The largest log term [N, M] on the runs of each fit."""
        log_z = self.log_z[self.problem_of_fit[fit]]
        log_terms = np.repeat(theta[:, : self.layout.num_terms, None], log_z.shape[-1], axis=-1)
        for m, p, sign, column in self.layout.powers:
            log_terms[:, m] += sign * theta[:, p, None] * log_z[:, column]
        return np.where(self.root[fit][:, None] > 0, log_terms, -np.inf).max(axis=-1)

    def ends(self, p: int) -> tuple[float, float]:
        """The bounds of an exponent, or far values where it has none."""
        lower, upper = self.lower[p], self.upper[p]
        return (lower if np.isfinite(lower) else -FAR, upper if np.isfinite(upper) else FAR)

    def exchange(self, lanes: _Lanes, pool: _Lanes) -> tuple[_Lanes, _Lanes]:
        """Tries the optima in the pool on every resample: the best lanes, and the new optima."""
        tried = []
        for g in range(len(self.problems)):
            here = pool.take(self.problem_of_fit[pool.fit] == g)
            if len(here.fit):
                tried.append(self.rank(g, here.theta, POOL, exclude=here.fit))
        return self.settle(lanes, tried)

    def settle(self, lanes: _Lanes, tried: list) -> tuple[_Lanes, _Lanes]:
        """Descends from what is tried: the best lanes of all, and the optima that are new."""
        tried = [some for some in tried if len(some.fit)]
        if not tried:
            return lanes, lanes.take(slice(0))
        found = self.best(self.descend(_concatenate(tried), 15), POOL)
        found = self.best(self.descend(found, 30), 2)
        found = found.take(np.isfinite(found.objective))
        before = self.least(lanes)
        found = self.best(self.polish(found, before), 1)
        gained = found.take(found.objective < (1 - SAME) * before[found.fit] - EXACT)
        gained = self.polish(gained)
        return self.best(_concatenate([lanes, gained]), 1), gained

    def exhaust(self, solver: str) -> tuple[_Lanes, list]:
        """jaxopt from every start of every resample to its end, as the paper does with scipy."""
        parts = [self.rank(g, problem.starts, None) for g, problem in enumerate(self.problems)]
        lanes = _concatenate(parts)
        inside = np.clip(lanes.theta, self.lower, self.upper)
        bounds = dict(lower=self.lower, upper=self.upper)
        devices, self.devices = self.devices, self.devices[:1]  # as for `solve_positive`
        theta = self.spread(
            functools.partial(_jaxopt, solver=solver, layout=self.layout, loss=self.loss),
            bounds,
            self.to_columns(lanes._replace(theta=inside)),
        )["theta"]
        self.devices = devices
        return self.descend(lanes._replace(theta=theta), 0), [None] * len(self.problems)

    # --- lanes ---

    def start(self, fit, theta) -> _Lanes:
        """Fresh lanes; damping 0 has the program choose it."""
        count = len(fit)
        unknown = np.full(count, np.inf)
        return _Lanes(fit, np.array(theta), np.zeros(count), unknown, unknown.copy())

    def best(self, lanes: _Lanes, kept: int) -> _Lanes:
        """The `kept` lanes of least objective of every fit, ordered by fit and objective."""
        order = np.lexsort((np.nan_to_num(lanes.objective, nan=np.inf), lanes.fit))
        fit = lanes.fit[order]
        rank = np.arange(len(fit)) - np.searchsorted(fit, fit)
        return lanes.take(order[rank < kept])

    def converged(self, lanes: _Lanes) -> np.ndarray:
        """Bool [N]."""
        with np.errstate(invalid="ignore"):
            small = lanes.slope <= levenberg_marquardt.GRADIENT_TOLERANCE * lanes.objective
        return small | (lanes.objective <= EXACT)

    def basin_share(self, lanes: _Lanes) -> np.ndarray:
        """Share [B] of each fit's lanes that reached its least objective."""
        total, reached = np.zeros(len(self.root)), np.zeros(len(self.root))
        close = lanes.objective <= (1 + BASIN) * self.least(lanes)[lanes.fit] + EXACT
        np.add.at(total, lanes.fit, 1.0)
        np.add.at(reached, lanes.fit, close)
        return reached / total

    def least(self, lanes: _Lanes) -> np.ndarray:
        """The least objective [B] among the lanes of each fit."""
        least = np.full(len(self.root), np.inf)
        np.minimum.at(least, lanes.fit, np.nan_to_num(lanes.objective, nan=np.inf))
        return least

    def descend(self, lanes: _Lanes, iterations: int) -> _Lanes:
        """At most so many steps of every lane."""
        out = self.spread(
            functools.partial(levenberg_marquardt.descend, layout=self.layout, loss=self.loss),
            dict(lower=self.lower, upper=self.upper, iterations=np.int64(iterations)),
            self.to_columns(lanes),
        )
        return _Lanes(lanes.fit, *(out[name] for name in _Lanes._fields[1:]))

    def to_columns(self, lanes: _Lanes) -> dict:
        """What the programs read of lanes."""
        return dict(theta=lanes.theta, damping=lanes.damping, fit=lanes.fit)

    def spread(self, program, shared: dict, columns: dict) -> dict:
        """Runs a program over all lanes, chunk by chunk, on all devices."""
        count = len(columns["fit"])

        def work(job):
            number, first = job
            rows = np.arange(first, first + self.chunk)
            rows = np.where(rows < count, rows, first)  # a padded lane repeats a real one
            fit = columns["fit"][rows]
            arrays = dict(
                theta=columns["theta"][rows],
                damping=columns["damping"][rows],
                log_z=self.log_z[self.problem_of_fit[fit]],
                target=self.target[fit],
                root=self.root[fit],
            )
            device = self.devices[number % len(self.devices)]
            with jax.enable_x64(True), jax.default_device(device):
                return jax.device_get(program(**arrays, **shared))

        jobs = list(enumerate(range(0, count, self.chunk)))
        if len(jobs) == 1 or len(self.devices) == 1:
            parts = [work(job) for job in jobs]
        else:
            with ThreadPoolExecutor(len(self.devices)) as pool:
                parts = list(pool.map(work, jobs))
        return {name: np.concatenate([p[name] for p in parts])[:count] for name in parts[0]}

    def solutions(self, lanes: _Lanes, share, arrivals) -> list[Solution]:
        """One lane a fit as a `Solution` a problem."""
        finite = np.isfinite(lanes.objective) & np.isfinite(lanes.theta).all(axis=1)
        status = np.where(self.converged(lanes), CONVERGED, STOPPED)
        late = np.flatnonzero(finite & (status == STOPPED))
        status[late[self.exhausted(lanes.take(late))]] = CONVERGED
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = np.where(lanes.objective > EXACT, lanes.slope / lanes.objective, 0.0)
        columns = (
            np.where(finite[:, None], lanes.theta, np.nan),
            np.where(finite, lanes.objective, np.nan),
            np.where(finite, relative, np.nan),
            np.where(finite, status, FAILED),
            np.where(finite, share, 0.0),
        )
        return [
            Solution(*(column[first:last] for column in columns), arrived)
            for first, last, arrived in zip(
                self.first_fit, self.first_fit[1:], arrivals, strict=False
            )
        ]


def _concatenate(parts: Sequence[_Lanes]) -> _Lanes:
    return _Lanes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _lowest_distinct(value_BC, kept: int) -> np.ndarray:
    """Indices [B, kept] of the lowest values of each row, those equal to a lower one last."""
    order_BC = np.argsort(value_BC, axis=1, kind="stable")
    sorted_BC = np.take_along_axis(value_BC, order_BC, axis=1)
    with np.errstate(invalid="ignore"):
        repeats = np.diff(sorted_BC, axis=1) <= SAME * sorted_BC[:, 1:]
    repeats_BC = np.concatenate([np.zeros((len(value_BC), 1), bool), repeats], axis=1)
    last = np.argsort(repeats_BC, axis=1, kind="stable")[:, :kept]
    return np.take_along_axis(order_BC, last, axis=1)


def _devices() -> tuple[list, int]:
    """Where lanes run and how many go at once.

    Where jax runs by default (`JAX_PLATFORMS`, `jax.default_device`), except that TPUs have no
    float64. One CPU device appears once for every core, for as many threads.
    """
    devices = [jax.config.jax_default_device]
    if not isinstance(devices[0], jax.Device):
        devices = jax.local_devices()
    if devices[0].platform == "tpu":
        devices = jax.local_devices(backend="cpu")
    if devices[0].platform != "cpu":
        return devices, ACCELERATOR_LANES
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return devices * max(1, cores // len(devices)), CPU_LANES


# --- jaxopt's own ---


@functools.partial(jax.jit, static_argnames=("solver", "layout", "loss"), compiler_options=COMPILER)
def _jaxopt(theta, damping, log_z, target, root, lower, upper, *, solver, layout, loss):
    """jaxopt's own solvers, from theta [L, P] to the end; bounds are kept by a smooth map."""
    del damping
    is_exponent = jnp.arange(len(lower)) >= layout.num_terms
    boxed = is_exponent & jnp.isfinite(lower) & jnp.isfinite(upper)
    above = is_exponent & (lower == 0) & ~boxed
    half, middle = (jnp.where(boxed, v, 1.0) for v in ((upper - lower) / 2, (upper + lower) / 2))

    def to_theta(phi):
        inside = middle + half * jnp.tanh((phi - middle) / half)
        return jnp.where(boxed, inside, jnp.where(above, jax.nn.softplus(phi), phi))

    def to_phi(theta):
        inside = middle + half * jnp.arctanh(jnp.clip((theta - middle) / half, -0.999, 0.999))
        gap = jnp.where(above, jnp.maximum(theta, 1e-3), 1.0)
        return jnp.where(boxed, inside, jnp.where(above, gap + jnp.log(-jnp.expm1(-gap)), theta))

    def residuals(phi, log_z, target, root):
        one = to_theta(phi)[None]
        return objective.residuals(one, log_z[None], target[None], root[None], layout, loss)[0]

    def value(phi, *data):
        return jnp.sum(residuals(phi, *data) ** 2)

    if solver == "lbfgs":
        method = jaxopt.LBFGS(value, maxiter=500, tol=1e-9, linesearch="zoom", implicit_diff=False)
    else:
        method = jaxopt.LevenbergMarquardt(
            residuals,
            materialize_jac=True,
            solver="cholesky",
            stop_criterion="grad-l2-norm",
            maxiter=500,
            tol=1e-9,
            xtol=0.0,
            gtol=0.0,
            implicit_diff=False,
        )

    def run(theta, *data):
        return to_theta(method.run(to_phi(theta), *data).params)

    return dict(theta=jax.vmap(run)(theta, log_z, target, root))
