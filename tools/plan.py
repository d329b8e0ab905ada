"""What to deploy within an inference budget, by a law that `tools.fit` wrote, and how sure it is.

Examples:
    python -m tools.plan runs/law --budget-tflops 15 --examples 2e6
    python -m tools.plan runs/law --budget-tflops 15 --examples 2e6 --videos-per-day 1e5 --days 365
    python -m tools.plan runs/law --frontier 1:100:300 --at 1e6,2e6,5e6 --out frontier.csv
    python -m tools.plan runs/law --elasticity
    python -m tools.plan runs/law --cost latency.csv:ms --budget 120 --examples 2e6

The best configuration of a discrete domain, exactly: the one of least predicted error that the
budget affords (equation 4). Undefined is '-', and null in --json.
"""

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from fitting import formatting
from fitting.cost import PAPER, ActualFlops, CostConstants, CostTable, read_costs
from fitting.elasticities import BUDGETS, DELTA, NUM_EXAMPLES, elasticity
from fitting.frontiers import agreement, by_cost, frontier, member_frontiers
from fitting.planner_text import amount, as_text, span, words
from fitting.runs import FACTORS

from .common import die_in_one_line

TERA = 1e12
COUNTED = ("num_frames", "tokens_per_frame")
LEVEL = 0.9  # of every interval, and of the regret set
DEFAULT_LEVELS = {"num_frames": "1:128", "tokens_per_frame": "squares:27"}
Number = Annotated[float | None, tyro.conf.arg(metavar="NUMBER")]
Grid = Annotated[str | None, tyro.conf.arg(metavar="LOW:HIGH:COUNT|NUMBER,...")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Question:
    """What to answer."""

    law: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The --out folder of `tools.fit`."""
    budget_tflops: Number = None
    """Inference budget of one example, in TFLOPs."""
    budget: Number = None
    """The same in the unit of a measured --cost."""
    examples: Number = None
    """Number of finetuning examples; not for a law without."""
    alternatives: int = 5
    """How many of the next-best configurations to show."""
    tolerance: Number = None
    """Error points of the regret set; half a point of 100 unless said."""
    videos_per_day: Number = None
    """With --days: compute of serving against that of finetuning."""
    days: Number = None
    """How long the model is served."""
    frontier: Grid = None
    """Budgets of a whole frontier, in TFLOPs (or the unit of a measured --cost)."""
    at: Grid = None
    """Data sizes of the frontier; --examples unless said."""
    elasticity: Flag = False
    """How x* moves with the data, equations 9-11; over the paper's grid unless --frontier, --at."""
    delta: float = DELTA
    """Step in the number of examples of equation 9."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None
    """Where the frontier goes; with --elasticity it holds equation 9 too."""
    json: Flag = False
    """Print JSON, and nothing else."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What there is to choose from, and what it costs."""

    domain: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FACTOR=LEVELS ...")] = ()
    """Such as lm_params=1e9,7.5e9 num_frames=1:128 tokens_per_frame=squares:27; the latter two by
    default, and the fitted levels of any other factor."""
    cost: Annotated[str, tyro.conf.arg(metavar="paper|actual|FILE.csv[:COLUMN]")] = "paper"
    """Equation 1; the actual FLOPs; or a measured table with the factors' columns."""
    vision_params: Number = None
    """Of equation 1; 0.43e9 unless said."""
    features: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Features per frame; 768 in equation 1 and 729 in the actual FLOPs unless said."""
    text_tokens: int = ActualFlops.text_tokens
    """Of the prompt, in the actual FLOPs."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.plan`."""

    ask: Question
    offer: Offer


def main(args: Args) -> None:
    """Answers what is asked."""
    ask = args.ask
    check_flags(ask, args.offer)
    from fitting.law import BaggedFit

    law = BaggedFit.load(ask.law)
    if ask.examples is not None and law.examples is None:
        raise ValueError("--examples: the law has no number of examples; leave it out")
    cost, unit = cost_model(args.offer, law.factors)
    domain = configurations(args.offer.domain, law, cost)
    answer = {"law": card(law), "offer": {"configurations": len(domain), "cost": args.offer.cost}}
    if ask.budget_tflops is not None or ask.budget is not None:
        answer["plan"] = plan(law, domain, cost, unit, args)
    if ask.frontier is not None or ask.elasticity:
        answer |= follow(law, domain, cost, unit, ask)
    if ask.json:
        print(json.dumps(plain(answer), indent=1, allow_nan=False))
    else:
        print(as_text(answer, law, unit))


def check_flags(ask: Question, offer: Offer) -> None:
    """ValueError for flags that need or exclude each other, before any work."""
    measured = offer.cost not in ("paper", "actual")
    if measured and not re.fullmatch(r".*\.csv(:.+)?", offer.cost):
        raise ValueError(f"--cost {offer.cost}: write paper, actual or FILE.csv[:COLUMN]")
    if ask.budget_tflops is None and ask.budget is None and not (ask.frontier or ask.elasticity):
        raise ValueError("nothing to answer: give --budget-tflops, --frontier or --elasticity")
    if measured and ask.budget_tflops is not None:
        raise ValueError(
            f"--cost {offer.cost} has its own unit: give --budget, not --budget-tflops"
        )
    if not measured and ask.budget is not None:
        raise ValueError("--budget is for a measured --cost; FLOPs take --budget-tflops")
    for name, value in {**vars(ask), **vars(offer)}.items():
        zero = name in ("alternatives", "tolerance", "text_tokens")
        good = not isinstance(value, (int, float)) or 0 < value < math.inf or (value == 0 and zero)
        if not good and not isinstance(value, bool):
            what = "0 or more" if zero else "a positive number"
            raise ValueError(f"--{name.replace('_', '-')} must be {what}, got {value:g}")
    if (ask.videos_per_day is None) != (ask.days is None):
        raise ValueError("--videos-per-day and --days go together")
    if ask.videos_per_day and ask.examples is None:
        raise ValueError("--videos-per-day needs --examples, the number of finetuning examples")
    if ask.frontier and not ask.out and not ask.elasticity:
        raise ValueError("--frontier needs --out FILE.csv")
    for flag, value in (("--at", ask.at), ("--out", ask.out)):
        if value and not (ask.frontier or ask.elasticity):
            raise ValueError(f"{flag} needs --frontier or --elasticity")
    if measured and ask.elasticity and not ask.frontier:
        raise ValueError("--elasticity with a measured --cost needs its budgets: give --frontier")


# --- the offer ---


def cost_model(offer: Offer, factors: tuple[str, ...]):
    """(a function of x in the law's order of factors, name of its unit)."""
    if offer.cost not in ("paper", "actual"):
        path, ending, column = offer.cost.partition(".csv")
        table = read_costs(path + ending, factors, column[1:] or None)
        return table, table.column
    if offer.vision_params is not None and offer.cost == "actual":
        raise ValueError("--vision-params belongs to --cost paper; actual FLOPs know the encoder")
    missing = [name for name in FACTORS if name not in factors]
    if missing:
        raise ValueError(
            f"--cost {offer.cost} needs the factor {missing[0]!r}; the law has "
            f"{', '.join(factors)}: give --cost FILE.csv"
        )
    model = equation_1(offer) if offer.cost == "paper" else actual_flops(offer)
    return (lambda x: model(house_order(x, factors))), "FLOPs"


def equation_1(offer: Offer) -> CostConstants:
    """With the constants that were asked for."""
    return CostConstants(
        offer.vision_params or PAPER.vision_params, offer.features or PAPER.features_per_frame
    )


def actual_flops(offer: Offer) -> ActualFlops:
    """With the features and text that were asked for."""
    return ActualFlops(offer.features or ActualFlops.features_per_frame, offer.text_tokens)


def house_order(x, factors: tuple[str, ...]) -> np.ndarray:
    """x [..., K] as lm_params, num_frames, tokens_per_frame."""
    return x[..., [factors.index(name) for name in FACTORS]]


def configurations(texts: tuple[str, ...], law, cost) -> np.ndarray:
    """The domain [X, K]: every combination of the levels, or what a table of costs holds."""
    if isinstance(cost, CostTable) and not texts:
        return cost.configurations()
    levels = {
        name: parse_levels(DEFAULT_LEVELS[name], name) if name in DEFAULT_LEVELS else fitted
        for name, fitted in zip(law.factors, map(np.unique, law.runs.z.T), strict=False)
    }
    named = set()
    for text in texts:
        name, _, values = text.partition("=")
        if name not in levels or not values:
            hint = "" if name in levels else formatting.nearest(name, law.factors)
            raise ValueError(
                f"--domain {text}: write FACTOR=LEVELS with a factor of the law, "
                f"{', '.join(law.factors)}{hint}"
            )
        if name in named:
            raise ValueError(f"--domain {text}: {name} is there twice")
        named.add(name)
        levels[name] = parse_levels(values, name)
    mesh = np.meshgrid(*(levels[name] for name in law.factors), indexing="ij")
    return np.stack([axis.ravel() for axis in mesh], axis=1)


def parse_levels(text: str, name: str) -> np.ndarray:
    """Levels from numbers, LOW:HIGH of whole numbers and squares:SIDE, with commas between."""
    values = []
    for item in text.split(","):
        head, _, tail = item.partition(":")
        try:
            if head == "squares":
                values += [side * side for side in range(1, int(tail) + 1)]
            elif tail:
                values += range(int(head), int(tail) + 1)
            else:
                values.append(float(item))
        except ValueError:
            values = []
        if not values or not 0 < min(values) <= max(values) < math.inf:
            raise ValueError(
                f"--domain {name}={text}: {item!r} is no level; write positive numbers, LOW:HIGH "
                "or squares:SIDE"
            )
        if name in COUNTED and any(value % 1 for value in values):
            raise ValueError(f"--domain {name}={text}: {item} is no whole number")
    return np.unique(np.array(values, np.float64))


def parse_grid(text: str, flag: str) -> np.ndarray:
    """Numbers from LOW:HIGH:COUNT, evenly spaced, or a list with commas."""
    try:
        parts = [float(part) for part in text.replace(":", ",").split(",")]
        if ":" in text:
            low, high, count = parts
            parts = np.linspace(low, high, int(count))
    except ValueError:
        parts = []
    if not len(parts) or not 0 < min(parts) <= max(parts) < math.inf:
        raise ValueError(f"{flag} {text}: write LOW:HIGH:COUNT or positive numbers with commas")
    return np.array(parts, np.float64)


# --- the answers, as JSON-ready values ---


def card(law) -> dict:
    """Which law answers, and reasons for doubt."""
    doubts = [law.degenerate] if law.degenerate else []
    if law.failures:
        doubts.append(f"{law.failures} of {len(law.theta)} members failed and were left out")
    if len(law.theta) - law.failures == 1:
        doubts.append("a single member has no spread: intervals hold run noise alone")
    return {
        "form": law.config.form,
        "metric": law.metric,
        "runs": law.num_runs,
        "members": len(law.theta) - law.failures,
        "scale": law.scale,
        "doubts": doubts,
    }


def plan(law, domain, cost, unit: str, args: Args) -> dict:
    """x* and what goes with it."""
    from fitting.uncertainty import decide, run_noise

    ask, n = args.ask, args.ask.examples
    if n is None and law.examples is not None:
        raise ValueError(f"--examples: the law depends on {law.examples}; say how many")
    budget = ask.budget if ask.budget_tflops is None else ask.budget_tflops * TERA
    x_XK, cost_X = by_cost(domain, cost, budget)
    if cost_X[0] > budget:
        raise ValueError(
            f"a budget of {amount(budget, unit)} is below the cheapest configuration, "
            f"{words(law.factors, x_XK[0])}, which costs {amount(cost_X[0], unit)}"
        )
    tolerance = 0.005 * law.scale if ask.tolerance is None else ask.tolerance
    decision = decide(law, x_XK, cost, budget, n)
    inside = decision.x[decision.regret_set(tolerance, LEVEL)]
    spans = zip(inside.min(axis=0), inside.max(axis=0), strict=True) if len(inside) else ()
    rows = range(min(1 + ask.alternatives, len(decision.x)))
    options = [option(law, decision, i, n) for i in rows]
    answer = {
        "budget": budget,
        "examples": n,
        "affordable": len(decision.x),
        "best": options[0],
        "next_best": options[1:],
        "run_noise": run_noise(law),
        "regret_set": {
            "tolerance": tolerance,
            "confidence": LEVEL,
            "configurations": len(inside),
            "ranges": dict(zip(law.factors, map(list, spans), strict=False)),
        },
        "flops": flops(law, decision.x[0], args.offer),
    }
    if ask.videos_per_day:
        answer["serving"] = serving(ask, decision.cost[0], unit)
    return answer


def option(law, decision, i: int, n) -> dict:
    """One configuration of a decision."""
    from fitting.uncertainty import prediction_interval

    x = decision.x[i]
    return {
        "x": dict(zip(law.factors, x, strict=True)),
        "error": decision.error[i],
        "interval": prediction_interval(law, x, n, LEVEL),
        "law_interval": law.interval(x, n, LEVEL),
        "cost": decision.cost[i],
        "best_for": decision.probability[i],
        "regret": np.quantile(decision.regret[i], LEVEL),
        "extrapolates": outside(law, x, n),
        "impossible": is_impossible(law, *prediction_interval(law, x, n, LEVEL)),
    }


def is_impossible(law, low, high) -> bool:
    """Whether an interval leaves the scale: no run can have such an error."""
    return bool(low < 0 or high > law.scale)


def outside(law, x, n) -> list[str]:
    """Which of the values lie outside the fitted ranges, in words."""
    values = x if n is None else (*x, n)
    return [
        f"{name} {formatting.count(value, 4)} is outside the fitted {span(low, high)}"
        for name, value, (low, high) in zip(law.columns, values, law.ranges, strict=True)
        if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9)
    ]


