"""Profile-likelihood intervals of exponents and the floor.

A parameter is held at each value of a grid while all others are fitted anew. The values whose
squared residuals exceed the least by less than a threshold form the interval: s^2 F, with s^2 the
noise estimated from the residuals and F the quantile of F(1, runs - parameters), which tends to
that of chi-square(1). Where runs form clusters, the threshold grows by how much wider a parameter's
cluster-robust variance is than its plain one (Rotnitzky and Jewell 1990).

Unlike the range of a bag it needs no resampling, so it does not shrink where resamples lose what
determines a parameter; it assumes that the form holds. An end at which the search stopped (the cap
of the exponents) is open: the runs allow more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from fitting.fits import bounds
from fitting.formatting import aligned, nearest, number
from fitting.law import BaggedFit
from fitting.optimise import levenberg_marquardt, objective
from fitting.optimise.batch import devices_and_chunk
from fitting.optimise.objective import Loss
from fitting.summary import linearised, standard_errors

LEVEL = 0.9
STEPS = (0.3, 0.7, 1.2, 1.7, 2.5, 4.0, 7.0)  # of the first grid, in standard errors
FLOORS = np.array([0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97])  # of the least error
CANDIDATES = 3  # members from which each value's fit begins
ITERATIONS = 150
FINE = 3  # values tried between the two that enclose an end


@dataclass(frozen=True, eq=False)
class Profile:
    """The profile of one parameter.

    Attributes:
      name: of the parameter.
      values: [G], ascending; a floor in error points.
      deviance: [G], squared residuals above the least, in units of the noise.
      threshold: of the deviance.
      estimate: of the fit to all runs.
      low, high: ends of the interval, `LEVEL`.
      open_low, open_high: whether the interval ends where the search had to.
      bag: (5%, 95%) of the members; NaN without resampling.
    """

    name: str
    values: np.ndarray
    deviance: np.ndarray
    threshold: float
    estimate: float
    low: float
    high: float
    open_low: bool
    open_high: bool
    bag: tuple[float, float]

    @property
    def note(self) -> str:
        """Return what a reader should know of the ends, or ''."""
        ends = [
            f"{side} end is the limit of the search"
            for side, is_open in (("lower", self.open_low), ("upper", self.open_high))
            if is_open
        ]
        if self.low == 0 and not ends:
            ends.append("0 is possible")
        return "; ".join(ends)

    def rows(self) -> list[dict]:
        """Return one mapping per value of the grid."""
        return [
            {
                "parameter": self.name,
                "value": float(value),
                "deviance": float(above),
                "threshold_90": self.threshold,
                "low_90": self.low,
                "high_90": self.high,
                "bag_5": self.bag[0],
                "bag_95": self.bag[1],
            }
            for value, above in zip(self.values, self.deviance, strict=True)
        ]


def names_of(law: BaggedFit, asked: str | Sequence[str]) -> tuple[str, ...]:
    """Return the parameters that 'all' or 'a_N,epsilon' names.

    Raises:
      ValueError: no such parameter, a coefficient (its value depends on the units), or a law
        without a likelihood.
    """
    if law.config.loss == "huber":
        raise ValueError("a profile needs squared residuals; Huber's loss is no likelihood")
    if law.degenerate:
        raise ValueError(f"the law is degenerate ({law.degenerate}); there is nothing to profile")
    allowed = [n for n, e in zip(law.parameters, law.is_exponent, strict=True) if e]
    if law.layout.floor is not None and not law.config.free_floor:
        allowed.append(law.parameters[law.layout.floor])
    named = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)
    if named == ["all"]:
        return tuple(allowed)
    for name in named:
        if name not in allowed:
            raise ValueError(
                f"no profile of {name!r}{nearest(name, allowed)}: exponents and the floor have "
                f"one, {', '.join(allowed)}"
            )
    return tuple(named)


def profile(
    law: BaggedFit,
    names: str | Sequence[str] = "all",
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Profile]:
    """Return the `Profile` of each parameter named.

    Args:
      law: a fitted law, of squared residuals.
      names: 'all', names parted by commas, or a sequence of names.
      on_progress: called with (parameters done, parameters in all).

    Raises:
      ValueError: as `names_of`.
    """
    names = names_of(law, names)
    task, found = _Task(law), []
    for done, name in enumerate(names):
        on_progress(done, len(names))
        found.append(task.profile(name))
    on_progress(len(names), len(names))
    return found


class _Task:
    """A law's data in the coordinates of the solver, and refits with one parameter held."""

    def __init__(self, law: BaggedFit):
        self.law, config, runs = law, law.config, law.runs
        self.loss = Loss(config.space, None, config.free_floor)
        log_z = np.log(runs.z)
        typical = log_z.mean(axis=0)
        self.log_z = (log_z - typical).T[None]
        share = runs.error / law.reference
        if law.space.linked:
            self.target = law.space.forward(runs.error)[None]
        else:
            self.target = (np.log(share) if config.space == "log" else share)[None]
        self.root = np.sqrt(runs.weights / runs.weights.sum())[None]
        design_MP = law.layout.design((typical - np.log(law.units))[None])[0]
        theta = np.concatenate([law.whole.theta, law.theta])
        theta = theta[np.isfinite(theta).all(axis=1)]
        logs = law.layout.solve_coefficients(theta @ design_MP.T - np.log(law.space.unit))
        self.starts = theta.copy()
        self.starts[:, : law.layout.num_coefficients] = logs
        if config.free_floor:
            self.starts[:, law.layout.floor] = np.exp(self.starts[:, law.layout.floor])
        self.lower, self.upper = bounds(law.layout, config)
        self.spare = max(law.num_runs - len(self.lower), 1)
        free = self.lower[None], self.upper[None]
        self.least = float(self.refit(self.starts[:1], *free)[1][0])

    def refit(self, theta, lower, upper, iterations: int = ITERATIONS):
        """Return (theta [L, P], objective [L]) of descents within bounds [L, P]."""
        shape = theta.shape
        theta, lower, upper = (np.broadcast_to(a, shape) for a in (theta, lower, upper))
        _, size = devices_and_chunk()
        parts = []
        with jax.enable_x64(True):
            for first in range(0, len(theta), size):
                rows = np.arange(first, first + size)
                rows = np.where(rows < len(theta), rows, first)
                parts.append(
                    jax.device_get(
                        levenberg_marquardt.descend(
                            np.ascontiguousarray(theta[rows]),
                            np.zeros(size),
                            np.repeat(self.log_z, size, axis=0),
                            np.repeat(self.target, size, axis=0),
                            np.repeat(self.root, size, axis=0),
                            lower[rows],
                            upper[rows],
                            np.int64(iterations),
                            layout=self.law.layout,
                            loss=self.loss,
                        )
                    )
                )
        count = len(theta)
        ends = np.concatenate([part["theta"] for part in parts])[:count]
        value = np.concatenate([part["objective"] for part in parts])[:count]
        return ends, np.where(np.isfinite(value), value, np.inf)

    def held(self, p: int, at_G, found=None) -> tuple[np.ndarray, np.ndarray]:
        """Return (theta [G, P], objective [G]) of the best fits with theta_p held at each value.

        They begin at members and, in place of one another's ends, at fits `found` nearby [I, P].
        """
        count = len(at_G)
        lower, upper = (np.tile(bound, (count, 1)) for bound in (self.lower, self.upper))
        lower[:, p] = upper[:, p] = at_G
        starts = self.starts if found is None else np.concatenate([self.starts, found])
        tried = np.repeat(starts[None], count, axis=0)
        tried[..., p] = at_G[:, None]
        value_GC = np.stack([self.objective(some) for some in tried])
        best_GC = np.argsort(value_GC, axis=1)[:, :CANDIDATES]
        chosen = np.take_along_axis(tried, best_GC[..., None], axis=1)
        kept = chosen.shape[1]
        theta, value = self.refit(
            chosen.reshape(-1, chosen.shape[-1]),
            np.repeat(lower, kept, axis=0),
            np.repeat(upper, kept, axis=0),
        )
        value = value.reshape(count, kept)
        best = value.argmin(axis=1)
        theta = theta.reshape(count, kept, -1)[np.arange(count), best]
        value = value[np.arange(count), best]
        for shift in (
            (1, -1) if found is None else ()
        ):  # from the neighbour's fit, which may lie in a deeper valley
            near = np.clip(np.arange(count) - shift, 0, count - 1)
            other = theta[near].copy()
            other[:, p] = at_G
            moved, reached = self.refit(other, lower, upper)
            better = reached < value
            theta[better], value[better] = moved[better], reached[better]
        return theta, value

    def objective(self, theta) -> np.ndarray:
        """Return the objective [L] of theta [L, P]."""
        with np.errstate(all="ignore"):
            residual = objective.residuals(
                theta, self.log_z, self.target, self.root, self.law.layout, self.loss
            )
            return np.nan_to_num((residual**2).sum(axis=1), nan=np.inf)

    def profile(self, name: str) -> Profile:
        """Return the profile of one parameter."""
        from scipy import stats

        law, p = self.law, self.law.parameters.index(name)
        floor = p == law.layout.floor
        values = self.grid(p, floor)
        theta, value = self.held(p, self.inner(values, floor))
        threshold = float(stats.f.ppf(LEVEL, 1, self.spare)) * _design_effect(law, p)
        for _ in range(2):
            finer = self.between(values, self.deviance(value), threshold)
            if not len(finer):
                break
            more, reached = self.held(p, self.inner(finer, floor), theta)
            order = np.argsort(np.concatenate([values, finer]), kind="stable")
            theta = np.concatenate([theta, more])[order]
            values = np.concatenate([values, finer])[order]
            value = np.concatenate([value, reached])[order]
        self.least = min(self.least, float(value.min()))
        above = self.deviance(value)
        low, high = _ends(values, above, threshold)
        inside = above <= threshold
        members = np.where(law.absent, 0.0, law.values)[np.isfinite(law.theta).all(axis=1), p]
        alone = law.config.resampling == "none"
        bag = (np.nan, np.nan) if alone else np.quantile(members, [0.05, 0.95])
        return Profile(
            name=name,
            values=values,
            deviance=above,
            threshold=threshold,
            estimate=float(law.readable(law.whole.theta)[0, p]),
            low=low,
            high=high,
            open_low=bool(inside[0]) and not floor and not law.config.bound_exponents,
            open_high=bool(inside[-1]),
            bag=(float(bag[0]), float(bag[1])),
        )

    def deviance(self, value) -> np.ndarray:
        """Return the squared residuals above the least, in units of the noise."""
        least = max(min(self.least, value.min()), 1e-26)
        return np.maximum(value / least - 1, 0.0) * self.spare

    def inner(self, values, floor: bool) -> np.ndarray:
        """Return values of a parameter as the solver has them."""
        if not floor:
            return values
        with np.errstate(divide="ignore"):
            logs = np.log(values / self.law.space.unit)
        return np.maximum(logs, self.lower[self.law.layout.floor])

    def grid(self, p: int, floor: bool) -> np.ndarray:
        """Return the first values to hold the parameter at."""
        law = self.law
        at = float(law.readable(law.whole.theta)[0, p])
        if floor:
            return np.unique(np.append(FLOORS * law.runs.error.min(), at))
        step = float(standard_errors(law)[0][p])
        members = law.theta[np.isfinite(law.theta).all(axis=1), p]
        spread = float(np.subtract(*np.quantile(members, [0.95, 0.05]))) / 3.3
        step = min(step if np.isfinite(step) else 1.0, max(spread, 0.02) * 3, 1.0)
        steps = step * np.array(STEPS)
        far = max(self.lower[p], at - 8), min(self.upper[p], at + 8)
        between = np.linspace(*far, 5)
        values = np.concatenate([at - steps, [at], at + steps, between])
        return np.unique(np.clip(values, *far))

    def between(self, values, above, threshold: float) -> np.ndarray:
        """Return values between neighbours of which one is inside the interval and one is not."""
        inside, found = above <= threshold, []
        for i in np.flatnonzero(inside[1:] != inside[:-1]):
            found.append(np.linspace(values[i], values[i + 1], FINE + 2)[1:-1])
        return np.concatenate(found) if found else np.empty(0)


