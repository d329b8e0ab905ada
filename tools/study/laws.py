"""The law of a study's runs, and the decision that it names at budgets no run has seen."""

import hashlib
import json
from pathlib import Path

import numpy as np

from fitting.config import FitConfig
from fitting.forms import PAPER_FORMS
from fitting.intervals import prediction_interval
from fitting.lack_of_fit import judged
from fitting.report.analysis import Analysis, examine
from fitting.report.compute import run_here
from fitting.report.jobs import comparison, entries_job
from fitting.rivals import Choice, Tested, choose_rivals
from fitting.runs import RunTable
from fitting.validation import Validation, score
from vvlm_jax import atomic
from vvlm_jax.data import synthetic

from ..common import shipped

study_lib = shipped("study")

SWEEPS = ("star", "isoflop")
"""The sweeps that the law is fitted to; tested runs and replicates are kept out."""


def of_law(table: RunTable) -> RunTable:
    """Return the rows of a table that the law is fitted to."""
    return table.take(np.isin(table.columns["sweep"], SWEEPS))


def configs(study, forms=PAPER_FORMS) -> list[FitConfig]:
    """Return the fits that are compared."""
    return [
        FitConfig(
            form,
            resamples=study.resamples,
            starts=study.starts,
            seed=study.seed,
            resampling="stratified",
            units="geomean",
        )
        for form in forms
    ]


def law(study, table: RunTable, run=run_here, on_fit=lambda form: None, forms=PAPER_FORMS):
    """Compare forms on the average over tasks; return the `Analysis` of the best, its fit judged.

    Args:
      table: the runs of all sweeps.
      run: does the fits, as `fitting.report.processes.pool` gives it. Workers are forked later, and
        must not be forked from a process that runs jax, so the driver leaves fits to others.
      on_fit: called with the name of each form that has been fitted.
      forms: to compare.
    """
    domain, cost = study_lib.domain(study), study_lib.inference_cost(study)
    mine = of_law(table).select(metric="avg")
    fits = {
        config.form: (entries_job, {"avg": mine}, config.form, config)
        for config in configs(study, forms)
    }
    entries = run(fits, lambda form, entry: on_fit(form))
    compared = comparison(mine, [entries[form]["avg"] for form in fits])
    if compared is None:
        raise ValueError(f"no law fits the runs: {entries[forms[0]]['avg']}")
    best = run({"law": (judged, compared.entry(compared.best).law, mine)})["law"]
    reach = cost(domain.configurations())
    return examine(
        mine,
        best,
        domain,
        cost,
        np.geomspace(reach.min() * 1.05, reach.max(), 60),
        np.geomspace(min(study.num_examples), 2 * study.isoflop_examples, 5),
        compared,
    )


def quality(analysis: Analysis, level: float, world=synthetic) -> dict:
    """Return how well the law predicts runs that its fits have not seen.

    R² and the mean relative error are of the cross-validation; `without_chance` leaves out the runs
    within three standard errors of guessing. `coverage` is the share of held-out runs inside their
    interval, `half_width` the median half of its width, in points.
    """
    entry = analysis.comparison.entry(analysis.law.config.form)
    folds, reach = entry.validations[0], entry.validation(analysis.comparison.extrapolation)
    table = analysis.table
    learnt_R = ~near_chance(table, world)
    found = {
        "form": analysis.law.config.form,
        "metric": "avg",
        "runs": len(table),
        **_accuracy(folds, table, np.ones(len(table), bool), level),
        "without_chance": {
            "runs": int(learnt_R.sum()),
            **_accuracy(folds, table, learnt_R, level),
        },
        "star_to_isoflop": None if reach is None else _accuracy(reach, table, reach.test[0], level),
    }
    verdict = analysis.law.verdict
    return found | {"lack_of_fit": verdict and verdict.to_json()}


def near_chance(table: RunTable, world=synthetic) -> np.ndarray:
    """Return bool [R]: which averages are within three standard errors of guessing, or below."""
    chance = float(np.mean(list(world.CHANCE.values())))
    return table.scale - table.error - chance <= 3 * np.nan_to_num(table.score_se)


def _accuracy(validation: Validation, table: RunTable, rows_R, level: float) -> dict:
    shown = score(validation.predicted[rows_R], validation.error[rows_R])
    inside, half = [], []
    for fit, test_R in zip(validation.fits, validation.test, strict=True):
        if (mine_R := test_R & rows_R).any():
            n = None if table.n is None else table.n[mine_R]
            low, high = prediction_interval(fit, table.x[mine_R], n, level)
            inside += ((low <= table.error[mine_R]) & (table.error[mine_R] <= high)).tolist()
            half += ((high - low) / 2).tolist()
    return {
        "r2": shown.r2,
        "mean_relative_error": shown.percent / 100,
        "coverage": float(np.mean(inside)) if inside else None,
        "half_width": float(np.median(half)) if half else None,
    }


def choose(study, analysis: Analysis, file: Path) -> list[Choice]:
    """Name x* and its rivals at every budget of the test; kept in a file, and read from it again.

    The file holds for the same runs, fits and rule only. It is written before any of these runs
    begins, so that no result can change what is tested.
    """
    table, rule = analysis.table, study.decision
    asked = json.dumps(
        [table.rows(), repr([rule, study, configs(study)])], sort_keys=True, default=str
    )
    key = hashlib.sha256(asked.encode()).hexdigest()
    if file.exists() and (kept := json.loads(file.read_text()))["key"] == key:
        return [_read(choice) for choice in kept["choices"]]
    by_form = {entry.name: entry.law for entry in analysis.comparison.entries}
    found = [
        choose_rivals(
            analysis.law,
            by_form.get("add"),
            table,
            study_lib.domain(study),
            study_lib.inference_cost(study),
            budget,
            study_lib.tested_examples(study),
            rules=rule.rivals,
            spend=rule.spend,
            tolerance=rule.tolerance,
            level=rule.level,
            seed=study.seed,
        )
        for budget in study_lib.tested_budgets(study)
    ]
    kept = [c._asdict() | {"tested": [t._asdict() for t in c.tested]} for c in found]
    atomic.write_text(file, json.dumps({"key": key, "choices": kept}, indent=1) + "\n")
    return found


def _read(values: dict) -> Choice:
    tested = tuple(Tested(**{**t, "x": tuple(t["x"])}) for t in values["tested"])
    return Choice(**{**values, "tested": tested})
