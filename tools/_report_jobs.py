"""What `tools.report` computes, cut into jobs that processes can share."""

import contextlib
import dataclasses
import functools
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from typing import NamedTuple

import numpy as np

from fitting.config import FitConfig
from fitting.cost import CostConstants
from fitting.forms import FORMS, PAPER_FORMS, get_form
from fitting.runs import RunTable

FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is computed.

    Attributes:
      law: of every metric's law.
      check: of Table 2, Table 8 and the predictions of unseen runs; None leaves them out.
      bag: of Table 9.
      cost: of a video.
      mark: stands on every figure and CSV.
    """

    law: FitConfig
    check: FitConfig | None
    bag: FitConfig | None
    cost: CostConstants
    mark: str = ""


class Subject(NamedTuple):
    """One metric, and why its runs do not support a law; '' where they do."""

    metric: str
    table: RunTable
    config: FitConfig
    why: str
    one_n: float | None

    @property
    def forms(self) -> list[str]:
        """The paper's forms that these runs can determine."""
        with_n = self.table.n is not None
        return [
            name
            for name in PAPER_FORMS
            if (with_n or not FORMS[name].frontier_moves)
            and len(FORMS[name].parameters(len(self.table.factors), with_n)) < len(self.table)
        ]


def subject(table: RunTable, config: FitConfig) -> Subject:
    """Of the runs of one metric; with a single n the law is one without n."""
    metric, one_n = table.metrics[0], None
    if len(np.unique(table.n)) == 1:
        one_n = float(table.n[0])
        table = dataclasses.replace(table, examples=None, n=None)
        if get_form(config.form).frontier_moves:
            config = config.replace(form="add")
    count = len(get_form(config.form).parameters(len(table.factors), table.n is not None))
    why, perfect = "", np.flatnonzero(table.error <= 0)
    if len(table) <= count:
        runs = f"{len(table)} run{'s do' if len(table) > 1 else ' does'}"
        why = f"{runs} not determine the {count} parameters of {config.form}."
    elif np.ptp(table.error) == 0:
        why = f"All {len(table)} runs have the same error; there is nothing that a law could tell."
    elif perfect.size:
        name = table.run_id[perfect[0]]
        why = f"Run {name} has error 0, which has no logarithm; the law is of log error."
    return Subject(metric, table, config, why, one_n)


@contextlib.contextmanager
def crew(workers: int):
    """So many processes, or none but this one; gives run(jobs, on_done).

    `run` takes {key: (function, *arguments)} and returns {key: value}; on_done(key, value) is
    called here as each job ends.

    Raises:
      ValueError: from `run`, one line, when a process was killed.
    """
    if workers == 1:
        yield _run_here
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_alone) as pool:
        try:
            yield functools.partial(_run_apart, pool)
        except BrokenProcessPool:
            raise ValueError(
                "a process of the report was killed, perhaps for memory; --workers 1 takes less"
            ) from None
        except BaseException:
            for child in active_children():  # nobody waits for what is half done
                child.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _run_here(jobs: dict, on_done=lambda key, value: None) -> dict:
    done = {}
    for key, (function, *args) in jobs.items():
        done[key] = function(*args)
        on_done(key, done[key])
    return done


def _run_apart(pool, jobs: dict, on_done=lambda key, value: None) -> dict:
    futures, done = {pool.submit(*job): key for key, job in jobs.items()}, {}
    for future in as_completed(futures):
        done[futures[future]] = future.result()
        on_done(futures[future], done[futures[future]])
    return done


