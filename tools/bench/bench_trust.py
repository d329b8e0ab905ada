"""Measure what a law that may be wrong answers: silent failures, flags, coverage, regret.

Examples:
    python -m tools.bench.bench_trust --tables 20 --out runs/trust.jsonl
    python -m tools.bench.bench_trust --truths logistic --form auto --out runs/trust.jsonl
    python -m tools.bench.bench_trust --equivalent 100,500 --tables 10 --truths family,logistic

Synthetic tables of the paper's 88 runs come from six truths (`tools/bench/truths.py`). Each is
fitted, tested and planned with as `vvlm fit` and `vvlm plan` do by default, but with fewer
resamples and starts, and asked seven questions (budget, n). Answers go to --out, one line a table;
the same command goes on where it stopped. Bounds are 95%, clustered by table.

A silent failure is an answer without a flag whose x* loses more than a point by the truth, or
whose true error lies outside the law's 90% interval by more than the interval's width. A flag is a
verdict other than "holds", or an answer marked impossible.
"""

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from fitting import formatting
from fitting.cost import PAPER
from fitting.sweeps import PAPER_DOMAIN
from tools.arguments import read_options
from tools.bench.truths import TRUTHS, make_table
from tools.common import die_in_one_line
from tools.fit_flags import FitFlags, fit_config
from vvlm_jax.progress import JsonlWriter, duration

