"""Print the answers of `fitting.planner` as text."""

import math

import numpy as np

from fitting import formatting
from fitting.verdict import HOLDS

SHOWN = 5  # data sizes at which equation 10 is printed


def as_text(answer: dict, law, unit: str) -> str:
    """Return an answer as text."""
    head = answer["law"]
    lines = [
        f"{head['form']} on {head['metric']}: {head['runs']} runs, {head['members']} members; "
        f"{answer['offer']['configurations']:,} configurations on offer",
        fit_line(answer["lack_of_fit"]),
        *(f"Warning: {doubt}" for doubt in head["doubts"]),
    ]
    if "plan" in answer:
        lines += ["", *plan_lines(answer["plan"], law, unit)]
    if "elasticity" in answer:
        lines += ["", *elasticity_lines(answer["elasticity"], law, unit)]
    if "frontier" in answer:
        lines += ["", *frontier_lines(answer["frontier"])]
    if "next" in answer:
        lines += ["", *next_lines(answer["next"], law, unit)]
    return "\n".join(lines)


def noise_text(noise: float, law) -> str:
    """Return a run's noise with its unit: percent of the error, points, or that of the link."""
    kind = law.space.kind
    unit = {"log": "%", "linear": " points"}.get(kind, f" in {law.space.name}")
    return formatting.number(noise * (100 if kind == "log" else 1)) + unit


def fit_line(found: dict) -> str:
    """Return the verdict on the law in one line, with what would help."""
    words = " ".join([*found["reasons"], *[found["help"]] * bool(found["help"])])
    text = f"{found['verdict']}{': ' * bool(words)}{words}"
    return f"Lack of fit: {text}" if found["verdict"] == HOLDS else f"Warning: {text}"


def plan_lines(plan: dict, law, unit: str) -> list[str]:
    """Return the lines of a decision for one budget."""
    best, regret, compute = plan["best"], plan["regret_set"], plan["flops"]
    with_n = f" and {formatting.count(plan['examples'])} examples" if plan["examples"] else ""
    error, what = error_pattern(law, plan), "error" if math.isfinite(law.scale) else "loss"
    lines = [
        f"Within {amount(plan['budget'], unit)}{with_n}, {plan['affordable']:,} affordable:",
        f"  {describe(law.factors, best['x'].values())}, which costs {amount(best['cost'], unit)}",
        f"  predicted {what} {error.format(best['error'])}; 90% of runs fall in "
        f"{bounds(best['interval'], error)}, the law in {bounds(best['law_interval'], error)}",
        f"  run noise {noise_text(plan['run_noise'], law)}; "
        f"the best of all for {best['best_for']:.0%} of the members",
        *(f"  Extrapolates: {text}." for text in best["extrapolates"]),
        *(
            f"  Impossible: no run has an error outside 0 to {law.scale:g}; the law does not hold "
            "there."
            for _ in range(best["impossible"])
        ),
        "",
    ]
    table = [option_cells(o, unit, error) for o in (best, *plan["next_best"])]
    headers = ["", *law.factors, "error", "90% of runs", "cost", "best for", "regret ≤", "range"]
    rows = [[str(i), *cells] for i, cells in enumerate(table, start=1)]
    lines += [formatting.aligned(headers, rows), ""]
    ranges = ", ".join(f"{name} {span(*ends)}" for name, ends in regret["ranges"].items())
    points = " points" * math.isfinite(law.scale)
    lines.append(
        f"Regret at most {regret['tolerance']:.3g}{points} with {regret['confidence']:.0%} of the "
        f"members: {regret['configurations']:,} of {plan['affordable']:,} configurations"
        f"{': ' * bool(ranges)}{ranges}"
    )
    if compute:
        lines.append(flops_line(compute))
    if "serving" in plan:
        lines += serving_lines(plan["serving"], best["cost"], plan["examples"], unit)
    return lines