def _alone() -> None:
    """A worker leaves Ctrl-C to its parent, and an accelerator, which it would not share.

    It ends with its parent, however that ends: the queue that it waits at would never close.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


# --- the jobs ---


def law_job(table: RunTable, config: FitConfig):
    """A `BaggedFit`, or why there is none."""
    from fitting.fits import fit

    try:
        return fit(table, config)
    except ValueError as e:
        return str(e)


def entries_job(tables: dict[str, RunTable], name: str, config: FitConfig) -> dict:
    """metric -> the `Entry` of a form or variation: fits to all runs, to folds, to the star."""
    return {metric: _entry(table, name, config) for metric, table in tables.items()}


def _entry(table: RunTable, name: str, config: FitConfig):
    from fitting import validation

    splits = [validation.random_folds(table, FOLDS, config.seed)]
    if extrapolates(table):
        splits.append(validation.column_split(table, "sweep=star", "sweep=isoflop"))
    try:
        law, validations = validation.validate(table, config, splits)
    except ValueError as e:
        return str(e)
    return validation.Entry(name, law, validations)


def extrapolates(table: RunTable) -> bool:
    """Whether there are both sweeps, to fit one and predict the other."""
    return {"star", "isoflop"} <= set(table.columns.get("sweep", ()))


def comparison(table: RunTable, entries: list):
    """A `Comparison` of the entries that there are; None of none."""
    from fitting.validation import Comparison

    entries = tuple(entry for entry in entries if not isinstance(entry, str))
    split = entries[0].validations[-1].name if entries and extrapolates(table) else None
    return Comparison(entries, table, split) if entries else None


class Findings(NamedTuple):
    """What a metric's job brings back.

    Attributes:
      analysis: an `Analysis`; None without a law.
      figures: name -> `Drawn`, or why there is none.
      decisions: a `Choice` a budget.
    """

    analysis: object
    figures: dict
    decisions: list


class Choice(NamedTuple):
    """What to deploy within a budget.

    Attributes:
      budget, cost: FLOPs a video.
      num_examples: n; None for a law without.
      x: values [K].
      error, low, high: predicted; 90% of new runs.
      probability: share of the members whose own best it is.
      regret: what 90% of the members lose at most by it.
      alike: configurations that lose no more than half a point with 90% of the members.
      affordable: configurations within the budget.
      outside: what extrapolates, in words.
    """

    budget: float
    cost: float
    num_examples: float | None
    x: tuple
    error: float
    low: float
    high: float
    probability: float
    regret: float
    alike: int
    affordable: int
    outside: list


def metric_job(subject: Subject, law, compared, settings: Settings) -> Findings:
    """Frontier, elasticity, decisions and all the figures of one metric."""
    from fitting.report.compute import examine

    from ._fit_page import measured_domain

    if isinstance(law, str):
        return Findings(None, figures(subject, law, None, None, settings), [])
    table, cost, domain = subject.table, settings.cost, measured_domain(subject.table)
    if compared and law.config.form not in [entry.name for entry in compared.entries]:
        compared = None
    analysis = examine(table, law, domain, cost, comparison=compared)
    found = figures(subject, "", analysis, compared, settings)
    return Findings(analysis, found, decisions(analysis, domain))


def figures(subject: Subject, why: str, analysis, compared, settings: Settings) -> dict:
    """name -> `Drawn`, or why there is none."""
    from fitting import figures

    table, cost, one_n = subject.table, settings.cost, subject.one_n
    draw = functools.partial(_drawn, subject.metric, settings.mark)
    found = {"figure7_runs": draw(lambda: figures.all_runs(table, cost))}
    names = ("figure1_performance", "figure2_isoflop", "figure3a_parameters", "figure3b_predicted")
    if analysis is None:
        return found | dict.fromkeys((*names, "figure4_frontier"), why)
    law, change = analysis.law, analysis.elasticity
    if compared is None:
        predictions = {"all runs (fitted)": law.predict(table.x, table.n)}
    else:
        validations = compared.entry(law.config.form).validations
        predictions = {v.name: v.predicted for v in validations}
    fitted_n = (0.0, np.inf) if change is None else tuple(law.ranges[-1])
    ways = (
        lambda: figures.iso_performance(law, table),
        lambda: figures.isoflop_curves(law, table, cost),
        lambda: figures.parameter_boxes(law),
        lambda: figures.predicted_vs_actual(table, predictions),
    )
    found |= {name: draw(way) for name, way in zip(names, ways, strict=True)}
    if one_n is not None and isinstance(found["figure1_performance"], str):
        found["figure1_performance"] += f" All runs have n = {one_n:g}."
    return found | {
        "figure4_frontier": draw(
            lambda: figures.frontier_paths(
                analysis.frontier, law.factors, change, fitted_n=fitted_n
            )
        )
    }


def _drawn(metric: str, mark: str, draw):
    from fitting.figures import style

    try:
        return style.drawn(draw(), title=metric, mark=mark)
    except ValueError as e:
        text = str(e)
        return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def decisions(analysis, domain, most: int = 6) -> list[Choice]:
    """At round budgets within what the runs cost, with the runs' largest n."""
    from fitting.planner import extrapolations
    from fitting.uncertainty import decide, prediction_interval

    law, table, cost = analysis.law, analysis.table, analysis.cost
    n = None if law.examples is None else float(table.n.max())
    found = []
    for budget in budgets(cost(table.x), cost(domain.configurations()), most):
        decision = decide(law, domain, cost, float(budget), n)
        low, high = prediction_interval(law, decision.x[:1], n)
        found.append(
            Choice(
                budget=float(budget),
                cost=float(decision.cost[0]),
                num_examples=n,
                x=tuple(decision.x[0]),
                error=float(decision.error[0]),
                low=float(low[0]),
                high=float(high[0]),
                probability=float(decision.probability[0]),
                regret=float(np.quantile(decision.regret[0], 0.9)),
                alike=int(decision.regret_set(0.005 * law.scale).sum()),
                affordable=len(decision.x),
                outside=extrapolations(law, decision.x[0], n),
            )
        )
    return found


def budgets(measured, offered, most: int) -> np.ndarray:
    """At most so many round costs between the least and the largest of the runs, none below the
    cheapest configuration on offer.
    """
    from fitting.figures.style import round_ticks

    ticks = np.unique(np.maximum(round_ticks(measured), np.min(offered)))
    spread = np.linspace(0, len(ticks) - 1, min(most, len(ticks))).round()
    return ticks[np.unique(spread).astype(int)]


def sensitivity_job(table: RunTable, law, cost: CostConstants) -> tuple[float, float, list]:
    """(largest budget, least n, Table 10's rows), on a grid laid around the runs.

    The largest budget is the dearest run's cost, the least n half the largest of the runs, to one
    digit: for the paper's runs 100 TFLOPs and 1M, Appendix E's grid.
    """
    from fitting.elasticities import sensitivity

    from ._fit_page import measured_domain

    top, unit = float(f"{cost(table.x).max():.0e}"), float(f"{table.n.max():.0e}") / 2
    return top, unit, sensitivity(law, measured_domain(table), cost, top, unit)
