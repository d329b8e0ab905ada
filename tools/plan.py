"""Choose what to deploy within an inference budget, by a law that `vvlm fit` wrote.

Examples:
    vvlm plan runs/law --budget-tflops 15 --examples 2e6
    vvlm plan runs/law --budget-tflops 15 --examples 2e6 --videos-per-day 1e5 --days 365
    vvlm plan runs/law --frontier 1:100:300 --at 1e6,2e6,5e6 --out frontier.csv
    vvlm plan runs/law --elasticity
    vvlm plan runs/law --cost latency.csv:ms --budget 120 --examples 2e6

The best configuration of a discrete domain, exactly: the one of least predicted error that the
budget affords (equation 4). Undefined is '-', and null in --json.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from fitting.cost import ActualFlops
from fitting.elasticities import BUDGETS, DELTA, NUM_EXAMPLES
from fitting.grids import parse_domain, parse_grid

from .arguments import read_options
from .common import check_is_here, check_positive, die_in_one_line, flag, write_csv

TERA = 1e12
Number = Annotated[float | None, tyro.conf.arg(metavar="NUMBER")]
Grid = Annotated[str | None, tyro.conf.arg(metavar="LOW:HIGH:COUNT|NUMBER,...")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Question:
    """The question to answer."""

    law: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The --out folder of `vvlm fit`."""
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
    """The configurations on offer, and what they cost."""

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
    """Options of `vvlm plan`."""

    ask: Question
    offer: Offer


def main(args: Args) -> None:
    """Load the law, answer the question, and print the answer."""
    ask, offered = args.ask, args.offer
    check_flags(ask, offered)
    from fitting import planner
    from fitting.law import BaggedFit
    from fitting.planner_text import as_text

    law = BaggedFit.load(ask.law)
    if ask.examples is not None and law.examples is None:
        raise ValueError("--examples: the law has no number of examples; leave it out")
    with flag("--domain"):
        levels = parse_domain(offered.domain, law.factors)
    counts = offered.vision_params, offered.features, offered.text_tokens
    offer = planner.make_offer(law, offered.cost, levels, *counts)
    answer = {"lack_of_fit": planner.lack_of_fit(law), "law": planner.describe_law(law)}
    answer["offer"] = {"configurations": len(offer.domain), "cost": offered.cost}
    budget = ask.budget if ask.budget_tflops is None else ask.budget_tflops * TERA
    if budget is not None:
        if ask.examples is None and law.examples is not None:
            raise ValueError(f"--examples: the law depends on {law.examples}; say how many")
        more = dict(alternatives=ask.alternatives, tolerance=ask.tolerance)
        answer["plan"] = found = planner.choose(law, offer, budget, ask.examples, **more)
        if ask.videos_per_day:
            per_example = found["best"]["cost"], offer.unit, ask.examples
            found["serving"] = planner.serving(*per_example, ask.videos_per_day, ask.days)
    if ask.frontier is not None or ask.elasticity:
        answer |= follow(law, offer, ask)
    if ask.json:
        print(json.dumps(planner.json_ready(answer), indent=1, allow_nan=False))
    else:
        print(as_text(answer, law, offer.unit))


def follow(law, offer, ask: Question) -> dict:
    """Return the elasticity and the frontier over a grid; write the frontier's table."""
    from fitting import planner

    scale = TERA if offer.unit == planner.FLOPS else 1.0
    with flag("--frontier"):
        budgets = parse_grid(ask.frontier) * scale if ask.frontier else BUDGETS
    n, answer, change = grid_examples(law, ask), {}, None
    if ask.elasticity:
        answer["elasticity"], change = planner.follow_elasticity(law, offer, budgets, n, ask.delta)
    if ask.out:
        summary, rows = planner.follow_frontier(law, offer, budgets, n, change)
        write_csv(ask.out, rows)
        answer["frontier"] = {"file": str(ask.out)} | summary
    return answer


def check_flags(ask: Question, offer: Offer) -> None:
    """Raise ValueError for flags that need or exclude each other, before any work."""
    cost, grid = offer.cost, ask.frontier or ask.elasticity
    measured, named = cost not in ("paper", "actual"), re.fullmatch(r".*\.csv(:.+)?", cost)
    flops, own, served = (v is not None for v in (ask.budget_tflops, ask.budget, ask.days))
    nothing, no_budgets = not (flops or own or grid), ask.elasticity and not ask.frontier

    def refuse(wrong, message: str) -> None:
        if wrong:
            raise ValueError(message)

    refuse(measured and not named, f"--cost {cost}: write paper, actual or FILE.csv[:COLUMN]")
    refuse(nothing, "nothing to answer: give --budget-tflops, --frontier or --elasticity")
    own_unit = f"--cost {cost} has its own unit: give --budget, not --budget-tflops"
    refuse(measured and flops, own_unit)
    check_is_here("--out", ask.out)
    refuse(own and not measured, "--budget is for a measured --cost; FLOPs take --budget-tflops")
    check_positive(ask, "budget_tflops", "budget", "examples", "videos_per_day", "days", "delta")
    check_positive(ask, "alternatives", "tolerance", zero=True)
    check_positive(offer, "vision_params", "features")
    check_positive(offer, "text_tokens", zero=True)
    refuse(offer.vision_params and cost == "actual", "--vision-params belongs to --cost paper")
    refuse(served != (ask.videos_per_day is not None), "--videos-per-day and --days go together")
    refuse(served and ask.examples is None, "--videos-per-day needs --examples")
    refuse(ask.frontier and not (ask.out or ask.elasticity), "--frontier needs --out FILE.csv")
    for name in ("at", "out"):
        refuse(getattr(ask, name) and not grid, f"--{name} needs --frontier or --elasticity")
    refuse(measured and no_budgets, "--elasticity with a measured --cost needs --frontier")


def grid_examples(law, ask: Question) -> np.ndarray | None:
    """Return the data sizes [M] of the grid; None for a law without n."""
    if law.examples is None:
        if ask.at or ask.elasticity:
            raise ValueError("--at, --elasticity: the law has no number of examples")
        return None
    if ask.at:
        with flag("--at"):
            return parse_grid(ask.at)
    if ask.elasticity:
        return NUM_EXAMPLES
    if ask.examples is None:
        raise ValueError(f"--frontier: the law depends on {law.examples}; give --at")
    return np.array([ask.examples])


def cli() -> None:
    """Read the command line and run the command."""
    kind = tyro.conf.OmitArgPrefixes[Args]
    die_in_one_line(lambda: main(read_options(kind, __doc__)), continues=False)


if __name__ == "__main__":
    cli()
