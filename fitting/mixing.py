"""Fit several forms to the same runs, and weigh them by the same held-out runs."""

from collections.abc import Callable, Sequence

import numpy as np

from fitting import mixture, splits
from fitting.config import AUTO, FitConfig
from fitting.fits import fit_many
from fitting.forms import get_form
from fitting.link import Space
from fitting.mixture import MixedLaw, Weighed
from fitting.runs import RunTable

HELD_STARTS = 40  # starts of a fit without the held-out runs
SPARE = 3  # runs beyond parameters that `auto` asks of a form, in every fit to a part
NEGLIGIBLE = 0.005  # weight below which a form has no members


def fit_mixed(
    problems: Sequence[tuple[RunTable, object]],
    config: FitConfig,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[MixedLaw]:
    """Fit all forms of the config to each table; one batch a form, for all tables.

    All forms see the same resamples and the same held-out runs. Forms of `auto` that do not suit a
    table (no n, too few runs, an error beyond the link's ceiling) are left out; a form that was
    named is an error then.

    Args:
      problems: (table, rows) pairs as of `fitting.fits.fit_many`.
      config: options, with several forms.
      on_progress: called with (fits done, fits in all).

    Raises:
      ValueError: as `fitting.fits.fit`, or no form suits a table.
    """
    problems = [
        (table, np.ones(len(table), bool) if rows is None else np.asarray(rows, bool))
        for table, rows in problems
    ]
    held = [_held_out(table, rows, config.seed) for table, rows in problems]
    entries, found = config.forms, [[] for _ in problems]
    for index, entry in enumerate(entries):
        chosen = [
            g
            for g, (table, rows) in enumerate(problems)
            if config.form != AUTO or suits(entry, table, rows)
        ]
        if not chosen:
            continue

        def say(done, total, index=index):
            on_progress(index * total + done, len(entries) * total)

        laws = fit_many([problems[g] for g in chosen], entry, on_progress=say)
        predicted = _predict_held_out(entry, [(*problems[g], held[g]) for g in chosen])
        for g, law, squares in zip(chosen, laws, predicted, strict=True):
            found[g].append((law, squares))
    return [
        _mixed(table, rows, config, some)
        for (table, rows), some in zip(problems, found, strict=True)
    ]


def suits(entry: FitConfig, table: RunTable, rows) -> bool:
    """Return whether `auto` can fit a form to these runs."""
    form, with_n = get_form(entry.form), table.n is not None
    if (form.frontier_moves and not with_n) or (with_n and not form.has_n):
        return False
    layout = form.layout(len(table.factors), with_n)
    if entry.free_floor and layout.floor is None:
        return False
    space = Space.of(entry, table.scale)
    if space.linked and (table.error[rows] >= space.ceiling).any():
        return False
    simple = entry.form in ("add", "mult-plateau")
    return simple or rows.sum() * 2 / 3 >= layout.num_parameters + SPARE


def _held_out(table: RunTable, rows, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the runs that are held out in turn, [S, R] in random parts and [E, R] at the ends."""
    random_SR, ends_ER = splits.weighing_splits(table, rows, seed)
    return (random_SR, ends_ER) if rows.sum() >= 4 else (random_SR[:0], ends_ER[:0])


def _predict_held_out(entry: FitConfig, cases) -> list[np.ndarray]:
    """Return, for each (table, rows, held out), squared log errors [S + E, R]; NaN where fitted."""
    quick = entry.replace(resampling="none", starts=min(entry.starts, HELD_STARTS))
    parts = [
        (table, rows & ~held_R) for table, rows, held in cases for held_R in np.concatenate(held)
    ]
    laws = iter(fit_many(parts, quick))
    found = []
    for table, _, held in cases:
        held_SR = np.concatenate(held)
        squares_SR = np.full(held_SR.shape, np.nan)
        for square_R, held_R in zip(squares_SR, held_SR, strict=True):
            n = None if table.n is None else table.n[held_R]
            said = next(laws).predict(table.x[held_R], n)
            square_R[held_R] = _square(said, table.error[held_R], table.scale)
        found.append(squares_SR)
    return found


def _square(said, measured, scale: float) -> np.ndarray:
    """Return squared log errors; errors relative to the scale where there is no logarithm."""
    if (measured <= 0).any():
        return ((said - measured) / scale) ** 2
    return np.log(np.maximum(said, 1e-6 * measured) / measured) ** 2


def _mixed(table: RunTable, rows, config: FitConfig, found) -> MixedLaw:
    """Return the law of all forms (law, squared log errors) of one table."""
    if not found:
        raise ValueError(
            f"{table.source}: {rows.sum()} runs are too few for any form of --form {config.form}; "
            "name one, such as --form mult"
        )
    parts = len(splits.weighing_splits(table, rows, config.seed)[0])
    random = np.array([np.nanmax(squares[:parts], axis=0, initial=-1) for _, squares in found])
    weights = mixture.form_weights(random[:, rows], config.seed)
    order = np.argsort(-weights, kind="stable")
    tried = tuple(
        Weighed(found[f][0].config.label, float(weights[f]), *_sizes(found[f][1], parts))
        for f in order
    )
    kept = [f for f in order if weights[f] >= NEGLIGIBLE] or [order[0]]
    shares = weights[kept] / weights[kept].sum()
    return MixedLaw(config, tuple(found[f][0] for f in kept), shares, tried)


def _sizes(squares_SR, parts: int) -> tuple[float, float]:
    """Return the root mean square log error in random parts and at the ends."""
    return tuple(
        float(np.sqrt(np.nanmean(some))) if np.isfinite(some).any() else float("nan")
        for some in (squares_SR[:parts], squares_SR[parts:])
    )
