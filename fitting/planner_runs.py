"""Answer which runs to train: the next ones for a law, the first ones for a purse.

Answers are mappings, as those of `fitting.planner`; `fitting.planner_text` prints them.
"""

from collections.abc import Callable

import numpy as np

from fitting import design, next_runs
from fitting.config import FACTORS
from fitting.law import BaggedFit
from fitting.planner import LEVEL, Offer
from fitting.sweeps import Domain
from fitting.uncertainty import decide, default_tolerance
from fitting.verdict import HOLDS


def next_step(
    law: BaggedFit,
    offer: Offer,
    budgets,
    num_examples,
    *,
    count: int,
    spend: float,
    tolerance: float | None = None,
) -> dict:
    """Return whether the runs suffice to decide, and if not the runs to train next.

    They do not where they contradict the form of the law: its regret then holds no doubt of it.

    Args:
      law: the fitted law.
      offer: the configurations and their cost; training a run costs 3 c n.
      budgets: [C], in the offer's unit; decided for with every n.
      num_examples: [M]; None for a law without n. Candidates have the n of the fitted runs.
      count: choices at most.
      spend: training compute at most, in the offer's unit times examples.
      tolerance: error points of regret that do not matter; half a point of 100 by default.

    Raises:
      ValueError: as `next_runs.next_runs` and `choose`.
    """
    tolerance = default_tolerance(law) if tolerance is None else tolerance
    sizes = [None] if num_examples is None else list(num_examples)
    questions = [next_runs.Question(b, n) for b in budgets for n in sizes]
    regrets = [decide(law, offer.domain, offer.cost, *q).regret[0] for q in questions]
    bound = max(float(np.quantile(regret, LEVEL)) for regret in regrets)
    doubted = law.verdict is not None and law.verdict.verdict != HOLDS
    answer = {
        "questions": len(questions),
        "regret_bound": bound,
        "expected_regret": float(np.mean([regret.mean() for regret in regrets])),
        "tolerance": tolerance,
        "confidence": LEVEL,
        "stop": bound <= tolerance and not doubted,
        "doubted": doubted,
        "spend": spend,
        "runs": [],
    }
    if answer["stop"]:
        return answer
    levels = None if law.examples is None else np.unique(law.runs.z[:, -1])
    offered = next_runs.candidates(offer.domain, offer.cost, levels)
    decision = offer.domain, offer.cost, offered
    for run in next_runs.next_runs(law, questions, *decision, count=count, spend=spend):
        answer["runs"].append(
            {
                "x": dict(zip(law.factors, run.x, strict=True)),
                "examples": run.num_examples,
                "repeats": run.repeats,
                "cost": run.cost,
                "gain": run.gain / len(questions),
            }
        )
    return answer


def first_design(domain: Domain, cost: Callable, budget: float, num_examples: float, spend: float):
    """Return designs for a purse when nothing is measured, the best first, and the runs of that.

    Args:
      domain: the configurations.
      cost: x [X, 3] -> FLOPs [X].
      budget: of the decision to prepare, in FLOPs.
      num_examples: n of that decision.
      spend: training FLOPs at most, 3 c n a run.
    """
    questions = (next_runs.Question(budget, num_examples),)
    found = design.designs(domain, cost, questions, spend)
    judged = design.judge(found, domain, cost, questions)
    rows = [
        {
            "center": None if one.center is None else dict(zip(FACTORS, one.center, strict=True)),
            "star_examples": list(one.star_examples),
            "budgets": list(one.budgets),
            "isoflop_examples": one.isoflop_examples,
            "runs": len(one.points),
            "cost": one.cost,
            "regret": one.regret,
            "standard_error": one.error,
        }
        for one in judged
    ]
    answer = {"spend": spend, "budget": budget, "examples": num_examples, "laws": design.LAWS}
    return answer | {"designs": rows}, [_row(point) for point in judged[0].points]


def _row(point) -> dict:
    """Return a run to train as a row of texts."""
    head = {"sweep": point.sweep, **dict(zip(FACTORS, map(str, point.x), strict=True))}
    budget = "" if point.budget is None else f"{point.budget:.10g}"
    return head | {"num_examples": str(point.num_examples), "budget": budget}
