"""Compare what further runs buy: those that `vvlm plan --next` names, isoFLOP runs, random ones.

Example:
    python -m tools.bench.bench_next --tables 100 --out runs/next.jsonl

Each synthetic twin is an add-interact law with its own parameters. A small star is measured with 2%
noise; then a purse, a share of what the paper's isoFLOP runs cost, is spent in three ways: on
isoFLOP runs in random order, on random runs of the same candidates, and in rounds of `next_runs`,
each followed by a fit. The regret of the fitted choice by the twin's own law is averaged over four
budgets. Answers go to --out, one line a twin; the same command goes on where it stopped.
"""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np

from fitting import formatting, next_runs
from fitting.config import FACTORS, FitConfig
from fitting.cost import PAPER
from fitting.forms import get_form
from fitting.runs import RunTable
from fitting.sweeps import PAPER_DOMAIN, PAPER_ISOFLOP, PAPER_LM_PARAMS, Domain, star_sweep
from tools.arguments import read_options
from tools.common import die_in_one_line
from vvlm_jax.progress import JsonlWriter, Progress

ARMS = ("start", "isoflop", "random", "next")
SIZES = (2.5e5, 5e5, 1e6, 2_192_374.0)
QUESTIONS = tuple(next_runs.Question(budget, 2e6) for budget in (3e12, 8e12, 15e12, 25e12))
UNITS = np.array([4e9, 16.0, 60.0, 8e5])
TYPICAL = dict(
    alpha_N=9.0, alpha_T=5.0, alpha_V=3.0, beta_N=2.0, beta_T=1.5, beta_V=2.5, xi=4.0,
    epsilon=20.0, a_N=0.25, a_T=0.4, a_V=0.2, b_N=0.5, b_T=0.3, b_V=0.45, d=0.6,
)  # fmt: skip
"""Of the twins' laws: coefficients in error points at `UNITS`; each twin scatters around them."""
NOISE = 0.02
HIGHEST = 88.0  # error of a twin anywhere on the candidates


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_next`."""

    tables: int = 100
    """Twins."""
    batch: int = 10
    """Twins fitted at once."""
    rounds: int = 4
    """Fits between which the purse is spent."""
    choices: int = 8
    """Choices a round, as --next."""
    share: float = 0.15
    """The purse, as a share of what the paper's 49 isoFLOP runs cost to train."""
    resamples: int = 30
    """Members of each fit."""
    starts: int = 80
    """Random starts of each fit."""
    out: Path = Path("runs/next.jsonl")
    """Answers, one line a twin."""


class Twin:
    """One synthetic law, and a table of runs that grows.

    Attributes:
      seed: of the law and of its noise.
      theta: the law's parameters, [P], at `UNITS`.
      runs: measured (x [K], n), in order.
    """

    def __init__(self, seed: int, offered: next_runs.Candidates):
        self.form, self.seed = get_form("add-interact"), seed
        rng, names = np.random.default_rng([seed, 0]), self.form.parameters(3)
        exponent, floor = self.form.is_exponent(3), names.index("epsilon")
        value = np.array([TYPICAL[name] for name in names])
        value *= np.exp(np.where(exponent, 0.3, 0.6) * rng.standard_normal(len(value)))
        self.theta = np.where(exponent, value, np.log(value))
        top = self.error(offered.x, offered.num_examples).max()
        if top > HIGHEST:
            rest = ~exponent & (np.arange(len(value)) != floor)
            self.theta[rest] += np.log((HIGHEST - value[floor]) / (top - value[floor]))
        small = Domain(PAPER_LM_PARAMS, (4, 12, 32), (4, 36, 196))
        star = star_sweep((PAPER_LM_PARAMS[-1], 32, 196), small, (250_000, 1_000_000))
        self.runs = [(point.x, point.num_examples) for point in star]

    def error(self, x, n) -> np.ndarray:
        """Return the law's error [X] at x [X, 3], n [X]."""
        log_z = np.log(np.column_stack([x, np.broadcast_to(n, len(x))]) / UNITS)
        return np.exp(self.form.log_error(self.theta, log_z[:, :3], log_z[:, 3]))

    def table(self, more=()) -> RunTable:
        """Return the runs and `more` with the noise of their place in the table; synthetic."""
        runs = [*self.runs, *more]
        x, n = (np.array(part, float) for part in zip(*runs, strict=True))
        noise = np.random.default_rng([self.seed, 1]).standard_normal(1000)[: len(runs)]
        error = self.error(x, n) * np.exp(NOISE * noise)
        return RunTable.from_rows(
            dict(zip(FACTORS, row, strict=True), run_id=f"run-{i}", sweep="twin", metric="made-up")
            | {"num_examples": size, "score": 100 - value}
            for i, (row, size, value) in enumerate(zip(x, n, error, strict=True))
        )

    def regret(self, law) -> float:
        """Return what the law's choices lose by the truth, on average over the questions."""
        domain = PAPER_DOMAIN.configurations()
        lost = []
        for budget, n in QUESTIONS:
            x = domain[PAPER(domain) <= budget]
            truth = self.error(x, n)
            lost.append(truth[law.predict(x, n).argmin()] - truth.min())
        return float(np.mean(lost))


def spend_at_random(runs: list, cost, purse: float, rng) -> list:
    """Return runs in random order, each once, while the purse lasts."""
    taken = []
    for i in rng.permutation(len(runs)):
        if cost[i] <= purse:
            taken.append(runs[i])
            purse -= cost[i]
    return taken


def measure(args: Args, seeds) -> list[dict]:
    """Return one row a twin: the regret after each arm, the share of the purse spent."""
    from fitting.fits import fit_many

    domain = PAPER_DOMAIN.configurations()
    offered = next_runs.candidates(domain, PAPER, SIZES)
    isoflop = [(point.x, point.num_examples) for point in PAPER_ISOFLOP]
    x, n = (np.array(part, float) for part in zip(*isoflop, strict=True))
    price = next_runs.training_cost(PAPER, x, n)
    purse = args.share * price.sum()
    config = FitConfig(resamples=args.resamples, starts=args.starts)
    twins = [Twin(seed, offered) for seed in seeds]
    laws = fit_many([(twin.table(), None) for twin in twins], config)
    rows = [dict(seed=t.seed, start=t.regret(law)) for t, law in zip(twins, laws, strict=True)]
    any_run = list(zip(offered.x, offered.num_examples, strict=True))
    for arm, runs, cost in (("isoflop", isoflop, price), ("random", any_run, offered.cost)):
        rngs = [np.random.default_rng([twin.seed, 2]) for twin in twins]
        more = [spend_at_random(runs, cost, purse, rng) for rng in rngs]
        tables = [(twin.table(add), None) for twin, add in zip(twins, more, strict=True)]
        for twin, row, add, law in zip(twins, rows, more, fit_many(tables, config), strict=True):
            row |= {arm: twin.regret(law), f"{arm}_runs": len(add)}
    left = np.full(len(twins), purse)
    for done in range(args.rounds):
        for i, (twin, law) in enumerate(zip(twins, laws, strict=True)):
            now = dict(count=args.choices, spend=left[i] / (args.rounds - done))
            for run in next_runs.next_runs(law, QUESTIONS, domain, PAPER, offered, **now):
                twin.runs += [(run.x, run.num_examples)] * run.repeats
                left[i] -= run.cost
        laws = fit_many([(twin.table(), None) for twin in twins], config)
    for twin, law, row, unspent in zip(twins, laws, rows, left, strict=True):
        row |= {"next": twin.regret(law), "next_runs": len(twin.runs)}
        row["next_spent"] = float(1 - unspent / purse)
    return rows


def main(args: Args) -> None:
    """Measure what --out lacks, and print the mean regret of each arm."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    known = args.out.read_text().splitlines() if args.out.exists() else []
    rows = {row["seed"]: row for row in map(json.loads, known)}
    todo = [seed for seed in range(args.tables) if seed not in rows]
    bar = Progress("next runs", args.tables, "twins")
    with contextlib.closing(JsonlWriter(args.out)) as file:
        for first in range(0, len(todo), args.batch):
            bar.update(len(rows))
            for row in measure(args, todo[first : first + args.batch]):
                file.write(**row)
                rows[row["seed"]] = row
    bar.close()
    print("\n".join(summary([rows[seed] for seed in sorted(rows)][: args.tables])))


def summary(rows: list[dict]) -> list[str]:
    """Return the mean regret of each arm with its standard error, and paired ratios to `next`."""
    regret = {arm: np.array([row[arm] for row in rows]) for arm in ARMS}
    cells = []
    for arm, value in regret.items():
        error, times = value.std(ddof=1) / len(value) ** 0.5, value.mean() / regret["next"].mean()
        numbers = value.mean(), error, np.quantile(value, 0.9)
        cells.append((arm, *(f"{number:.3f}" for number in numbers), f"{times:.2f}"))
    spent = np.mean([row["next_spent"] for row in rows])
    return [
        f"{len(rows)} synthetic twins; `next` spent {spent:.0%} of the purse",
        formatting.aligned(("runs", "mean regret", "± se", "90%", "times next"), cells),
    ]


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)))