QUESTIONS = (
    (5e12, 1e6),
    (5e12, 2e6),
    (15e12, 1e6),
    (15e12, 2e6),
    (30e12, 1e6),
    (30e12, 2e6),
    (50e12, 2e6),
)
LEVEL, TOLERANCE, LOSES = 0.9, 0.5, 1.0
NEW_RUNS = 25  # runs drawn to see how many the interval of a new run holds
SAY_EVERY = 50.0  # seconds
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_trust`."""

    tables: int = 100
    """Tables of each truth, with seeds --first to --first + --tables - 1."""
    first: int = 0
    """Seed of the first table."""
    truths: str = ",".join(TRUTHS)
    """Which truths, with commas between."""
    form: Name = None
    """Form, as of `vvlm fit --form`; its default unless said."""
    resamples: int = 25
    """Members of each fit."""
    starts: int = 60
    """Random starts of each fit."""
    batch: int = 5
    """Tables of a truth fitted at once, which fills the solver's chunks."""
    workers: int = 2
    """Processes, one core each."""
    out: Path = Path("runs/trust.jsonl")
    """Answers, one line a table."""
    equivalent: Annotated[str | None, tyro.conf.arg(metavar="RESAMPLES,STARTS")] = None
    """Do the same tables with these too, and print how far the answers differ."""
    summary: bool = False
    """Print what --out holds and work no further."""


class Task(dict):
    """What decides a line of the file: truth, seed, form, resamples, starts."""

    KEYS = ("truth", "seed", "form", "resamples", "starts")

    @property
    def key(self) -> tuple:
        """Return the values of `KEYS`."""
        return tuple(self[name] for name in self.KEYS)


def main(args: Args) -> None:
    """Do the tables that are not in the file yet, and print the aggregates."""
    form = args.form or fit_config(FitFlags()).form
    sizes = [(args.resamples, args.starts)]
    if args.equivalent:
        resamples, starts = args.equivalent.split(",")
        sizes.append((int(resamples), int(starts)))
    truths = args.truths.split(",")
    if unknown := set(truths) - set(TRUTHS):
        raise ValueError(f"--truths {unknown.pop()}: there are {', '.join(TRUTHS)}")
    seeds = range(args.first, args.first + args.tables)
    tasks = [
        Task(zip(Task.KEYS, (truth, seed, form, *size), strict=True))
        for seed in seeds
        for truth in truths
        for size in sizes
    ]
    if not args.summary:
        work(tasks, args)
    found = read(args.out)
    for size in sizes:
        rows = [found[task.key] for task in tasks if task.key[3:] == size and task.key in found]
        print(f"\n{form}, {size[0]} resamples x {size[1]} starts")
        print_summary(rows, truths)
    if args.equivalent:
        print_differences(found, tasks, sizes)


# --- the work ---


def work(tasks: list[Task], args: Args) -> None:
    """Ask every task that the file lacks, in processes of one core each."""
    done = read(args.out)
    left = [task for task in tasks if task.key not in done]
    writer, begin, said = JsonlWriter(args.out), time.monotonic(), time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, initializer=one_core) as pool:
        waiting = {pool.submit(ask, group) for group in grouped(left, args.batch)}
        groups = len(waiting)
        while waiting:
            ended, waiting = wait(waiting, timeout=SAY_EVERY, return_when=FIRST_COMPLETED)
            for future in ended:
                for row in future.result():
                    writer.write(**row)
            if time.monotonic() - said > SAY_EVERY and len(waiting) < groups:
                said, count = time.monotonic(), groups - len(waiting)
                rest = duration((said - begin) / count * len(waiting))
                print(f"{count}/{groups} x {args.batch} tables · {rest} left", file=sys.stderr)
    writer.close()


def grouped(tasks: list[Task], size: int) -> list[list[Task]]:
    """Return the tasks in groups that differ in the seed alone."""
    groups = {}
    for task in tasks:
        groups.setdefault((task["truth"], *task.key[2:]), []).append(task)
    parts = [[own[i : i + size] for i in range(0, len(own), size)] for own in groups.values()]
    return [group for turn in itertools.zip_longest(*parts) for group in turn if group]


def one_core() -> None:
    """Leave this process one core, so that processes side by side do not wait for each other."""
    cores = sorted(os.sched_getaffinity(0))
    identity = multiprocessing.current_process()._identity or (0,)
    os.sched_setaffinity(0, {cores[identity[-1] % len(cores)]})


def read(path: Path) -> dict[tuple, dict]:
    """Return the lines of the file by their key; a line that a stop cut short is left out."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        found[Task(row).key] = row
    return found


def ask(tasks: list[Task]) -> list[dict]:
    """Return the lines of tables that are fitted at once: verdicts, and answers to all questions.

    Seconds are those of the batch, shared out.
    """
    from fitting.fits import fit_many
    from fitting.lack_of_fit import judged

    tables = [make_table(task["truth"], task["seed"]) for task in tasks]
    flags = {name: tasks[0][name] for name in ("form", "resamples", "starts")}
    begin = time.perf_counter()
    laws = fit_many([(table, None) for table in tables], fit_config(FitFlags(**flags)))
    fitted = time.perf_counter()
    laws = [judged(law, table) for law, table in zip(laws, tables, strict=True)]
    checked = time.perf_counter()
    answers = [
        [answer(law, task, *question) for question in QUESTIONS]
        for law, task in zip(laws, tasks, strict=True)
    ]
    spans = {
        "fit": fitted - begin,
        "check": checked - fitted,
        "plan": time.perf_counter() - checked,
    }
    return [
        {
            **task,
            "verdict": law.verdict.verdict,
            "reasons": law.verdict.reasons,
            "tests": law.verdict.tests,
            "answers": given,
            "seconds": {name: span / len(tasks) for name, span in spans.items()},
        }
        for task, law, given in zip(tasks, laws, answers, strict=True)
    ]


def answer(law, task: Task, budget: float, n: float) -> dict:
    """Return one answer of the plan, and what it is worth by the truth."""
    from fitting import planner
    from fitting.intervals import prediction_interval
    from fitting.uncertainty import decide

    truth = TRUTHS[task["truth"]]
    offer = planner.make_offer(law)
    plan = planner.choose(law, offer, budget, n, tolerance=TOLERANCE)
    best = plan["best"]
    x = np.array(list(best["x"].values()))
    error = float(truth.error(x, n))
    x_XK = PAPER_DOMAIN.configurations()
    x_XK = x_XK[PAPER(x_XK) <= budget]
    true_X = truth.error(x_XK, n)
    decision = decide(law, offer.domain, offer.cost, budget, n)
    held = decision.x[decision.regret_set(TOLERANCE, LEVEL)]
    worse = truth.error(held, n) - true_X.min() > TOLERANCE
    low, high = map(float, best["law_interval"])
    run_low, run_high = map(float, prediction_interval(law, x, n, LEVEL))
    rng = np.random.default_rng([task["seed"], list(TRUTHS).index(task["truth"]), int(budget / n)])
    new = error * np.exp(np.concatenate([truth.noise(rng, 2)[0] for _ in range(NEW_RUNS)]))
    return {
        "x": x.tolist(),
        "error": error,
        "predicted": float(best["error"]),
        "regret": error - float(true_X.min()),
        "is_best": bool((x == x_XK[true_X.argmin()]).all()),
        "best_for": float(best["best_for"]),
        "low": low,
        "high": high,
        "run_low": run_low,
        "run_high": run_high,
        "new_inside": float(np.mean((run_low <= new) & (new <= run_high))),
        "held": len(held),
        "held_worse": int(worse.sum()),
        "impossible": bool(best["impossible"]),
        "outside": bool(best["extrapolates"]),
    }


# --- aggregates ---


def is_flagged(row: dict, one: dict) -> bool:
    """Return whether the reader of an answer was warned not to believe it."""
    return row["verdict"] != "holds" or one["impossible"]


def failed(one: dict) -> bool:
    """Return whether an answer would mislead: a costly x*, or an error far from the interval."""
    away = max(one["low"] - one["error"], one["error"] - one["high"])
    return one["regret"] > LOSES or away > one["high"] - one["low"]


MEASURES = {
    "flagged": lambda row, one: (is_flagged(row, one), 1),
    "no law": lambda row, one: (row["verdict"] == "no law", 1),
    "silent failures": lambda row, one: (failed(one) and not is_flagged(row, one), 1),
    "failures": lambda row, one: (failed(one), 1),
    "law covers": lambda row, one: unflagged(row, one, one["low"] <= one["error"] <= one["high"]),
    "new run": lambda row, one: unflagged(row, one, one["new_inside"]),
    "set worse": lambda row, one: held_worse(row, one),
    "best": lambda row, one: unflagged(row, one, one["is_best"]),
    "P(best)": lambda row, one: unflagged(row, one, one["best_for"]),
    "outside": lambda row, one: (one["outside"], 1),
}
"""Name of a share -> (row, answer) -> (numerator, denominator)."""


def unflagged(row: dict, one: dict, value) -> tuple:
    """Return (value, 1) of an answer without a flag, else nothing."""
    return (0, 0) if is_flagged(row, one) else (value, 1)


def held_worse(row: dict, one: dict) -> tuple:
    """Return (share of the regret set that is worse than stated, 1) of an answer without a flag."""
    if is_flagged(row, one) or not one["held"]:
        return 0, 0
    return one["held_worse"] / one["held"], 1


def print_summary(rows: list[dict], truths: list[str]) -> None:
    """Print a line for each truth: shares with 95% bounds, widths, regret and seconds."""
    lines = []
    for truth in truths:
        own = [row for row in rows if row["truth"] == truth]
        if not own:
            continue
        cells = [percent(own, measure) for measure in MEASURES.values()]
        every = [(row, one) for row in own for one in row["answers"]]
        open_ = [one for row, one in every if not is_flagged(row, one)]
        widths = [one["high"] - one["low"] for one in open_]
        regret = [one["regret"] for one in open_]
        seconds = np.median([sum(row["seconds"].values()) for row in own])
        ends = [f"{np.median(v):.2f}" if v else "-" for v in (widths,)]
        ends += [f"{np.mean(regret):.2f}" if regret else "-", f"{seconds:.1f}"]
        lines.append([truth, str(len(own)), *cells, *ends])
    headers = ["truth", "tables", *MEASURES, "width", "regret", "s a table"]
    print(formatting.aligned(headers, lines))


def percent(rows: list[dict], measure) -> str:
    """Return a share with its 95% bounds, in percent."""
    pairs = np.array([np.sum([measure(row, o) for o in row["answers"]], axis=0) for row in rows])
    share, low, high = clustered_share(*pairs.T)
    return "-" if math.isnan(share) else f"{share:.1%} ({low:.0%}-{high:.0%})".replace("%-", "-")


def clustered_share(count_T, total_T) -> tuple[float, float, float]:
    """Return (share, low, high): 95% Wilson bounds at the number of answers that as many clusters
    are worth.

    Args:
      count_T, total_T: of each table, the answers with a property and all answers.
    """
    count_T, total_T = np.asarray(count_T, float), np.asarray(total_T, float)
    total, tables = total_T.sum(), int((total_T > 0).sum())
    if not tables:
        return math.nan, math.nan, math.nan
    share = count_T.sum() / total
    spread = ((count_T - share * total_T) ** 2).sum() / total**2 * tables / max(tables - 1, 1)
    worth = share * (1 - share) / spread if spread > 0 else tables
    worth = min(max(worth, 1.0), total)
    z = 1.96
    middle = (share + z**2 / (2 * worth)) / (1 + z**2 / worth)
    half = z / (1 + z**2 / worth)
    half *= math.sqrt(share * (1 - share) / worth + z**2 / (4 * worth**2))
    return float(share), float(max(0.0, middle - half)), float(min(1.0, middle + half))


def print_differences(found: dict, tasks: list[Task], sizes) -> None:
    """Print how far the answers of two sizes of fit differ, over tables done with both."""
    by_size = []
    for size in sizes:
        rows = {t.key[:2]: found[t.key] for t in tasks if t.key[3:] == size and t.key in found}
        by_size.append(rows)
    both = sorted(set(by_size[0]) & set(by_size[1]))
    one, other = ([rows[key] for key in both] for rows in by_size)
    pairs = [
        (a, b)
        for first, second in zip(one, other, strict=True)
        for a, b in zip(first["answers"], second["answers"], strict=True)
    ]
    flags = np.mean([a["verdict"] == b["verdict"] for a, b in zip(one, other, strict=True)])
    wide = [(a["high"] - a["low"]) / (b["high"] - b["low"]) for a, b in pairs]
    print(
        f"\n{sizes[0]} against {sizes[1]} (resamples, starts), {len(both)} tables: the same verdict"
        f" for {flags:.0%}, the same x* for {np.mean([a['x'] == b['x'] for a, b in pairs]):.0%}, "
        f"regret differs by {np.mean([a['regret'] - b['regret'] for a, b in pairs]):+.3f} points, "
        f"widths x {np.exp(np.mean(np.log(wide))):.3f}, the same failures for "
        f"{np.mean([failed(a) == failed(b) for a, b in pairs]):.0%}"
    )


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)))
