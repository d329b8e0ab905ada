"""The sentences and table rows of the report page."""

import dataclasses
import re

import numpy as np

from fitting import formatting
from fitting.law import BaggedFit
from fitting.naming import labels as labels_of
from fitting.planner_text import describe
from fitting.report.analysis import Analysis, elasticity_extrapolates, extrapolates, findings
from fitting.report.results import MetricResults, Recommendation, Subject
from fitting.runs import FACTORS, RunTable
from fitting.uncertainty import default_tolerance

SYNTHETIC = "Synthetic data: made up by a program, not measured."
STAR_TO_ISOFLOP = "sweep=star → sweep=isoflop"
ALMOST = 0.98  # from this share of the members on, "nearly all"
SHAKY = 0.5  # below this share a recommendation is a near tie or unsure
TIE = 4.0  # tolerances: a near tie costs 90% of the members no more than this
SCORES = ("MSE", "E%", "R²")
MOST_SEEDS = 6  # more seeds are counted, not listed


def in_order(metrics) -> list[str]:
    """Sort metrics by name, a mean over the others (avg, Metrics/Avg, mean) first."""

    def is_mean(name: str) -> bool:
        return re.split(r"\W", name.lower())[-1] in ("avg", "average", "mean")

    return sorted(metrics, key=lambda name: (not is_mean(name), name))


def file_names(metrics) -> dict[str, str]:
    """Return metric -> a part for its file names: letters, digits, _ and - only, each different."""
    names = {}
    for metric in metrics:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "_", metric).strip("_") or "metric"
        name, count = stem, 1
        while name.lower() in (other.lower() for other in names.values()):
            count += 1
            name = f"{stem}-{count}"
        names[metric] = name
    return names


# --- what to deploy ---


def error_text(error: float, scale: float) -> str:
    """Format a predicted error; outside the scale only say on which side, and '-' for NaN."""
    if np.isnan(error):
        return "-"
    if np.isinf(scale):
        return f"{error:.5g}"
    if not 0 <= error <= scale:
        return f">{scale:g}" if error > scale else "<0"
    return f"{error:.1f}" if scale >= 100 else f"{error:.3f}"


def points(value: float, scale: float) -> str:
    """Format error points to a hundredth; a small positive value is not shown as 0. Of a loss,
    three digits.
    """
    if np.isinf(scale):
        return f"{value:.3g}"
    return "0.01" if 0 < value < 0.01 else f"{value:.2f}"


def path_text(choices: list[Recommendation], law: BaggedFit) -> str:
    """Say how the best configuration moves from the smallest budget to the largest."""
    first, last = choices[0], choices[-1]
    data = "" if first.num_examples is None else _data_text(first.num_examples)
    if len(choices) == 1:
        return f"The best configuration within one budget{data}:"
    moves = []
    for factor, a, b in zip(law.factors, first.x, last.x, strict=True):
        name, ends = _name(factor), (formatting.count(a, 4), formatting.count(b, 4))
        moves.append(f"{name} {ends[0]} → {ends[1]}" if a != b else f"{name} {ends[0]} throughout")
    return (
        f"From {formatting.flops(first.budget)} to {formatting.flops(last.budget)} a video{data}: "
        f"{', '.join(moves)}."
    )


def _name(factor: str) -> str:
    return "language model" if factor == "lm_params" else formatting.short(factor)


def _data_text(n: float) -> str:
    return f", finetuned on {formatting.count(n)} examples (the most of any run)"


def model_text(x, factors=FACTORS) -> str:
    """Describe a configuration x [K] in words."""
    if tuple(factors) != FACTORS:
        return describe(factors, x)
    size, *counts = (formatting.count(value, 4) for value in x)
    frames, tokens = (
        f"{count} {what}{'s' * (count != '1')}"
        for count, what in zip(counts, ("frame", "visual token"), strict=True)
    )
    return f"the {size} language model, {frames}, {tokens} a frame"


def choice_text(choice: Recommendation, law: BaggedFit) -> str:
    """Describe the recommendation for one budget in a few short sentences."""
    text = (
        f"Within {formatting.flops(choice.budget)}: {model_text(choice.x, law.factors)}. Predicted "
        f"error {error_text(choice.error, law.scale)}"
    )
    if np.isfinite([choice.low, choice.high]).all():
        low, high = error_text(choice.low, law.scale), error_text(choice.high, law.scale)
        text += f"; 90% of such runs would have an error from {low} to {high}"
    text += "."
    if law.config.resampling != "none":
        text += f" {_sure_text(choice, law)}"
    return f"{text} This extrapolates: {'; '.join(choice.outside)}." if choice.outside else text