def error_pattern(law, plan: dict) -> str:
    """Return the format of errors: on a scale of 100 two decimals, of 1 four; of losses as many as
    tell the options apart, and the tolerance from 0.
    """
    if math.isfinite(law.scale):
        return "{:.2f}" if law.scale >= 100 else "{:.4f}"
    errors = [option["error"] for option in (plan["best"], *plan["next_best"])]
    return f"{{:.{formatting.decimals(errors, plan['regret_set']['tolerance'])}f}}"


def option_cells(option: dict, unit: str, error: str) -> list[str]:
    """Return one line of the table of alternatives."""
    return [
        *(formatting.count(value, 4) for value in option["x"].values()),
        error.format(option["error"]),
        bounds(option["interval"], error),
        amount(option["cost"], unit),
        f"{option['best_for']:.0%}",
        error.format(option["regret"]),
        _range(option),
    ]


def _range(option: dict) -> str:
    """Return whether a run can be there, and how far outside the runs it would be."""
    if option["impossible"]:
        return "impossible"
    return f"outside by {option['distance']:.2f}" if option["extrapolates"] else "inside"


def flops_line(compute: dict) -> str:
    """Return a line with equation 1 and the actual FLOPs."""
    text = f"FLOPs of the best: equation 1 {formatting.flops(compute['equation_1'], 4)}; "
    if compute["actual"] is None:
        return f"{text}actual unknown: {compute['why']}"
    parts = ", ".join(f"{k} {formatting.flops(compute[k])}" for k in ("vision", "projector", "lm"))
    return (
        f"{text}actual {formatting.flops(compute['actual'], 4)} ({parts}; "
        f"{compute['features_per_frame']} features, {compute['text_tokens']} text tokens, "
        "attention)"
    )


def serving_lines(serving: dict, cost: float, n: float, unit: str) -> list[str]:
    """Return a line with serving compute against finetuning compute (Appendix A.1)."""
    totals = ""
    if serving["serving_flops"] is not None:
        totals = (
            f" = {serving['serving_flops']:.3g} / {serving['finetuning_flops']:.3g} FLOPs"
            f" at c = {amount(cost, unit)}"
        )
    return [
        f"Serving / finetuning = videos c / (3 c n) = {formatting.count(serving['videos'])} / "
        f"(3 x {formatting.count(n)}){totals} = {serving['ratio']:.3g}; even after "
        f"{serving['even_after_days']:.3g} days"
    ]


def elasticity_lines(change: dict, law, unit: str) -> list[str]:
    """Return equation 11 with intervals, and equation 10 at some data sizes."""
    low, high, count = change["budgets"]
    rows = change["by_examples"]
    shown = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, SHOWN).round().astype(int))]
    table = [
        [
            name,
            formatting.number(change["mean"][name]),
            " to ".join(formatting.number(change[end][name]) for end in ("low", "high")),
            *(formatting.number(row[name]) for row in shown),
        ]
        for name in law.factors
    ]
    headers = ["", "elasticity", "90% of members"]
    headers += [f"n = {formatting.count(row['examples'])}" for row in shown]
    return [
        f"Elasticity of x* to n: {count} budgets, {amount(low, unit)} to {amount(high, unit)}; "
        f"{change['examples'][2]} data sizes, {span(*change['examples'][:2])}; "
        f"step {formatting.count(change['delta'])}",
        formatting.aligned(headers, table),
        f"{change['undefined']} of {change['pairs']} pairs of budget and n are undefined and left "
        "out",
        *(
            f"Extrapolates: {change['sizes_outside']} of {change['examples'][2]} data sizes; n or "
            f"n plus the step lies outside the fitted {span(*change['fitted_examples'])}."
            for _ in range(min(1, change["sizes_outside"]))
        ),
    ]


