"""verdict.json: what the study found of its law and of the decision that was tested."""

import json
from pathlib import Path

import numpy as np

from fitting import regret as paired
from fitting.planner import json_ready
from fitting.regret import PairedRegret, RunNoise
from fitting.report.analysis import Analysis
from fitting.rivals import Choice
from fitting.runs import FACTORS, RunTable

from ..common import shipped
from . import laws

study_lib = shipped("study")


def decision(study, choice: Choice, folder: Path) -> dict:
    """Return the test of one budget: the claim, every tested point, regrets and the outcome.

    Args:
      choice: what was claimed, and what was trained.
      folder: the study's store, with its questions and predictions.
    """
    rule, best = study.decision, choice.tested[0]
    seeds = study_lib.further_seeds(study, rule.seeds)
    bound = max(rule.tolerance, choice.regret_bound)
    correct_CSQ, task_Q, video_Q = answers(study, folder, [t.x for t in choice.tested])
    points = [
        {
            "rule": t.rule,
            "x": dict(zip(FACTORS, t.x, strict=True)),
            "cost": t.cost,
            "predicted": t.predicted,
            "note": t.note,
        }
        for t in choice.tested
    ]
    found = {
        "budget": choice.budget,
        "num_examples": choice.num_examples,
        "x": points[0]["x"],
        "predicted": best.predicted,
        "interval": [choice.low, choice.high],
        "regret_bound": choice.regret_bound,
        "bound": bound,
        "candidates": choice.candidates,
        "alike": choice.alike,
        "seeds": list(seeds),
        "questions": {task: int((task_Q == task).sum()) for task in np.unique(task_Q).tolist()},
    }
    if min(correct_CSQ.shape[:2]) < 2:
        why = "there is no rival within reach, or a single seed"
        return found | {"tested": points, "outcome": paired.NOT_RESOLVED, "why": why}
    pairs = paired.paired_regret(correct_CSQ, task_Q, video_Q, rule.level)
    measured = float(pairs.error[0].mean())
    return found | {
        "measured": measured,
        "inside": choice.low <= measured <= choice.high,
        "rank": pairs.rank,
        **_regrets(points, pairs),
        "run_sd": pairs.run_sd,
        "run_dof": pairs.run_dof,
        "outcome": paired.outcome(pairs, bound),
    }


def _regrets(points: list[dict], pairs: PairedRegret) -> dict:
    """Add errors and regrets to the points; return them, and the largest regret."""
    for i, point in enumerate(points):
        point |= {"errors": pairs.error[i].tolist(), "error": float(pairs.error[i].mean())}
        if i:
            point |= {
                "regret": pairs.regret[i - 1],
                "interval": [pairs.low[i - 1], pairs.high[i - 1]],
                "low_together": pairs.low_together[i - 1],
                "stderr": pairs.stderr[i - 1],
                "dof": pairs.dof[i - 1],
            }
    worst = max(points[1:], key=lambda point: point["regret"])
    largest = {"rule": worst["rule"], "regret": worst["regret"], "interval": worst["interval"]}
    return {"tested": points, "largest_regret": largest}


def answers(study, folder: Path, tested) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (correct [C, S, Q], task [Q], video [Q]) of tested configurations.

    Questions whose video some run could not read are left out for all.
    """
    questions = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    runs = study_lib.decision_sweep(study, str(folder), tested).points
    by_x: dict[tuple, list] = {}
    for run in runs:
        x = run.lm_params, run.num_frames, run.tokens_per_frame
        by_x.setdefault(x, []).append(_correct(folder / "runs" / run.run_id, questions))
    correct_CSQ = np.array([by_x[tuple(x)] for x in tested])
    known_Q = ~np.isnan(correct_CSQ).any(axis=(0, 1))
    task_Q = np.array([q["task"] for q in questions])[known_Q]
    video_Q = np.array([q["video"] for q in questions])[known_Q]
    return correct_CSQ[..., known_Q], task_Q, video_Q


def _correct(run: Path, questions: list[dict]) -> list[float]:
    """Return 0 or 1 for each question, NaN where its video could not be read."""
    (file,) = run.glob("evaluate-*-test/predictions.jsonl")
    rows = {row["id"]: row for row in map(json.loads, file.read_text().splitlines())}
    return [float(rows[q["id"]].get("correct", np.nan)) for q in questions]


def run_noise(table: RunTable, tests: list[dict], level: float) -> dict:
    """Return the noise of runs in points: of the replicates, and of the tested points with them."""
    table = table.select(metric="avg")
    repeated: dict[tuple, list[float]] = {}
    for sweep, x, n, error in zip(
        table.columns["sweep"], table.x.tolist(), table.n, table.error, strict=True
    ):
        if sweep in (*laws.SWEEPS, "replicate"):
            repeated.setdefault((*x, n), []).append(error)
    points = {tuple(p["x"].values()): p.get("errors", []) for t in tests for p in t["tested"]}
    found = {"replicates": list(repeated.values())}
    found["all"] = [*repeated.values(), *points.values()]
    noise = {name: paired.pooled_noise(groups, level) for name, groups in found.items()}
    return {name: _noise(one) for name, one in noise.items()}


def _noise(found: RunNoise) -> dict:
    return {
        "sd": found.sd,
        "dof": found.dof,
        "interval": [found.low, found.high],
        "configurations": found.groups,
    }


def make(study, analysis: Analysis, table: RunTable, choices, folder: Path) -> dict:
    """Return the verdict, all but `seconds`.

    Args:
      table: the runs of all sweeps.
      choices: the `Choice` of each tested budget.
    """
    level = study.decision.level
    tests = [decision(study, choice, folder) for choice in choices]
    found = {
        "synthetic": True,
        "seed": study.seed,
        "level": level,
        "rule": paired.RULE.format(level=level, rivals=len(study.decision.rivals)),
        "law": laws.quality(analysis, level, study_lib.world(study)),
        "run_noise": run_noise(table, tests, level),
        "decision": tests,
    }
    return rounded(json_ready(found))


def rounded(value):
    """Return a JSON value with numbers to six digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
