"""Choose what to deploy within an inference budget, by a law that `vvlm fit` wrote.

Examples:
    vvlm plan runs/law --budget-tflops 15 --examples 2e6
    vvlm plan runs/law --budget-tflops 15 --examples 2e6 --videos-per-day 1e5 --days 365
    vvlm plan runs/law --frontier 1:100:300 --at 1e6,2e6,5e6 --out frontier.csv
    vvlm plan runs/law --elasticity
    vvlm plan runs/law --budget-tflops 15 --examples 2e6 --next 5 --spend 2e8
    vvlm plan runs/law --cost latency.csv:ms --budget 120 --examples 2e6
    vvlm plan runs/law --cost "2*T*(0.43e9*768+N*V)" --budget 1.5e13 --examples 2e6
    vvlm plan --spend 1e9 --budget-tflops 15 --examples 2e6 --out first.csv

The best configuration of a discrete domain, exactly: the one of least predicted error that the
budget affords (equation 4). Undefined is '-', and null in --json.
"""

import json

import numpy as np
import tyro

from fitting.config import FACTORS
from fitting.elasticities import BUDGETS, NUM_EXAMPLES
from fitting.grids import parse_domain, parse_grid
from fitting.sweeps import PAPER_DOMAIN, Domain

from .arguments import read_options
from .common import die_in_one_line, flag, write_csv
from .plan_flags import TERA, Args, Offered, Question, check_flags


def main(args: Args) -> None:
    """Load the law, answer the question, and print the answer."""
    ask, offered = args.ask, args.offer
    check_flags(ask, offered)
    if ask.law is None:
        return first_design(ask, offered)
    from fitting import planner
    from fitting.mixture import load_law
    from fitting.planner_text import as_text

    law = load_law(ask.law)
    if ask.examples is not None and law.examples is None:
        raise ValueError("--examples: the law has no number of examples; leave it out")
    with flag("--domain"):
        levels = parse_domain(offered.domain, law.factors)
    counts = offered.vision_params, offered.features, offered.text_tokens
    with flag("--cost"):
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
    if ask.next:
        answer["next"] = propose(law, offer, ask)
    if ask.json:
        print(json.dumps(planner.json_ready(answer), indent=1, allow_nan=False))
    else:
        print(as_text(answer, law, offer.unit))


def first_design(ask: Question, offered: Offered) -> None:
    """Print designs for a purse when nothing is measured; write the runs of the best."""
    from fitting import planner, planner_runs
    from fitting.planner_text import design_lines

    with flag("--domain"):
        levels = parse_domain(offered.domain, FACTORS)
    axes = [tuple(levels.get(name, getattr(PAPER_DOMAIN, name))) for name in FACTORS]
    models = planner.flops_models(offered.vision_params, offered.features, offered.text_tokens)
    cost = dict(zip(("paper", "actual"), models, strict=True))[offered.cost]
    numbers = ask.budget_tflops * TERA, ask.examples, ask.spend * TERA
    answer, rows = planner_runs.first_design(Domain(*axes), cost, *numbers)
    if ask.out:
        write_csv(ask.out, rows)
    if ask.json:
        print(json.dumps(planner.json_ready(answer | {"points": rows}), indent=1, allow_nan=False))
    else:
        print("\n".join(design_lines(answer, ask.out)))


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


def propose(law, offer, ask: Question) -> dict:
    """Return the runs to train next for the question, or for each pair of the grid."""
    from fitting import planner, planner_runs

    scale = TERA if offer.unit == planner.FLOPS else 1.0
    if ask.frontier:
        with flag("--frontier"):
            budgets = parse_grid(ask.frontier) * scale
        n = grid_examples(law, ask)
    else:
        budgets = [ask.budget if ask.budget is not None else ask.budget_tflops * TERA]
        n = None if ask.examples is None else [ask.examples]
    more = dict(count=ask.next, spend=ask.spend * scale, tolerance=ask.tolerance)
    return planner_runs.next_step(law, offer, budgets, n, **more)


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
