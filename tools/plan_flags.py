"""The flags of `vvlm plan`, and which of them go together."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from fitting.cost import ActualFlops
from fitting.elasticities import DELTA

from .common import check_is_here, check_positive

TERA = 1e12
Number = Annotated[float | None, tyro.conf.arg(metavar="NUMBER")]
Grid = Annotated[str | None, tyro.conf.arg(metavar="LOW:HIGH:COUNT|NUMBER,...")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Question:
    """The question to answer."""

    law: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DIR")] = None
    """The --out folder of `vvlm fit`. Without one, a first design is planned for --spend: which
    star and which isoFLOP curves prepare the decision at --budget-tflops and --examples."""
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
    next: int = 0
    """With --spend: the runs to train next, at most this many choices; they lower the expected
    regret of --budget-tflops (or of --frontier and --at) most. The first choice comes first."""
    spend: Number = None
    """Training compute for --next or for a first design, in TFLOPs (3 c n a run), or 3 n times the
    unit of --cost."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None
    """Where the frontier goes; with --elasticity it holds equation 9 too."""
    json: Flag = False
    """Print JSON, and nothing else."""


@dataclasses.dataclass(frozen=True)
class Offered:
    """The configurations on offer, and what they cost."""

    domain: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FACTOR=LEVELS ...")] = ()
    """Such as lm_params=1e9,7.5e9 num_frames=1:128 tokens_per_frame=squares:27; the latter two by
    default, and the fitted levels of any other factor."""
    cost: Annotated[str, tyro.conf.arg(metavar="paper|actual|FILE.csv[:COLUMN]|FORMULA")] = "paper"
    """Equation 1; the actual FLOPs; a measured table with the factors' columns; or a formula of the
    factors, such as "6*N*D", in a unit of its own."""
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
    offer: Offered


def check_flags(ask: Question, offer: Offered) -> None:
    """Raise ValueError for flags that need or exclude each other, before any work."""
    cost, grid = offer.cost, ask.frontier or ask.elasticity
    measured = cost not in ("paper", "actual")
    flops, own, served = (v is not None for v in (ask.budget_tflops, ask.budget, ask.days))
    nothing, no_budgets = not (flops or own or grid), ask.elasticity and not ask.frontier

    def refuse(wrong, message: str) -> None:
        if wrong:
            raise ValueError(message)

    refuse(nothing, "nothing to answer: give --budget-tflops, --frontier or --elasticity")
    own_unit = f"--cost {cost} has its own unit: give --budget, not --budget-tflops"
    refuse(measured and flops, own_unit)
    check_is_here("--out", ask.out)
    refuse(own and not measured, "--budget is for a measured --cost; FLOPs take --budget-tflops")
    check_positive(ask, "budget_tflops", "budget", "examples", "videos_per_day", "days", "delta")
    check_positive(ask, "alternatives", "tolerance", "next", zero=True)
    check_positive(ask, "spend")
    if ask.law is None:
        return check_design(ask, cost, refuse)
    refuse((ask.next > 0) != (ask.spend is not None), "--next and --spend go together")
    refuse(
        ask.next and not (flops or own or ask.frontier),
        "--next needs a budget to decide for: give --budget-tflops or --frontier",
    )
    check_positive(offer, "vision_params", "features")
    check_positive(offer, "text_tokens", zero=True)
    refuse(offer.vision_params and cost == "actual", "--vision-params belongs to --cost paper")
    refuse(served != (ask.videos_per_day is not None), "--videos-per-day and --days go together")
    refuse(served and ask.examples is None, "--videos-per-day needs --examples")
    used = ask.out or ask.elasticity or ask.next
    refuse(ask.frontier and not used, "--frontier needs --out FILE.csv, --elasticity or --next")
    for name in ("at", "out"):
        refuse(getattr(ask, name) and not grid, f"--{name} needs --frontier or --elasticity")
    refuse(measured and no_budgets, "--elasticity with a measured --cost needs --frontier")


def check_design(ask: Question, cost: str, refuse) -> None:
    """Raise ValueError for a first design whose question is not complete."""
    say = "without DIR, the folder of `vvlm fit`, a first design is planned: "
    for name in ("spend", "budget_tflops", "examples"):
        refuse(getattr(ask, name) is None, f"{say}give --{name.replace('_', '-')}, or DIR")
    for name in ("next", "frontier", "at", "elasticity", "days", "tolerance"):
        refuse(getattr(ask, name), f"{say}--{name} needs DIR")
    refuse(cost not in ("paper", "actual"), f"{say}--cost {cost} needs DIR; take paper or actual")
