"""The paper's eight tasks (Table 5): what LMMs-Eval calls them, and how its numbers become scores.

Every score is 0–100: a judge's 0–5 times 20 (VideoChatGPT: the mean of its five), a share times
100, and of MVBench the mean of its twenty subtasks, which LMMs-Eval does not take by itself. `avg`
(the paper's Metrics/Avg) is the mean of the eight.

What a judge gave no grade for LMMs-Eval counts as 0. Here it is left out of the mean.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import nearest
from vvlm_jax.eval import scores as scores_of

_MVBENCH = (
    *("action_antonym", "action_count", "action_localization", "action_prediction"),
    *("action_sequence", "character_order", "counterfactual_inference", "egocentric_navigation"),
    *("episodic_reasoning", "fine_grained_action", "fine_grained_pose", "moving_attribute"),
    *("moving_count", "moving_direction", "object_existence", "object_interaction"),
    *("object_shuffle", "scene_transition", "state_change", "unexpected_action"),
)
_VIDEOCHATGPT = (
    ("videochatgpt_gen", "gpt_eval_score_correctness"),
    ("videochatgpt_gen", "gpt_eval_score_detailed_orientation"),
    ("videochatgpt_gen", "gpt_eval_score_context"),
    ("videochatgpt_temporal", "gpt_eval_score_temporal"),
    ("videochatgpt_consistency", "gpt_eval_score_consistency"),
)


@dataclass(frozen=True)
class Task:
    """One column of the paper's results."""

    name: str
    """The paper's abbreviation."""
    asked: str
    """LMMs-Eval's task, or group of tasks."""
    parts: tuple[tuple[str, str], ...]
    """(LMMs-Eval's task, its metric): the score is their mean, times `scale`."""
    scale: float
    judged: bool = False
    """Whether a judge is asked."""

    @property
    def tasks(self) -> list[str]:
        """LMMs-Eval's tasks that it consists of."""
        return list(dict.fromkeys(task for task, _ in self.parts))

    def score(
        self,
        results: Mapping[str, Mapping],
        asked: Mapping[str, int] | None = None,
        ungraded: Mapping[str, int] | None = None,
    ) -> float:
        """0–100, from the `results` of an evaluation.

        Args:
          asked, ungraded: by metric, how many grades a judge was asked for, and how many of them it
            did not give.

        ValueError names what is not among the results, is no number of its range, or has no grade.
        """
        asked, ungraded = asked or {}, ungraded or {}
        return float(
            np.mean(
                [
                    self._part(results, *part, asked.get(part[1], 0), ungraded.get(part[1], 0))
                    for part in self.parts
                ]
            )
        )

    def _part(self, results, task: str, metric: str, asked: int, ungraded: int) -> float:
        key = f"{metric},none"
        try:
            value = self.scale * float(results[task][key])
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{self.name}: LMMs-Eval gave no number for {task}, {metric}"
            ) from None
        if ungraded:
            if ungraded == asked:
                raise ValueError(f"{self.name}: the judge gave no grade for {task}, {metric}")
            if metric != "gpt_eval_accuracy":  # which leaves them out by itself
                value *= asked / (asked - ungraded)
        if not -1e-9 <= value <= 100 + 1e-9:
            raise ValueError(
                f"{self.name}: {task}, {metric} × {self.scale:g} is {value:g}, not 0–100"
            )
        return value


def _one(name: str, task: str, metric: str, scale: float, judged: bool = False) -> Task:
    return Task(name, task, ((task, metric),), scale, judged)


TASKS = (
    _one("VDC", "video_dc499", "gpt_eval_score", 20, judged=True),
    _one("AQA", "activitynetqa", "gpt_eval_accuracy", 1, judged=True),
    Task("VCG", "videochatgpt", _VIDEOCHATGPT, 20, judged=True),
    _one("LVB", "longvideobench_val_v", "lvb_acc", 100),
    _one("PT", "perceptiontest_val_mc", "accuracy", 100),
    Task("MV", "mvbench", tuple((f"mvbench_{s}", "mvbench_accuracy") for s in _MVBENCH), 1),
    _one("VMME", "videomme", "videomme_perception_score", 1),
    _one("NQA", "nextqa_mc_test", "exact_match", 100),
)
"""In the order of Table 5."""


def choose(names: Iterable[str]) -> list[Task]:
    """Tasks by LMMs-Eval's names, the paper's abbreviations, or `paper`, which is all of them.
    ConfigError names the nearest for one that is unknown.
    """
    known = {**{t.asked: t for t in TASKS}, **{t.name: t for t in TASKS}}
    chosen = {}
    for name in names:
        if name != "paper" and name not in known:
            raise ConfigError(f"--tasks {name}: no such task; {nearest(name, [*known, 'paper'])}")
        chosen |= {t.name: t for t in (TASKS if name == "paper" else [known[name]])}
    return [t for t in TASKS if t.name in chosen]


def average(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores with `avg`, their mean, when all eight are among them."""
    if set(scores) != {task.name for task in TASKS}:
        return dict(scores)
    return {**scores, "avg": scores_of.average(list(scores.values()), [None])[0]}