def next_lines(found: dict, law, unit: str) -> list[str]:
    """Return whether to stop, or the runs to train next and what each is worth."""
    error = "{:.2f}" if 100 <= law.scale < math.inf else "{:.4f}"
    bound = (
        f"with {found['confidence']:.0%} of the members the choice loses at most "
        f"{error.format(found['regret_bound'])} points"
    )
    if found["stop"]:
        return [
            f"Stop: {bound}, within the tolerance of {found['tolerance']:.3g}. No run is needed."
        ]
    work = "FLOPs" if unit == "FLOPs" else f"{unit} x examples"
    lines = [f"Go on: {bound}, more than the tolerance of {found['tolerance']:.3g}."]
    if found["doubted"]:
        lines = [f"Go on: {bound}, but the runs contradict the form of the law (see lack of fit)."]
    if not found["runs"]:
        return [*lines, "No run that can be paid for would change the choice."]
    rows = [
        [
            str(i),
            *(formatting.count(value, 4) for value in run["x"].values()),
            *([] if run["examples"] is None else [formatting.count(run["examples"])]),
            str(run["repeats"]),
            f"{run['cost']:.3g}",
            formatting.number(run["gain"]),
        ]
        for i, run in enumerate(found["runs"], start=1)
    ]
    examples = [] if law.examples is None else [law.examples]
    headers = ["", *law.factors, *examples, "times", f"training {work}", "gain"]
    spent = sum(run["cost"] for run in found["runs"])
    return [
        *lines,
        f"Train next, for {spent:.3g} of {found['spend']:.3g} {work} (3 c n a run):",
        formatting.aligned(headers, rows),
        f"The expected regret is {formatting.number(found['expected_regret'])} points now, the "
        f"mean over members and {found['questions']} pairs of budget and data size; 'gain' is what "
        "a choice takes off it, after those above. Fit again with the new runs, and ask again.",
    ]


def design_lines(found: dict, out) -> list[str]:
    """Return the designs of a first set of runs, the best first."""
    rows = []
    for i, one in enumerate(found["designs"], start=1):
        star, curves = "-", "-"
        if one["center"]:
            star = " x ".join(formatting.count(value) for value in one["center"].values())
            star += " at n " + ", ".join(formatting.count(n) for n in one["star_examples"])
        if one["budgets"]:
            curves = ", ".join(formatting.flops(budget) for budget in one["budgets"])
            curves += f" at n {formatting.count(one['isoflop_examples'])}"
        regret = f"{one['regret']:.2f} ± {one['standard_error']:.2f}"
        rows.append([f"{i}", f"{one['runs']}", f"{one['cost']:.3g}", regret, star, curves])
    headers = ["", "runs", "training FLOPs", "regret", "star: centre", "isoFLOP curves"]
    return [
        f"First designs for {found['spend']:.3g} FLOPs of training (3 c n a run), to decide within "
        f"{formatting.flops(found['budget'])} and {formatting.count(found['examples'])} examples:",
        "",
        formatting.aligned(headers, rows),
        "",
        f"Nothing is measured: regret is what a fit to simulated runs loses, in points, on average "
        f"over {found['laws']} laws drawn from a broad prior.",
        f"{out}: the runs of design 1"
        if out
        else "With --out FILE.csv the runs of design 1 are written.",
    ]


def frontier_lines(found: dict) -> list[str]:
    """Return a line about the file that was written."""
    return [
        f"{found['file']}: {found['rows']} rows, of which {found['extrapolate']} extrapolate; "
        f"{found['unaffordable']} of {found['budgets']} budgets are below the cheapest "
        f"configuration; half of the rows have an agreement of {found['agreement']:.0%} or more"
    ]


def amount(value: float, unit: str) -> str:
    """Return a cost with its unit."""
    return formatting.flops(value, 4) if unit == "FLOPs" else f"{value:.4g} {unit}"


def describe(names, values) -> str:
    """Return a configuration as text: lm_params 7.5B, num_frames 32, ..."""
    return ", ".join(f"{k} {formatting.count(v, 4)}" for k, v in zip(names, values, strict=True))


def span(low: float, high: float) -> str:
    """Return a range as text: 4 to 40, or 4."""
    first, last = formatting.count(low, 4), formatting.count(high, 4)
    return first if first == last else f"{first} to {last}"


def bounds(ends, pattern: str) -> str:
    """Return `low to high`; '-' where undefined."""
    texts = [pattern.format(float(end)) if math.isfinite(end) else "-" for end in ends]
    return " to ".join(texts) if "-" not in texts else "-"
