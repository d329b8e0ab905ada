"""The head of the study's page: the outcome of the decision test, its picture and the findings."""

import numpy as np

from fitting import formatting
from fitting.figures import decision_points
from fitting.figures.tested import Frontier, Point
from fitting.frontiers import frontier
from fitting.intervals import prediction_interval
from fitting.report.analysis import Analysis
from fitting.report.text import model_text

from .findings import DIFFERS, OPEN, SEEN, Finding

BEST = "x*, the law's choice"
WHO = {
    "x*": BEST,
    "outside": "the best that the law calls worse",
    "add": "choice of the additive law",
    "largest": "largest language model",
    "neighbour": "neighbour of the best run",
    "random": "drawn at random",
}


def sentences(verdict: dict) -> list[str]:
    """Return the outcome at each budget: predicted, measured, regret against the bound, rank."""
    tests = verdict["decision"]
    if not tests:
        return ["The law's decision was not tested: the study names no budget to test it at."]
    return [_sentence(test) for test in tests]


def _sentence(test: dict) -> str:
    head = f"At {formatting.flops(test['budget'])} a video the law's choice is "
    head += test["outcome"].upper()
    if "measured" not in test:
        return f"{head}, because {test['why']}."
    worst, (low, high) = test["largest_regret"], test["interval"]
    return (
        f"{head}: predicted error {test['predicted']:.1f} ({low:.1f} to {high:.1f}), measured "
        f"{test['measured']:.1f}; largest regret against a rival {_signed(worst['regret'])} points "
        f"({_signed(worst['interval'][0])} to {_signed(worst['interval'][1])}) with a bound of "
        f"{test['bound']:.1f}; rank {test['rank']} of {len(test['tested'])}."
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def add_outcome(report, verdict: dict, analysis: Analysis, domain) -> None:
    """Add the outcome, its picture and a table of all tested points.

    Args:
      report: a `fitting.report.html.Report`.
      verdict: as in verdict.json.
      analysis: the law and its runs.
      domain: the configurations that may be deployed.
    """
    report.section("Does the decision hold?", *sentences(verdict))
    tests = verdict["decision"]
    if not tests:
        return
    first, level = tests[0], verdict["level"]
    n = formatting.count(first["num_examples"])
    report.figure(
        "decision",
        _figure(tests, analysis, domain, level),
        "Error against cost. The line is the least error that the law predicts within a budget, "
        f"for n = {n}; {level:.0%} of runs should fall in the band. Stars are the law's choices at "
        "budgets no run had seen, the other marks their rivals, "
        f"each the mean of {len(first['seeds'])} seeds with the range over seeds.",
        "Predicted frontier of error against cost, with the tested configurations on it",
    )
    report.paragraph(
        "The law was fitted to the star and isoFLOP runs, then named x* at two new budgets. Rivals "
        "were named by fixed rules, cost nearly as much, and were trained like x*, with the same "
        "seeds, on the same questions. Regret is the error of x* minus a rival's: below 0, x* is "
        "better."
    )
    columns = (
        f" Regret with its {level:.0%} interval, paired over seeds and questions, clustered by "
        f"video; error with {n} examples, mean over seeds, 0 to 100; language model, frames × "
        "tokens a frame; share of the budget."
    )
    for number, test in enumerate(tests, start=1):
        report.table(
            ["tested", "regret of x*", "error (predicted)", "x_N, x_T × x_V", "cost"],
            [_row(test, point) for point in test["tested"]],
            f"Within {formatting.flops(test['budget'])} a video." + columns * (number == 1),
            name=f"decision-{number}",
        )
    report.paragraph(f"The rule, fixed before any run: {verdict['rule']}. {_bounds(tests)}")
    with report.folded("Each seed, and where a rival's own choice was taken"):
        report.table(
            ["budget", "tested", "error of each seed", "note"],
            [
                [
                    formatting.flops(test["budget"]),
                    WHO[point["rule"]],
                    ", ".join(f"{e:.1f}" for e in point.get("errors", [])),
                    point["note"],
                ]
                for test in tests
                for point in test["tested"]
            ],
        )
    _add_noise(report, verdict["run_noise"])


def _bounds(tests: list[dict]) -> str:
    parts = [f"{t['bound']:.1f} points at {formatting.flops(t['budget'])}" for t in tests]
    return (
        f"The bound is {' and '.join(parts)}: what the law says x* may lose, or the tolerance "
        "where that is more."
    )


def _row(test: dict, point: dict) -> list[str]:
    regret, error = "-", f"{point['predicted']:.1f}"
    if "error" in point:
        error = f"{point['error']:.1f} ({error})"
    if "regret" in point:
        low, high = point["interval"]
        regret = f"{_signed(point['regret'])} ({_signed(low)} to {_signed(high)})"
    size, frames, tokens = point["x"].values()
    x = f"{formatting.count(size, 4)}, {frames:g} × {tokens:g}"
    return [WHO[point["rule"]], regret, error, x, f"{point['cost'] / test['budget']:.0%}"]


def _add_noise(report, noise: dict) -> None:
    found = noise["replicates"]
    if found["sd"] is not None:
        low, high = found["interval"]
        report.paragraph(
            f"Noise of runs: repeated with other seeds, scores of one configuration vary with a "
            f"standard deviation of {found['sd']:.2f} points ({low:.2f} to {high:.2f}; "
            f"{found['configurations']} configurations, {found['dof']} degrees of freedom); with "
            f"the tested points {noise['all']['sd']:.2f} ({noise['all']['dof']})."
        )


def _figure(tests: list[dict], analysis: Analysis, domain, level: float):
    law, table, cost = analysis.law, analysis.table, analysis.cost
    n, costs = tests[0]["num_examples"], cost(table.x)
    asked = [test["budget"] for test in tests]
    ends = [*costs, *asked, *(p["cost"] for test in tests for p in test["tested"])]
    budgets = np.unique([*np.geomspace(min(ends), 1.2 * max(ends), 80), *asked])
    best = frontier(law, domain, cost, budgets, [n])
    known = ~np.isnan(best.cost[:, 0])
    low, high = prediction_interval(law, best.x[known, 0], n, level)
    drawn = [
        (
            test["budget"],
            [
                Point(WHO[p["rule"]], p["cost"], p.get("errors", []), model_text(p["x"].values()))
                for p in test["tested"]
            ],
        )
        for test in tests
    ]
    path = Frontier(budgets[known], best.error[known, 0], low, high)
    shown = table.n == table.n.max()
    runs = costs[shown], table.error[shown]
    return decision_points(path, drawn, runs, level=level, scale=table.scale)


def add_findings(report, found: list[Finding], level: float) -> None:
    """Add the paper's qualitative findings, each with its interval and what it says."""
    count = {said: sum(f.said == said for f in found) for said in (SEEN, DIFFERS, OPEN)}
    text = ", ".join(f"{number} {said}" for said, number in count.items())
    report.section("The paper's findings in small", f"Of {len(found)} claims: {text}.")
    for finding in found:
        if finding.said == DIFFERS:
            report.warning(
                f"{finding.claim}, {formatting.label(finding.factor)}: differs from the paper."
            )
    report.table(
        ["finding", "factor", "value", f"{level:.0%} interval", "here"],
        [
            [
                f.claim,
                formatting.short(f.factor),
                f"{formatting.number(f.value)} {f.unit}",
                f"{formatting.number(f.low)} to {formatting.number(f.high)}",
                f.said,
            ]
            for f in found
        ],
        "Diminishing returns: measured on the star, the error points that the first doubling "
        "gains, minus those of the last. Joint scaling: x* at the largest cost of the runs over "
        "x* at the smallest. Elasticity: percent change of x* for one percent more data, mean over "
        "budgets and n.",
        name="findings",
    )
