"""Format comparisons and ablations of fits as tables of text."""

import math

from fitting import formatting
from fitting.ablations import Ablation
from fitting.runs import RunTable
from fitting.validation import Comparison, Score, Validation

COVERAGE = ("% in 90%", "half-width")  # share of runs in their interval, which should be 90


def forms_text(found: Comparison) -> str:
    """Return a comparison of forms under a heading."""
    table = found.table
    heading = f"Forms on runs they have not seen, {table.metrics[0]}; {_scale(table)}, E% relative."
    return f"{heading}\n\n{comparison_text(found)}"


def ablation_text(ablation: Ablation) -> str:
    """Return Tables 8 and 9 under their headings."""
    found = ablation.variations
    form, table = found.entries[0].law.config.form, found.table
    return (
        f"One option at a time, {form} on {table.metrics[0]}; {_scale(table)}.\n\n"
        f"{comparison_text(found)}\n\n"
        f"Fewer members, and their mean (of the fits as asked).\n\n{bagging_text(ablation)}"
    )


def test_text(test: Validation, table: RunTable) -> str:
    """Return how well one fit predicts runs it has not seen."""
    heads = ("MSE", "E%", "R²", *COVERAGE)
    scores = formatting.aligned(heads, [[*_score_cells(test.score), *_coverage_cells(test)]])
    predicts = f"{test.train.sum()} runs predict {test.test.sum()}"
    return f"{test.name}: {predicts}; {_scale(table)}.\n{scores}"


def comparison_text(found: Comparison) -> str:
    """Return a line per entry with folds, chosen split and AICc; MSE and coverage by split."""
    folds, chosen, basis = found.splits[0], found.extrapolation, found.entries[0].law
    headers = ["", "params", "CV MSE", "E%", "R²", "above best ± s.e."]
    headers += ["split MSE", "E%", "R²"] if chosen else []
    rows = []
    for entry in found.entries:
        above, spread = found.difference(entry.name, folds)
        cells = [entry.name, str(entry.num_parameters), *_score_cells(entry.cross_validation)]
        cells.append("best" if entry.name == found.best else f"{above:.2g} ± {spread:.2g}")
        cells += _score_cells(found.score(entry.name, chosen)) if chosen else []
        alike = _likelihood(entry.law) == _likelihood(basis)
        rows.append([*cells, formatting.number(entry.law.lead.aicc, 4) if alike else "-"])
    others = [
        [f"{split}, {found.entries[0].validation(split).test.sum()} runs"]
        + [formatting.number(found.score(entry.name, split).mse) for entry in found.entries]
        for split in found.splits
    ]
    names = [entry.name for entry in found.entries]
    held = [
        [split, *(" ".join(_coverage_cells(e.validation(split))) for e in found.entries)]
        for split in found.splits
    ]
    what = "% of them in the 90% interval, ±"
    return (
        f"{formatting.aligned([*headers, 'AICc'], rows)}\n\n"
        f"{formatting.aligned(['MSE on runs not seen', *names], others)}\n\n"
        f"{formatting.aligned([what, *names], held)}"
    )


def _likelihood(law) -> tuple[bool, str]:
    """Return what two laws must share for their AICc to be comparable."""
    return law.lead.space.kind == "linear", law.lead.config.loss


def bagging_text(ablation: Ablation) -> str:
    """Return Table 9: fewer members, and their mean."""
    found = ablation.variations
    headers = ["members", "aggregate", "all runs MSE", "E%", "R²", "CV MSE", "E%", "R²"]
    headers += ["split MSE", "E%", "R²"] if found.extrapolation else []
    rows = []
    for line in ablation.bagging:
        scores = [line.train, line.cross_validation]
        scores += [line.extrapolation] if found.extrapolation else []
        rows.append([str(line.resamples), line.aggregate, *sum(map(_score_cells, scores), [])])
    return formatting.aligned(headers, rows)


def _score_cells(score: Score) -> list[str]:
    return [
        formatting.number(score.mse),
        formatting.number(score.percent),
        formatting.number(score.r2),
    ]


def _coverage_cells(found: Validation) -> list[str]:
    """Return the share of runs inside their 90% interval, and its median half-width."""
    return [formatting.number(100 * found.coverage), f"±{formatting.number(found.half_width)}"]


def _scale(table: RunTable) -> str:
    if not math.isfinite(table.scale):
        return "MSE in squared units of the loss"
    return f"MSE on the scale 0 to {table.scale:g}"