def flops(law, x, offer: Offer) -> dict | None:
    """Equation 1 beside the actual FLOPs of x [K]; None where the law has other factors."""
    if not set(FACTORS) <= set(law.factors):
        return None
    x, actual = house_order(x, law.factors), actual_flops(offer)
    answer = {
        "equation_1": equation_1(offer)(x),
        "features_per_frame": actual.features_per_frame,
        "text_tokens": actual.text_tokens,
    }
    try:
        parts = actual.parts(x)
    except ValueError as e:  # a size of language model whose shape is not known
        return answer | {"actual": None, "why": str(e)}
    return answer | {"actual": sum(parts), **parts._asdict()}


def serving(ask: Question, cost: float, unit: str) -> dict:
    """Appendix A.1: serving videos x c against finetuning 3 c n (forward, and twice that back).

    Both are proportional to the cost c of an example, so the ratio does not depend on it.
    """
    videos, known = ask.videos_per_day * ask.days, unit == "FLOPs"
    return {
        "videos": videos,
        "serving_flops": videos * cost if known else None,
        "finetuning_flops": 3 * cost * ask.examples if known else None,
        "ratio": videos / (3 * ask.examples),
        "even_after_days": 3 * ask.examples / ask.videos_per_day,
    }


def follow(law, domain, cost, unit: str, ask: Question) -> dict:
    """The frontier over a grid of budgets and data sizes, its elasticity, and the file of both."""
    scale = TERA if unit == "FLOPs" else 1.0
    budgets = parse_grid(ask.frontier, "--frontier") * scale if ask.frontier else BUDGETS
    n = grid_examples(law, ask)
    answer, change = {}, None
    if ask.elasticity:
        change = elasticity(law, domain, cost, budgets, n, ask.delta)
        low, high = change.interval(LEVEL)
        answer["elasticity"] = {
            "budgets": [budgets.min(), budgets.max(), len(budgets)],
            "examples": [n.min(), n.max(), len(n)],
            "delta": ask.delta,
            "mean": dict(zip(law.factors, change.mean, strict=True)),
            "low": dict(zip(law.factors, low, strict=True)),
            "high": dict(zip(law.factors, high, strict=True)),
            "by_examples": [
                {"examples": value, **dict(zip(law.factors, row, strict=True))}
                for value, row in zip(n, change.by_num_examples, strict=True)
            ],
            "undefined": change.undefined,
            "pairs": len(budgets) * len(n),
            "fitted_examples": list(law.ranges[-1]),
            "sizes_outside": int(outside_step(law, n, ask.delta).sum()),
        }
    if ask.out:
        best = frontier(law, domain, cost, budgets, n)
        shares = agreement(best, member_frontiers(law, domain, cost, budgets, n))
        rows = frontier_rows(law, best, shares, change)
        write_rows(ask.out, rows)
        answer["frontier"] = {
            "file": str(ask.out),
            "rows": len(rows),
            "budgets": len(budgets),
            "unaffordable": best.unaffordable,
            "extrapolate": sum(row["extrapolates"] == "yes" for row in rows),
            "agreement": float(np.median(shares[~np.isnan(shares)])) if rows else math.nan,
        }
    return answer