def _sure_text(choice: Recommendation, law: BaggedFit) -> str:
    share = f"{choice.probability:.0%} of the bootstrap members choose it"
    if choice.probability >= ALMOST:
        return "Nearly all bootstrap members choose it."
    if choice.probability >= SHAKY:
        return f"{share}."
    near = choice.regret <= TIE * default_tolerance(law)
    share = share if choice.probability else "it is the best configuration of no bootstrap member"
    unit = " points" if np.isfinite(law.scale) else ""
    return (
        f"{'A near tie' if near else 'Unsure'}: {share}, {'but' if near else 'and'} for 90% of "
        f"them it is at most {points(choice.regret, law.scale)}{unit} worse "
        "than their own best."
    )


def choice_headers(law: BaggedFit) -> tuple[str, ...]:
    """Return the headers of `choice_row`."""
    names = map(formatting.short, law.factors)
    return (
        *("budget", *names, "cost", "error", "90% of runs", "best for", "regret ≤", "alike"),
        "range",
    )


def choice_row(choice: Recommendation, law: BaggedFit) -> list[str]:
    """Return the recommendation for one budget as a row under `choice_headers`."""
    ends = [error_text(value, law.scale) for value in (choice.error, choice.low, choice.high)]
    return [
        formatting.flops(choice.budget),
        *(formatting.count(value, 4) for value in choice.x),
        formatting.flops(choice.cost),
        ends[0],
        f"{ends[1]} to {ends[2]}",
        f"{choice.probability:.0%}",
        points(choice.regret, law.scale),
        f"{choice.alike:,} of {choice.affordable:,}",
        "outside" if choice.outside else "fitted",
    ]


def best_text(subject: Subject) -> str:
    """Name the run with the smallest measured error, for a metric without a law."""
    runs = subject.table
    least, count = runs.error.min(), len(runs)
    best = np.flatnonzero(runs.error == least)
    if len(best) == count > 1:
        return f"All {count} runs have an error of {error_text(least, runs.scale)}."
    n = subject.one_n if runs.n is None else runs.n[best[0]]
    data = "" if n is None else f" and {formatting.count(n)} examples"
    others = f" (one of {len(best)} with this error)" if len(best) > 1 else ""
    of = f"The smallest measured error of {count} runs" if count > 1 else "The error of the one run"
    model = model_text(runs.x[best[0]], runs.factors)
    return (
        f"{of} is {error_text(least, runs.scale)}, with {model}{data}: "
        f"{runs.run_id[best[0]]}{others}."
    )


def deployment_headers(law: BaggedFit, brief: bool = False) -> tuple[str, ...]:
    """Return the headers of `deployment_rows`; short ones if `brief`."""
    name = formatting.short if brief else formatting.label
    n = () if law.examples is None else ("n" if brief else "examples",)
    factors = (name(factor) for factor in law.factors)
    return ("budget", *n, *factors, "error", "90% interval", "cost", "agreement", "extrapolates")


def deployment_rows(analysis: Analysis, *, max_budgets=6, max_num_examples=4) -> list[tuple]:
    """Return x* over a spread of budgets and data sizes, as texts under `deployment_headers`."""
    best, law, rows = analysis.frontier, analysis.law, []
    outside_CM, width = extrapolates(law, best), len(deployment_headers(law))
    for m in _spread(best.num_examples, max_num_examples):
        n = None if law.examples is None else best.num_examples[m]
        for c in _spread(best.budgets, max_budgets):
            head = [formatting.flops(best.budgets[c])]
            head += [] if n is None else [formatting.count(n)]
            if np.isnan(best.cost[c, m]):
                rows.append((*head, *["-"] * (width - len(head))))
                continue
            errors = [best.error[c, m], *law.interval(best.x[c, m], n)]
            error, low, high = (error_text(value, law.scale) for value in errors)
            doubt = "yes" if outside_CM[c, m] else "no"
            if law.off_scale(*errors):
                doubt = "impossible"
            values = (formatting.count(value) for value in best.x[c, m])
            cost, share = formatting.flops(best.cost[c, m]), analysis.agreement[c, m]
            rows.append((*head, *values, error, f"{low} to {high}", cost, f"{share:.0%}", doubt))
    return rows