def _ends(values, above, threshold: float) -> tuple[float, float]:
    """Return where the deviance crosses the threshold, outward from its least value."""
    signed = np.sqrt(above) - np.sqrt(threshold)
    inside = np.flatnonzero(signed <= 0)
    if not len(inside):
        at = float(values[above.argmin()])
        return at, at
    ends = []
    for i, step in ((inside[0], -1), (inside[-1], 1)):
        j = i + step
        if not 0 <= j < len(values):
            ends.append(float(values[i]))
            continue
        share = -signed[i] / (signed[j] - signed[i])
        ends.append(float(values[i] + share * (values[j] - values[i])))
    return ends[0], ends[1]


def _design_effect(law: BaggedFit, p: int) -> float:
    """Return how much wider, 1 or more, a parameter's variance is by clusters than by runs."""
    if law.runs.cluster is None:
        return 1.0
    residual, jacobian = linearised(law)
    root = np.sqrt(law.runs.weights)
    length = np.maximum(np.linalg.norm(root[:, None] * jacobian, axis=0), 1e-300)
    pull_R = np.linalg.pinv(root[:, None] * jacobian / length, rcond=1e-7)[p]
    unit = np.unique(law.runs.cluster, return_inverse=True)[1]
    sums = np.bincount(unit, pull_R * root * residual)
    count = unit.max() + 1
    spare = max(law.num_runs - jacobian.shape[1], 1)
    plain = (pull_R**2).sum() * (root**2 * residual**2).sum() / spare
    robust = (sums**2).sum() * count / (count - 1)
    return float(max(1.0, robust / plain)) if plain > 0 else 1.0


def text(profiles: Sequence[Profile]) -> str:
    """Return the intervals beside the members' quantiles as a table."""
    rows = [
        [
            one.name,
            *(number(value) for value in (one.estimate, one.low, one.high, *one.bag)),
            one.note,
        ]
        for one in profiles
    ]
    heads = ("90% intervals", "all runs", "profile low", "high", "bag 5%", "95%", "")
    return aligned(heads, rows)
