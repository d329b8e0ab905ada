"""The words and the rows of `tools.report`'s page."""

import numpy as np

from fitting import formatting
from fitting.ablations import bagging
from fitting.forms import PAPER_FORMS
from fitting.report.compute import error_text

from ._report_jobs import Choice, Findings, Subject

ALMOST = 0.98  # share of the members from which all but agree
SHAKY = 0.5  # below: near ties, or members that disagree
TIE = 0.02  # of the scale: what is no worse to 90% of the members is a near tie
ISOFLOP_HEADERS = ["isoFLOP MSE", "isoFLOP E%", "isoFLOP R²"]
CHOICE_HEADERS = (
    *("budget", "LM", "frames", "tokens", "cost", "error", "90% of runs", "best for", "regret ≤"),
    *("alike", "range"),
)


def path_text(choices: list[Choice]) -> str:
    """How the best configuration moves from the least budget to the largest."""
    first, last = choices[0], choices[-1]
    data = "" if first.num_examples is None else _data(first.num_examples)
    if len(choices) == 1:
        return f"The best configuration within one budget{data}:"
    moves, names = [], ("language model stays", "frames stay", "tokens stay")
    for name, a, b in zip(names, first.x, last.x, strict=True):
        ends, what = (formatting.count(a, 4), formatting.count(b, 4)), name.rpartition(" ")[0]
        moves.append(f"{what} {ends[0]} → {ends[1]}" if a != b else f"{name} at {ends[0]}")
    return (
        f"From {formatting.flops(first.budget)} to {formatting.flops(last.budget)} a video{data}: "
        f"{', '.join(moves)}."
    )


def _data(n: float) -> str:
    return f", finetuned on {formatting.count(n)} examples, the most there are runs of"


def model_text(x) -> str:
    """x = (x_N, x_T, x_V) in words."""
    size, *counts = (formatting.count(value, 4) for value in x)
    frames, tokens = (
        f"{count} {what}{'s' * (count != '1')}"
        for count, what in zip(counts, ("frame", "visual token"), strict=True)
    )
    return f"the {size} language model, {frames}, {tokens} a frame"


def choice_text(choice: Choice, law) -> str:
    """One budget's answer in a few short sentences."""
    low, high = error_text(choice.low, law.scale), error_text(choice.high, law.scale)
    if choice.probability >= ALMOST:
        sure = "Nearly all bootstrap members choose it."
    elif choice.probability >= SHAKY:
        sure = f"{choice.probability:.0%} of the bootstrap members choose it."
    else:
        near = choice.regret <= TIE * law.scale
        few = f"{choice.probability:.0%} of the bootstrap members choose it"
        few = few if choice.probability else "no bootstrap member has just this as its best"
        sure = (
            f"{'A near tie' if near else 'Unsure'}: {few}, {'but' if near else 'and'} for 90% of "
            f"them it is at most {points(choice.regret)} points worse than their own best."
        )
    text = (
        f"Within {formatting.flops(choice.budget)}: {model_text(choice.x)}. Predicted error "
        f"{error_text(choice.error, law.scale)}; nine in ten such runs would lie between {low} "
        f"and {high}. {sure}"
    )
    if choice.outside:
        return f"{text} This extrapolates: {'; '.join(choice.outside)}."
    return text


def best_text(subject: Subject) -> str:
    """What was measured, where no law says more."""
    runs = subject.table
    least, count = runs.error.min(), len(runs)
    best = np.flatnonzero(runs.error == least)
    if len(best) == count > 1:
        return f"All {count} runs have an error of {least:.1f}: nothing tells them apart."
    n = subject.one_n if runs.n is None else runs.n[best[0]]
    others = f" (one of {len(best)} with this error)" if len(best) > 1 else ""
    of = f"The least measured error of {count} runs" if count > 1 else "The error of the one run"
    return (
        f"{of} is {least:.1f}, with {model_text(runs.x[best[0]])} and {formatting.count(n)} examples: "
        f"{runs.run_id[best[0]]}{others}."
    )


def choice_row(choice: Choice, law) -> list[str]:
    """The same under `CHOICE_HEADERS`."""
    ends = [error_text(value, law.scale) for value in (choice.error, choice.low, choice.high)]
    return [
        formatting.flops(choice.budget),
        *(formatting.count(value, 4) for value in choice.x),
        formatting.flops(choice.cost),
        ends[0],
        f"{ends[1]} to {ends[2]}",
        f"{choice.probability:.0%}",
        points(choice.regret),
        f"{choice.alike:,} of {choice.affordable:,}",
        "outside" if choice.outside else "fitted",
    ]


