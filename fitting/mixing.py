"""Fit several forms to the same runs, and weigh them by the same held-out runs."""

from collections.abc import Callable, Sequence

import numpy as np

from fitting import mixture, naming, own_forms
from fitting.config import FitConfig
from fitting.forms import get_form
from fitting.link import Space
from fitting.mixture import MixedLaw, Weighed
from fitting.runs import RunTable
from fitting.splits import random_parts

PARTS = 10  # random parts of the runs that are held out in turn
HELD_STARTS = 40  # starts of a fit without the held-out runs
SPARE = 3  # runs beyond parameters that `auto` asks of the larger forms
SMALL = ("add", "mult-plateau")  # forms that `auto` tries however few runs there are


def fit_mixed(
    problems: Sequence[tuple[RunTable, object]],
    config: FitConfig,
    fit_many: Callable,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[MixedLaw]:
    """Weigh all forms of the config on each table, and fit as many members of each as it weighs.

    All forms see the same held-out runs, and resamples of the same seed. A form takes one batch,
    for all tables, to be weighed, and one more for each number of members. Forms of `auto` that do
    not suit a table (no n, too few runs, an error beyond the link's ceiling) are left out; a form
    that was named is an error then.

    Args:
      problems: (table, rows) pairs as of `fitting.fits.fit_many`.
      config: options, with several forms.
      fit_many: fits tables with one form, `fitting.fits.fit_many`.
      on_progress: called with (parts done, parts in all), in hundredths of a form's work.

    Raises:
      ValueError: as `fitting.fits.fit`, or no form suits a table.
    """
    problems = [
        (table, np.ones(len(table), bool) if rows is None else np.asarray(rows, bool))
        for table, rows in problems
    ]
    entries, size = config.forms, 1 if config.resampling == "none" else config.resamples
    steps = 2 * len(entries)
    squares = [{} for _ in problems]
    for index, entry in enumerate(entries):
        chosen = [g for g, case in enumerate(problems) if not config.is_auto or suits(entry, *case)]
        found = _predict_held_out(entry, [problems[g] for g in chosen], fit_many)
        for g, square_R in zip(chosen, found, strict=True):
            squares[g][entry.label] = square_R
        on_progress(100 * (index + 1), 100 * steps)
    shares = [
        _shares(table, rows, config, some)
        for (table, rows), some in zip(problems, squares, strict=True)
    ]
    components = [{} for _ in problems]
    for index, entry in enumerate(entries):
        by_count = {}
        for g, weights in enumerate(shares):
            labels = list(weights)
            counts = mixture.share_out(list(weights.values()), size)
            if entry.label in labels and (count := int(counts[labels.index(entry.label)])):
                by_count.setdefault(count, []).append(g)

        def say(done, total, index=index):
            on_progress(100 * (len(entries) + index) + 100 * done // max(total, 1), 100 * steps)

        for count, chosen in by_count.items():
            own = entry.replace(resamples=count)
            laws = fit_many([problems[g] for g in chosen], own, on_progress=say)
            for g, law in zip(chosen, laws, strict=True):
                components[g][entry.label] = law
    on_progress(100 * steps, 100 * steps)
    return [
        _mixed(config, *case)
        for case in zip((rows for _, rows in problems), squares, shares, components, strict=True)
    ]


def suiting(config: FitConfig, table: RunTable) -> list[str]:
    """Return the labels of the forms that the config fits to a table."""
    every = np.ones(len(table), bool)
    asked = config.forms
    return [one.label for one in asked if not config.is_auto or suits(one, table, every)]


def suits(entry: FitConfig, table: RunTable, rows) -> bool:
    """Return whether `auto` can fit a form to these runs."""
    form, with_n = get_form(entry.form), table.n is not None
    if (form.frontier_moves and not with_n) or (with_n and not form.has_n):
        return False
    layout = form.layout(len(table.factors), with_n)
    plain = get_form(entry.form.partition("~")[0])
    try:
        own_forms.check_ties(entry.form, plain, len(table.factors), with_n)
    except ValueError:
        return False
    fixed = {naming.in_form(name, table.factors) for name in entry.fix or ()}
    if not fixed <= set(form.parameters(len(table.factors), with_n)):
        return False
    if entry.free_floor and layout.floor is None:
        return False
    space = Space.of(entry, table.scale, table.reference)
    if space.linked and not np.isfinite(table.scale):
        return False
    if space.linked and not (table.error[rows] < space.ceiling).all():
        return False
    return (
        entry.label.partition("~")[0] in SMALL
        or rows.sum() * (1 - 1 / PARTS) >= layout.num_parameters + SPARE
    )


def _predict_held_out(entry: FitConfig, problems, fit_many) -> list[np.ndarray]:
    """Return squared log errors [R] of each table's runs, held out; NaN for those not fitted."""
    quick = entry.replace(resampling="none", starts=min(entry.starts, HELD_STARTS))
    parts = [
        (table, rows, random_parts(rows, PARTS, entry.seed, table.cluster))
        for table, rows in problems
    ]
    cases = [(table, rows & ~held_R) for table, rows, held in parts for held_R in held]
    laws = iter(fit_many([case for case in cases if case[1].any()], quick))
    found = []
    for table, rows, held in parts:
        square_R = np.full(len(table), np.nan)
        for held_R in held:
            if (rows & ~held_R).any():
                n = None if table.n is None else table.n[held_R]
                said = next(laws).predict(table.x[held_R], n)
                square_R[held_R] = _square(said, table.error[held_R], table.reference)
        found.append(square_R)
    return found


def _square(said, measured, reference: float) -> np.ndarray:
    """Return squared log errors; errors relative to the reference where there is no logarithm."""
    if (measured <= 0).any():
        return ((said - measured) / reference) ** 2
    return np.log(np.maximum(said, 1e-6 * measured) / measured) ** 2


def _shares(table: RunTable, rows, config: FitConfig, squares: dict) -> dict[str, float]:
    """Return {label: weight} of the forms of one table, the weightiest first."""
    if not squares:
        raise ValueError(
            f"{table.source}: no form of {config.form!r} suits the {rows.sum()} runs; name one, "
            "such as mult"
        )
    known = np.array([square_R[rows] for square_R in squares.values()]) * table.weights[rows]
    cluster = None if table.cluster is None else table.cluster[rows]
    weights = mixture.form_weights(known, config.seed, cluster)
    order = np.argsort(-weights, kind="stable")
    labels = list(squares)
    return {labels[f]: float(weights[f]) for f in order}


def _mixed(config: FitConfig, rows, squares: dict, weights: dict, components: dict) -> MixedLaw:
    """Return the law of the components of one table."""
    tried = tuple(
        Weighed(label, weight, float(np.sqrt(np.mean(squares[label][rows]))))
        for label, weight in weights.items()
    )
    kept = [label for label in weights if label in components]
    shares = np.array([weights[label] for label in kept])
    return MixedLaw(config, tuple(components[k] for k in kept), shares / shares.sum(), tried)
