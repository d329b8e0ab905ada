"""Grading of replies to open questions by a judge: its prompt, and its verdicts."""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.eval.answers import right_answers
from vvlm_jax.eval.judge import Judge


class Verdict(NamedTuple):
    """A judge's grade of one reply."""

    correct: bool
    score: float
    """0–5."""


_TASK = (
    "You grade answers to questions about videos. You are given a question, its correct answer, "
    "and what a model answered; you do not see the video. An answer is correct when it means the "
    "same as the correct answer: other words and further details do no harm unless they "
    "contradict it."
)


def grading(question: str, answers: Sequence[str], reply: str) -> list[dict[str, str]]:
    """Return messages that ask whether `reply` means the same as one of `answers`."""
    right = answers[0] if len(answers) == 1 else " / ".join(answers) + "  (any of these)"
    asked = (
        f"Question: {question}\nCorrect answer: {right}\nModel's answer: {reply}\n\n"
        'Reply with a JSON object and nothing else: {"correct": "yes" or "no", "score": N}, where '
        "N is an integer from 0 (wrong) to 5 (means the same)."
    )
    return [{"role": "system", "content": _TASK}, {"role": "user", "content": asked}]


def parse_verdict(text: str) -> Verdict | None:
    """Return the verdict in a judge's reply; None when it contains none.

    JSON and Python dictionaries are read, with or without a code fence or words around them; `pred`
    (LMMs-Eval's word) is `correct`.
    """
    found = _dictionary(text)
    if found is None:
        return None
    said, score = found.get("correct", found.get("pred")), _score(found)
    said = {True: "yes", False: "no"}[said] if isinstance(said, bool) else said
    said = said.strip().lower() if isinstance(said, str) else ""
    return Verdict(said == "yes", score) if said in ("yes", "no") and score is not None else None


def parse_score(text: str) -> float | None:
    """Return the score, 0–5, in a judge's reply that may lack a verdict; None without one."""
    found = _dictionary(text)
    return None if found is None else _score(found)


def _score(found: dict) -> float | None:
    score = found.get("score")
    if isinstance(score, str) and re.fullmatch(r"\s*\d(\.\d+)?\s*", score):
        score = float(score)
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 5:
        return None
    return float(score)


def _dictionary(text: str) -> dict | None:
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end or end - start > 2000:
        return None
    readers: tuple[Callable, ...] = (json.loads, ast.literal_eval)
    for read in readers:
        try:
            found = read(text[start : end + 1])
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, dict):
            return found
    return None


def grade(
    questions: Sequence[dict], predictions: dict[str, dict], judge: Judge, file: str | Path
) -> dict[str, Verdict | None]:
    """Return the judge's verdicts on replies to open questions, by id; None where it gave no grade.

    Writes verdicts to `file` as JSON lines {id, task, correct, score, judge}; `judge` holds the
    judge's own words. Raises JudgeError; the same call then continues where it stopped.
    """
    asked, requests = open_replies(questions, predictions)
    replies = judge.ask(requests)
    verdicts = {q["id"]: parse_verdict(r.text) for q, r in zip(asked, replies, strict=True)}
    lines = []
    for q, reply in zip(asked, replies, strict=True):
        verdict = verdicts[q["id"]]
        values = verdict._asdict() if verdict else dict(correct=None, score=None)
        said = reply.refused or reply.text
        lines.append(json.dumps(dict(id=q["id"], task=q["task"], **values, judge=said)) + "\n")
    Path(file).write_text("".join(lines))
    return verdicts


def all_graded(questions: Sequence[dict], predictions: Mapping[str, dict], judge: Judge) -> bool:
    """Return whether every question has a prediction, and every open reply the judge's answer."""
    plan = judge.plan(open_replies(questions, predictions)[1])
    return plan.kept == plan.asked and all(q["id"] in predictions for q in questions)


def open_replies(
    questions: Sequence[dict], predictions: Mapping[str, dict]
) -> tuple[list[dict], list]:
    """Return (open questions that have a reply, the messages that ask a judge about each)."""
    asked = [
        q for q in questions if not q.get("options") and "reply" in predictions.get(q["id"], {})
    ]
    replies = [predictions[q["id"]]["reply"] for q in asked]
    return asked, [
        grading(q["question"], right_answers(q), reply)
        for q, reply in zip(asked, replies, strict=True)
    ]