def points(value: float) -> str:
    """Error points to a hundredth."""
    return "0.01" if 0 < value < 0.01 else f"{value:.2f}"


def runs_alt(runs) -> str:
    """Figure 7 for somebody who cannot see it."""
    best, worst = runs.error.argmin(), runs.error.argmax()

    def one(r):
        parts = [
            f"{formatting.short(f)} {formatting.count(v)}"
            for f, v in zip(runs.factors, runs.x[r], strict=True)
        ]
        return f"{runs.error[r]:.1f} ({', '.join(parts)})"

    ends = f"from {one(best)} to {one(worst)}"
    if runs.error[best] == runs.error[worst]:
        ends = f"all {runs.error[best]:.1f}"
    return (
        f"Errors of {len(runs)} runs of {runs.metrics[0]} against each factor and cost, {ends}. "
        "The values are in the table below."
    )


def frontier_alt(found: Findings) -> str:
    """Figure 4 for somebody who cannot see it."""
    if not found.decisions:
        return "Best value of each factor against the inference budget"
    first, last = found.decisions[0], found.decisions[-1]
    factors = found.analysis.law.factors
    moves = [
        f"{formatting.label(name)} from {formatting.count(a)} to {formatting.count(b)}"
        for name, a, b in zip(factors, first.x, last.x, strict=True)
    ]
    ends = f"{formatting.flops(first.budget)} to {formatting.flops(last.budget)}"
    return f"Best value of each factor against the budget: from {ends}, {', '.join(moves)}."


def values(table, cost) -> tuple[list[str], list[list]]:
    """Every run a row, every metric's error a column; '-' where a score is missing."""
    metrics = sorted(set(table.metric))
    keys = {}
    for r in range(len(table)):
        sweep = table.columns["sweep"][r] if "sweep" in table.columns else ""
        n = () if table.n is None else (formatting.count(table.n[r]),)
        x = [formatting.count(v, 4) for v in table.x[r]]
        head = (table.run_id[r], sweep, *x, *n, formatting.flops(float(cost(table.x[r]))))
        keys.setdefault(head, {})[table.metric[r]] = f"{table.error[r]:.2f}"
    names = [formatting.short(name) for name in table.factors] + ["n"] * (table.n is not None)
    rows = [[*head, *(errors.get(m, "-") for m in metrics)] for head, errors in keys.items()]
    return ["run", "sweep", *names, "cost", *metrics], rows


def comparison_table(found, what: str) -> tuple[tuple, list]:
    """Tables 2 and 8."""
    heads, rows = [what, "parameters", "CV MSE", "CV E%", "CV R²"], []
    heads += ISOFLOP_HEADERS * bool(found.extrapolation)
    for entry in found.entries:
        scores = list(entry.cross_validation)
        scores += found.score(entry.name, found.extrapolation) if found.extrapolation else ()
        rows.append([entry.name, entry.num_parameters, *map(formatting.number, scores)])
    return tuple(heads), rows


def bagging_table(compared) -> tuple[tuple, list]:
    """Table 9."""
    heads = ["members", "aggregate", "all runs MSE", "E%", "R²", "CV MSE", "CV E%", "CV R²"]
    heads += ISOFLOP_HEADERS * bool(compared.extrapolation)
    rows = []
    for line in bagging(compared):
        scores = [*line.train, *line.cross_validation]
        scores += line.extrapolation if compared.extrapolation else ()
        rows.append([line.resamples, line.aggregate, *map(formatting.number, scores)])
    return tuple(heads), rows


def absent_forms(subject: Subject, found) -> list[str]:
    """Of the paper's forms, those with as many parameters as there are runs."""
    there = [entry.name for entry in found.entries]
    with_n = subject.table.n is not None
    return [name for name in PAPER_FORMS if name not in there and with_n]


def signed(value: float) -> str:
    """-0.22, +0.79; '-' where undefined."""
    return f"{value:+.2f}" if np.isfinite(value) else "-"


def named(metric: str, headers, rows) -> list[dict]:
    """Rows of a metric's table as mappings."""
    return [dict(zip(("metric", *headers), (metric, *row), strict=True)) for row in rows]