def deployment_text(analysis: Analysis, **limits) -> str:
    """Return `deployment_rows` as an aligned text table, then the reasons for doubt."""
    headers = deployment_headers(analysis.law, brief=True)
    text = formatting.aligned(headers, deployment_rows(analysis, **limits))
    return "\n".join([text, *(f"Warning: {doubt}" for doubt in findings(analysis))])


def _spread(values, most: int) -> np.ndarray:
    """Return indices of at most `most` values, evenly spread over the sorted ones."""
    order = np.argsort(values)
    return order[
        np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))
    ]


# --- elasticity ---


def elasticity_rows(change, law: BaggedFit) -> list[tuple]:
    """Return factor, mean elasticity, interval over members, and the mean within the runs."""
    outside_M, ends = elasticity_extrapolates(law, change), np.stack(change.interval(), axis=1)
    within = dataclasses.replace(
        change, num_examples=change.num_examples[~outside_M], values=change.values[:, ~outside_M]
    )
    labels = labels_of(law.factors)
    columns = zip(labels, law.factors, change.mean, ends, within.mean, strict=True)
    return [
        (
            f"{label}: {formatting.label(name)}",
            formatting.number(value),
            " to ".join(map(formatting.number, pair)) if np.isfinite(pair[0]) else "-",
            formatting.number(inside),
        )
        for label, name, value, pair, inside in columns
    ]


def elasticity_rows_by_n(change, law: BaggedFit) -> list[tuple]:
    """Return n, n with the step, the elasticity of each factor, and whether it extrapolates."""
    outside_M = elasticity_extrapolates(law, change)
    shown = np.unique(np.linspace(0, len(outside_M) - 1, min(8, len(outside_M))).round())
    return [
        (
            formatting.count(change.num_examples[m]),
            formatting.count(change.num_examples[m] + change.delta),
            *map(formatting.number, change.by_num_examples[m]),
            "yes" if outside_M[m] else "no",
        )
        for m in shown.astype(int)
    ]


# --- runs ---


def runs_text(table: RunTable) -> list[str]:
    """Say how many runs, replicates, seeds and protocols there are, and how noisy scores are."""
    z = table.x if table.n is None else np.column_stack([table.x, table.n])
    _, first = np.unique(table.run_id, return_index=True)
    _, counts = np.unique(z[first], axis=0, return_counts=True)
    text = f"{len(first)} runs of {len(counts)} configurations"
    if (repeated := int((counts > 1).sum())) > 0:
        text += f", {repeated} of them run more than once"
    texts = [f"{text}."]
    if table.seed is not None:
        known = table.seed[np.isfinite(table.seed)]
        seeds = [f"{seed:g}" for seed in np.unique(known)]
        named = ", ".join(seeds) if len(seeds) <= MOST_SEEDS else f"{len(seeds)} different ones"
        texts.append(f"Training seed{'s' * (len(seeds) > 1)}: {named}.")
    if table.protocol is not None:
        names = [name or "unknown" for name in np.unique(table.protocol)]
        texts.append(f"Evaluation protocol{'s' * (len(names) > 1)}: {', '.join(names)}.")
        if len(names) > 1:
            texts.append("Scores of different protocols are not comparable.")
    if table.score_se is not None:
        known = table.score_se[np.isfinite(table.score_se)]
        low, middle, high = (f"{value:.2g}" for value in np.quantile(known, (0, 0.5, 1)))
        spread = middle if low == high else f"{low} to {high}, median {middle}"
        texts.append(
            f"Standard errors, known for {len(known)} of {len(table)} scores: {spread}"
            + (f" points of {table.scale:g}." if np.isfinite(table.scale) else ".")
        )
    return texts


def runs_alt(runs: RunTable) -> str:
    """Describe Figure 7 for a reader who cannot see it."""
    best, worst = runs.error.argmin(), runs.error.argmax()

    def one(r):
        parts = [
            f"{formatting.short(f)} {formatting.count(v)}"
            for f, v in zip(runs.factors, runs.x[r], strict=True)
        ]
        return f"{error_text(runs.error[r], runs.scale)} ({', '.join(parts)})"

    ends = f"from {one(best)} to {one(worst)}"
    if runs.error[best] == runs.error[worst]:
        ends = f"all {error_text(runs.error[best], runs.scale)}"
    return (
        f"Errors of {len(runs)} runs of {runs.metrics[0]} against each factor and cost, {ends}. "
        "The values are in the table below."
    )