def outside_step(law, n, delta: float) -> np.ndarray:
    """Bool [M]: n, or the n + delta that equation 9 compares it with, lies outside the runs'."""
    low, high = law.ranges[-1]
    return (n < low * (1 - 1e-9)) | (n + delta > high * (1 + 1e-9))


def grid_examples(law, ask: Question) -> np.ndarray | None:
    """Data sizes of the grid; None for a law without."""
    if law.examples is None:
        if ask.at or ask.elasticity:
            flag = "--at" if ask.at else "--elasticity"
            raise ValueError(f"{flag}: the law has no number of examples")
        return None
    if ask.at:
        return parse_grid(ask.at, "--at")
    if ask.elasticity:
        return NUM_EXAMPLES
    if ask.examples is None:
        raise ValueError(f"--frontier: the law depends on {law.examples}; give --at")
    return np.array([ask.examples])


def frontier_rows(law, best, shares, change) -> list[dict]:
    """One row a budget and data size; '' where undefined."""
    from fitting.uncertainty import prediction_interval

    found = ~np.isnan(best.cost)
    with_n = law.examples is not None
    n_CM = np.broadcast_to(best.num_examples, best.cost.shape)
    low, high, out = (np.full(best.cost.shape, np.nan) for _ in range(3))
    x, n = best.x[found], n_CM[found] if with_n else None
    low[found], high[found] = prediction_interval(law, x, n, LEVEL)
    out[found] = law.extrapolates(x, n)
    rows = []
    step_M = None if change is None else outside_step(law, change.num_examples, change.delta)
    for c, m in np.ndindex(best.cost.shape):
        row = {"budget": best.budgets[c]}
        row |= {law.examples: best.num_examples[m]} if with_n else {}
        row |= dict(zip(law.factors, best.x[c, m], strict=True))
        row |= {"error": best.error[c, m], "error_low": low[c, m], "error_high": high[c, m]}
        row |= {"cost": best.cost[c, m], "agreement": shares[c, m]}
        if change is not None:
            names = (f"elasticity_{name}" for name in law.factors)
            row |= dict(zip(names, change.values[c, m], strict=True))
            out[c, m] = max(out[c, m], step_M[m])
        row = {name: "" if math.isnan(value) else f"{value:.10g}" for name, value in row.items()}
        rows.append(row | {"extrapolates": {0: "no", 1: "yes"}.get(out[c, m], "")})
    return rows


def write_rows(path: Path, rows: list[dict]) -> None:
    """A CSV with a header."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as e:
        raise ValueError(f"--out {path}: {e.strerror}") from None


def plain(value):
    """JSON-ready: numpy numbers as Python's, NaN and infinity as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(
        lambda: main(tyro.cli(tyro.conf.OmitArgPrefixes[Args], description=__doc__)),
        continues=False,
    )


if __name__ == "__main__":
    cli()
