"""Design a first set of runs for a purse: which star, which isoFLOP curves.

Nothing is measured yet, so a design is judged on laws drawn from a broad prior: its runs are
simulated with noise, a law is fitted to them, and the regret of the fitted choices is averaged over
the laws. Designs differ in the share of the purse that a star takes (it shows each factor alone,
and the data); isoFLOP curves, which trade the factors near the budgets, take the rest.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fitting.config import FACTORS, FitConfig
from fitting.fits import fit_many
from fitting.forms import get_form
from fitting.next_runs import Question, spread_levels, training_cost
from fitting.runs import RunTable
from fitting.sweeps import Domain, Point, isoflop_sweep, star_sweep

SHARES = (0.0, 0.15, 0.35, 0.6, 1.0)
"""Shares of the purse that a star may take."""

LAWS = 24  # drawn from the prior
NOISE = 0.015  # of a simulated run, relative
FEWEST, MOST = 8, 150  # runs of a design
FIT = FitConfig(resampling="none", starts=40)
CURVES = (1.0, 0.5, 1 / 6, 1 / 15)  # of the largest budget: the paper's are 30, 15, 5 and 2 TFLOPs
TOLERANCE = 0.06  # of an isoFLOP run from its budget
HIGHEST = 90.0  # error of a law of the prior anywhere on the domain


@dataclass(frozen=True)
class Design:
    """Runs to train first.

    Attributes:
      points: the runs.
      center: of the star; None without one.
      star_examples: data sizes of the star.
      budgets: of the isoFLOP curves, in the unit of the cost.
      isoflop_examples: their n; None without curves.
      cost: of training all, 3 c n a run.
      regret, error: mean regret over laws and questions, in error points, and its standard error;
        NaN before `judge`.
    """

    points: tuple[Point, ...] = ()
    center: tuple | None = None
    star_examples: tuple[int, ...] = ()
    budgets: tuple[float, ...] = ()
    isoflop_examples: int | None = None
    cost: float = 0.0
    regret: float = float("nan")
    error: float = float("nan")


def designs(
    domain: Domain, cost: Callable, questions: Sequence[Question], spend: float
) -> tuple[Design, ...]:
    """Return different designs that `spend` pays for.

    For each of `SHARES`: the star of most runs (then of highest cost) within its share, and isoFLOP
    curves of most runs, or of the highest budgets, within the rest.

    Args:
      domain: configurations that may be trained and deployed.
      cost: x [X, 3] -> inference cost [X]; training costs 3 c n.
      questions: decisions to prepare; the largest budget and n bound the runs.
      spend: purse, in the unit of the cost times examples.

    Raises:
      ValueError: no design of `FEWEST` runs is affordable; names the cheapest.
    """
    most_n = int(max(question.num_examples for question in questions))
    stars = list(_stars(domain, cost, most_n))
    curves = list(_curves(domain, cost, max(q.budget for q in questions), most_n))
    found, nothing = {}, Design()
    for share in SHARES:
        star = _best(stars, share * spend, _size) or nothing
        for order in (_size, lambda part: max(part.budgets)):
            curve = _best(curves, spend - star.cost, order) or nothing
            points = star.points + curve.points
            if FEWEST <= len(points) <= MOST:
                found[points] = replace(
                    star,
                    points=points,
                    budgets=curve.budgets,
                    isoflop_examples=curve.isoflop_examples,
                    cost=star.cost + curve.cost,
                )
    if not found:
        least = min((part.cost for part in stars + curves), default=np.inf)
        raise ValueError(
            f"no design of {FEWEST} runs or more can be trained for {spend:.4g}; the smallest star "
            f"or set of curves costs {least:.4g}"
        )
    return tuple(found.values())


def _size(part: Design) -> tuple:
    return len(part.points), part.cost


def _best(parts: list[Design], spend: float, order) -> Design | None:
    return max((part for part in parts if part.cost <= spend), key=order, default=None)


def _stars(domain: Domain, cost: Callable, most_n: int):
    """Yield stars of several centres and data sizes."""
    lm_params, frames, tokens = domain.levels
    sizes = [most_n // part for part in (8, 4, 2)]
    for num_frames, num_tokens in itertools.product(_upper(frames), _upper(tokens)):
        for levels in (5, 3):
            arms = Domain(
                lm_params, _up_to(frames, num_frames, levels), _up_to(tokens, num_tokens, levels)
            )
            for count in (3, 2):
                center = (max(lm_params), num_frames, num_tokens)
                points = star_sweep(center, arms, sizes[:count])
                yield Design(points, center, tuple(sizes[:count]), cost=_price(points, cost))


def _curves(domain: Domain, cost: Callable, budget: float, most_n: int):
    """Yield sets of isoFLOP curves, below several largest budgets."""
    x = domain.configurations()
    price = np.asarray(cost(x), float)
    for scale, part, most in itertools.product((1.0, 0.5, 0.25, 0.1), (1, 2, 4), (5, 3, 2)):
        aims = [budget * scale * share for share in CURVES]
        aims = [aim for aim in aims if (np.abs(price / aim - 1) <= TOLERANCE).any()]
        if aims:
            n = most_n // part
            more = dict(tolerance=TOLERANCE, max_per_curve=most)
            points = isoflop_sweep(domain, aims, n, cost, **more)
            yield Design(points, budgets=tuple(aims), isoflop_examples=n, cost=_price(points, cost))


def _upper(levels) -> list:
    """Return up to four levels of the upper half of a factor, evenly spaced in logs."""
    kept = [float(level) for level in spread_levels(np.unique(levels), 8)]
    return [_whole(level) for level in kept[len(kept) // 2 :]]


def _up_to(levels, top, count: int) -> tuple:
    below = np.array([level for level in levels if level <= top], float)
    return tuple(_whole(level) for level in spread_levels(np.unique(below), count))


def _whole(level: float):
    return int(level) if float(level).is_integer() else float(level)


def _price(points, cost: Callable) -> float:
    x = np.array([point.x for point in points], float)
    return float(training_cost(cost, x, np.array([p.num_examples for p in points])).sum())


# --- judged on laws that might be ---


def judge(
    found: Sequence[Design],
    domain: Domain,
    cost: Callable,
    questions: Sequence[Question],
    *,
    laws: int | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Design, ...]:
    """Return the designs with their mean regret over laws of the prior, the best first."""
    laws = laws or LAWS
    x = domain.configurations()
    price, sizes = np.asarray(cost(x), float), [question.num_examples for question in questions]
    rng = np.random.default_rng(seed)
    drawn = [_draw(rng, x, max(sizes)) for _ in range(laws)]
    tables = [(_simulated(law, d, rng), None) for d in found for law in drawn]
    fits = iter(fit_many(tables, FIT, on_progress=on_progress))
    judged = []
    for design in found:
        lost = [
            np.mean([_regret(law, fit, x[price <= q.budget], q.num_examples) for q in questions])
            for law, fit in zip(drawn, fits, strict=False)
        ]
        error = float(np.std(lost, ddof=1) / np.sqrt(laws))
        judged.append(replace(design, regret=float(np.mean(lost)), error=error))
    return tuple(sorted(judged, key=lambda design: design.regret))


def _draw(rng, x, most_n: float):
    """Return error(x [X, 3], n) of a law of the prior.

    At the middle of the domain 20 to 50 points are reducible, shared at random between the terms of
    the form; the floor is 5 to 30 points, exponents are 0.1 to 0.6.
    """
    form = get_form(FIT.form)
    exponent, names = form.is_exponent(len(FACTORS)), form.parameters(len(FACTORS))
    floor = names.index("epsilon")
    terms = ~exponent & (np.arange(len(names)) != floor)
    value = rng.uniform(0.1, 0.6, len(names))
    value[terms] = rng.uniform(20, 50) * rng.dirichlet(np.ones(terms.sum()))
    value[floor] = rng.uniform(5, 30)
    middle = np.append(np.exp(np.log(x).mean(axis=0)), most_n / 2)
    theta = np.where(exponent, value, np.log(value))

    def error(x, n):
        log_z = np.log(np.column_stack([x, np.broadcast_to(n, len(x))]) / middle)
        return np.exp(form.log_error(theta, log_z[:, :-1], log_z[:, -1]))

    top = max(error(x, most_n / 8).max(), error(x, most_n).max())
    if top > HIGHEST:
        theta[terms] += np.log((HIGHEST - value[floor]) / (top - value[floor]))
    return error


def _simulated(law, design: Design, rng) -> RunTable:
    """Return a table of the design's runs, made from a law with noise; synthetic."""
    x = np.array([point.x for point in design.points], float)
    n = np.array([point.num_examples for point in design.points], float)
    error = law(x, n) * np.exp(NOISE * rng.standard_normal(len(x)))
    return RunTable.from_rows(
        dict(zip(FACTORS, row, strict=True), run_id=f"{i}", sweep=point.sweep, metric="simulated")
        | {"num_examples": size, "score": 100 - value}
        for i, (point, row, size, value) in enumerate(zip(design.points, x, n, error, strict=True))
    )


def _regret(law, fit, x, n) -> float:
    truth = law(x, n)
    return float(truth[fit.predict(x, n).argmin()] - truth.min())