def frontier_alt(found: MetricResults) -> str:
    """Describe Figure 4 for a reader who cannot see it."""
    if not found.recommendations:
        return "Best value of each factor against the inference budget"
    first, last = found.recommendations[0], found.recommendations[-1]
    factors = found.analysis.law.factors
    moves = [
        f"{formatting.label(name)} from {formatting.count(a)} to {formatting.count(b)}"
        for name, a, b in zip(factors, first.x, last.x, strict=True)
    ]
    ends = f"{formatting.flops(first.budget)} to {formatting.flops(last.budget)}"
    return f"Best value of each factor against the budget: from {ends}, {', '.join(moves)}."


def run_rows(table: RunTable, cost) -> tuple[list[str], list[list]]:
    """Return headers and a row per run, each metric's error a column; '-' for a missing score."""
    metrics = sorted(set(table.metric))
    swept, keys, digits = "sweep" in table.columns, {}, 2 if 100 <= table.scale < np.inf else 4
    others = {"seed": table.seed, "protocol": table.protocol}
    others = {k: v.astype(str) for k, v in others.items() if v is not None and len(set(v)) > 1}
    spread_R = np.full(len(table), np.nan) if table.score_se is None else table.score_se
    for r in range(len(table)):
        head = [table.run_id[r], *([table.columns["sweep"][r]] if swept else [])]
        head += [formatting.count(v, 4) for v in table.x[r]]
        head += [] if table.n is None else [formatting.count(table.n[r])]
        head += [] if cost is None else [formatting.flops(float(cost(table.x[r])))]
        head += [values[r].removesuffix(".0") for values in others.values()]
        cell = f"{table.error[r]:.{digits}f}"
        cell += f" ± {spread_R[r]:.{digits}f}" if np.isfinite(spread_R[r]) else ""
        keys.setdefault(tuple(head), {})[table.metric[r]] = cell
    names = ["run", *["sweep"] * swept, *map(formatting.short, table.factors)]
    names += ["n"] * (table.n is not None) + ["cost"] * (cost is not None) + list(others)
    rows = [[*head, *(errors.get(m, "-") for m in metrics)] for head, errors in keys.items()]
    return [*names, *metrics], rows


# --- forms ---


def split_headers(compared) -> list[str]:
    """Return the headers of the scores on the train/test split by column, [] without one."""
    if not compared.extrapolation:
        return []
    split = compared.extrapolation
    name = "isoFLOP" if split == STAR_TO_ISOFLOP else split
    return [f"{name} {score}" for score in SCORES]


def comparison_table(compared, what: str) -> tuple[tuple, list]:
    """Return headers and rows of Tables 2 and 8."""
    heads = [what, "parameters", *(f"CV {score}" for score in SCORES), *split_headers(compared)]
    heads.insert(2 + len(SCORES), "CV in 90%, %")
    heads += ["split in 90%, %"] * bool(compared.extrapolation)
    rows = []
    for entry in compared.entries:
        split = compared.extrapolation
        scores = [*entry.cross_validation, 100 * entry.validations[0].coverage]
        if split:
            held = 100 * entry.validation(split).coverage
            scores += [*compared.score(entry.name, split), held]
        rows.append([entry.name, entry.num_parameters, *map(formatting.number, scores)])
    return tuple(heads), rows


def bagging_table(compared) -> tuple[tuple, list]:
    """Return headers and rows of Table 9."""
    from fitting.ablations import bagging

    heads = ["members", "aggregate", "all runs MSE", "E%", "R²"]
    heads += [*(f"CV {score}" for score in SCORES), *split_headers(compared)]
    rows = []
    for line in bagging(compared):
        scores = [*line.train, *line.cross_validation]
        scores += line.extrapolation if compared.extrapolation else ()
        rows.append([line.resamples, line.aggregate, *map(formatting.number, scores)])
    return tuple(heads), rows


def absent_forms(subject: Subject, compared, forms) -> list[str]:
    """Return those of the forms with n that were not compared, for lack of runs."""
    there = [entry.name for entry in compared.entries]
    return [name for name in forms if name not in there and subject.table.n is not None]


def signed(value: float) -> str:
    """Format an elasticity with its sign: -0.22, +0.79; '-' for NaN."""
    return f"{value:+.2f}" if np.isfinite(value) else "-"


def named(metric: str, headers, rows) -> list[dict]:
    """Return the rows of a metric's table as mappings, with the metric."""
    return [dict(zip(("metric", *headers), (metric, *row), strict=True)) for row in rows]
