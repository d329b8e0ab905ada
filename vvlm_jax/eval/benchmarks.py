"""The paper's eight benchmarks (Table 5) through LMMs-Eval: their tasks and scores, and the command
that asks them.

Every score is 0–100: a judge's 0–5 times 20 (VideoChatGPT: the mean of its five), a share times
100, and for MVBench the mean of its twenty subtasks, which LMMs-Eval does not average itself. `avg`
(the paper's Metrics/Avg) is the mean of the eight.

LMMs-Eval counts a missing grade as 0. Here replies without a grade are left out of the mean.
"""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import choose, nearest
from vvlm_jax.eval.judge import Judge, JudgeConfig
from vvlm_jax.eval.judge_server import GRADES, JudgeServer
from vvlm_jax.eval.scores import average as mean_and_error
from vvlm_jax.eval.scores import interval

LENGTH = 1024
"""Longest reply, in tokens, where a task sets none."""
_PER_GRADE = 20
"""Factor from a judge's 0–5 to 0–100."""

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
    """A benchmark: one column of the paper's results."""

    name: str
    """The paper's abbreviation."""
    asked: str
    """LMMs-Eval's task, or group of tasks."""
    parts: tuple[tuple[str, str], ...]
    """Pairs of LMMs-Eval's task and its metric: the score is their mean, times `scale`."""
    scale: float
    judged: bool = False
    """Whether a judge grades the replies."""

    @property
    def tasks(self) -> list[str]:
        """LMMs-Eval's tasks in this benchmark."""
        return list(dict.fromkeys(task for task, _ in self.parts))

    def score(
        self,
        results: Mapping[str, Mapping],
        asked: Mapping[str, int] | None = None,
        ungraded: Mapping[str, int] | None = None,
    ) -> float:
        """Return the score, 0–100, from LMMs-Eval's `results`.

        Args:
          asked, ungraded: number of grades that a judge was asked for, and of those that it did not
            give, by metric.

        Raises ValueError naming a part that is missing, out of its range, or has no grade at all.
        """
        parts = self._parts(results, asked or {}, ungraded or {})
        return sum(parts) / len(parts)

    def standard_error(
        self,
        results: Mapping[str, Mapping],
        questions: Mapping[str, int],
        asked: Mapping[str, int] | None = None,
        ungraded: Mapping[str, int] | None = None,
    ) -> float | None:
        """Return the standard error of the score, as that of independent questions.

        It is None for a mean of a judge's 0–5, since LMMs-Eval does not give the single grades, and
        somewhat small where several questions are about one video.

        Args:
          questions: by LMMs-Eval's task.
          asked, ungraded: as for `score`.
        """
        if self.scale == _PER_GRADE:
            return None
        asked, ungraded, errors = asked or {}, ungraded or {}, []
        values = self._parts(results, asked, ungraded)
        for (task, metric), value in zip(self.parts, values, strict=True):
            count = questions[task] - ungraded.get(metric, 0)
            right = round(count * value / 100)
            error = interval([1.0] * right + [0.0] * (count - right), range(count))[1]
            errors.append(100 * error)
        return mean_and_error(values, errors)[1]

    def _parts(self, results, asked: Mapping[str, int], ungraded: Mapping[str, int]) -> list[float]:
        """Return the scores, 0–100, of `parts`."""
        return [
            self._part(results, task, metric, asked.get(metric, 0), ungraded.get(metric, 0))
            for task, metric in self.parts
        ]

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
            if metric != "gpt_eval_accuracy":  # which leaves them out itself
                value *= asked / (asked - ungraded)
        if not -1e-9 <= value <= 100 + 1e-9:
            raise ValueError(
                f"{self.name}: {task}, {metric} × {self.scale:g} is {value:g}, not 0–100"
            )
        return value


def _one(name: str, task: str, metric: str, scale: float, judged: bool = False) -> Task:
    return Task(name, task, ((task, metric),), scale, judged)


TASKS = (
    _one("VDC", "video_dc499", "gpt_eval_score", _PER_GRADE, judged=True),
    _one("AQA", "activitynetqa", "gpt_eval_accuracy", 1, judged=True),
    Task("VCG", "videochatgpt", _VIDEOCHATGPT, _PER_GRADE, judged=True),
    _one("LVB", "longvideobench_val_v", "lvb_acc", 100),
    _one("PT", "perceptiontest_val_mc", "accuracy", 100),
    Task("MV", "mvbench", tuple((f"mvbench_{s}", "mvbench_accuracy") for s in _MVBENCH), 1),
    _one("VMME", "videomme", "videomme_perception_score", 1),
    _one("NQA", "nextqa_mc_test", "exact_match", 100),
)
"""In the order of Table 5."""


def select(names: Iterable[str]) -> list[Task]:
    """Return benchmarks by LMMs-Eval's names or the paper's abbreviations; `paper` means all.

    Raises ConfigError, which suggests the nearest name, for an unknown one.
    """
    known = {**{t.asked: t for t in TASKS}, **{t.name: t for t in TASKS}}
    chosen = {}
    for name in names:
        if name != "paper" and name not in known:
            raise ConfigError(f"--tasks {name}: no such task; {nearest(name, [*known, 'paper'])}")
        chosen |= {t.name: t for t in (TASKS if name == "paper" else [known[name]])}
    return [t for t in TASKS if t.name in chosen]


@dataclass(frozen=True)
class Options:
    """Options of an evaluation on benchmarks."""

    out: Path
    """Folder for replies, samples and scores."""
    judge_at: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    judge_cache: Path | None = None
    """Folder of the judge's replies; OUT/judge by default."""
    max_new_tokens: int = LENGTH
    """Longest reply in tasks that set no length."""
    max_unreadable: float = 0.01
    """Share of the questions whose video may be unreadable; they get an empty reply."""
    limit: int | None = None
    """Ask only the first questions of each task."""
    task_files: Path | None = None
    """Folder of LMMs-Eval task files to read instead of the installed ones."""
    dtype: str | None = None
    """Compute dtype in place of the model's own."""
    prompts_per_batch: int = 16
    """Prompts answered at a time."""


@dataclass(frozen=True)
class Result:
    """Result of one benchmark."""

    score: float
    """0–100."""
    score_se: float | None
    """Its standard error, in the same unit; None where it is unknown."""
    parts: dict[str, float]
    """{"TASK METRIC": LMMs-Eval's own number}."""
    questions: int
    unreadable: int
    """Questions whose video could not be read, with an empty reply."""
    ungraded: int
    """Grades that the judge did not give."""

    def __str__(self) -> str:
        notes = [f"{self.questions} questions"]
        if self.unreadable:
            notes.append(f"{self.unreadable} about unreadable videos, with an empty reply")
        if self.ungraded:
            notes.append(f"{self.ungraded} replies without a grade, left out")
        return f"{self.score:6.2f}  ({', '.join(notes)})"


def with_average(results: Mapping[str, Result]) -> dict[str, tuple[float, float | None]]:
    """Return {name: (score, its standard error)}, with the mean as `avg` if all eight are there."""
    scores = {name: (result.score, result.score_se) for name, result in results.items()}
    if set(scores) == {task.name for task in TASKS}:
        scores["avg"] = mean_and_error(*zip(*scores.values(), strict=True))
    return scores


def check(options: Options) -> None:
    """Raise ConfigError for options that cannot work, and when LMMs-Eval is not installed."""
    if "://" in (home := os.environ.get("HF_HOME", "")):
        raise ConfigError(
            f"HF_HOME={home}: must be a folder of this machine; LMMs-Eval itself looks there for "
            "the benchmarks' questions and videos, and unpacks them"
        )
    if importlib.util.find_spec("lmms_eval") is None:
        raise ConfigError(
            "--tasks needs LMMs-Eval, which requires an older PyAV than vvlm: make a separate "
            "environment and there pip install 'vvlm_jax[lmms]'"
        )
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"--limit {options.limit}: must be at least 1")
    if options.task_files and not options.task_files.is_dir():
        raise ConfigError(f"--task-files {options.task_files}: no such folder")


def evaluate(
    model: Path, tasks: Iterable[Task], options: Options, say: Callable[[str], object] = print
) -> dict[str, Result]:
    """Ask a model, the folder of a finished stage, the benchmarks: {name: Result}.

    Args:
      say: takes remarks for the user, such as what the judge may cost.

    Finished benchmarks are read from `options.out`. Raises ConfigError when that holds results of
    another model or of other options, or the judge's key is missing; JudgeError when the judge
    fails; VideoError for too many unreadable videos.
    """
    tasks, out = list(tasks), options.out
    # LMMs-Eval reads these while it is imported.
    os.environ.setdefault("HF_HOME", str(Path("~/.cache/huggingface").expanduser()))
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")
    _claim(model, options)
    found = {task.name: _read(out / f"{task.name}.json") for task in tasks}
    if todo := [task for task in tasks if found[task.name] is None]:
        judge = None
        if any(task.judged for task in todo):
            judge = Judge(options.judge_at, options.judge_cache or out / "judge")
            judge.require_key()  # before hours of answering
        with JudgeServer(judge) as server:
            os.environ.update(server.environment(options.judge_at.model))
            from vvlm_jax.eval.lmms import VvlmJax

            lm = VvlmJax(
                model,
                batch_size=options.prompts_per_batch,
                dtype=options.dtype,
                max_new_tokens=options.max_new_tokens,
                max_unreadable=options.max_unreadable,
                replies=out / "replies.jsonl",
            )
            for task in todo:
                found[task.name] = _evaluate(task, lm, server, options, say)
    return found


def run_of(model: Path, run_id: str | None = None, num_examples: int | None = None) -> dict:
    """Return the columns of the runs table that describe a model and this evaluation.

    Args:
      run_id: name of the run; the folder's name by default.
      num_examples: examples the model was trained on, where its config.json does not say. If
        neither does, the column is None.
    """
    from vvlm_jax.eval import lmms
    from vvlm_jax.flops import llm_params
    from vvlm_jax.models.variants import LLAMA
    from vvlm_jax.train.model_dir import read_config

    config = read_config(model)
    llm = choose(LLAMA, config.model.llm, "model.llm")
    return dict(
        run_id=run_id or model.resolve().name,
        sweep="single",
        lm_params=llm_params(llm),
        num_frames=config.model.num_frames,
        tokens_per_frame=config.model.tokens_per_frame,
        num_examples=num_examples or config.data.num_examples,
        seed=config.seed,
        protocol=f"lmms-eval-{lmms.version()}",
    )


def _claim(model: Path, options: Options) -> None:
    """Raise ConfigError when the output folder belongs to another model or to other options."""
    from vvlm_jax.eval import lmms, runner

    params = model / "params"
    changed = params.stat().st_mtime_ns if params.exists() else 0  # VideoVLM.load raises the error
    runner.claim(
        options.out / "replies.jsonl",
        {
            "model": f"{model.resolve()} of {changed}",
            "lmms_eval": lmms.version(),
            "task_files": str(options.task_files),
            "limit": options.limit,
            "max_new_tokens": options.max_new_tokens,
            "judge": options.judge_at.model,
            **({"dtype": options.dtype} if options.dtype else {}),
        },
    )


def _evaluate(task: Task, lm, server: JudgeServer, options: Options, say) -> Result:
    """Ask one benchmark, and keep its result and samples in the output folder."""
    from vvlm_jax.eval import lmms

    out = options.out
    # Some tasks draw a random letter where a reply has none: in sequence the draws are the same
    # each time.
    workers = options.judge_at.concurrency if task.judged else 1

    def run():
        server.restart()
        folder = out / task.name
        return lmms.evaluate(
            lm, task.asked, task.tasks, folder, options.task_files, options.limit, workers
        )

    results, samples = run()
    if server.missing:
        say(f"{server.judge.plan(server.missing)}")
        server.judge.ask(server.missing, f"{task.name} judge")
        results, samples = run()  # replies and grades are now kept
    grades = {metric: GRADES[metric] for _, metric in task.parts if metric in GRADES}
    asked = {metric: server.asked[wanted] for metric, wanted in grades.items()}
    ungraded = {metric: server.ungraded[wanted] for metric, wanted in grades.items()}
    questions = {part: len(samples[part]) for part in task.tasks}
    result = Result(
        score=task.score(results, asked, ungraded),
        score_se=task.standard_error(results, questions, asked, ungraded),
        parts={f"{part} {metric}": results[part][f"{metric},none"] for part, metric in task.parts},
        questions=sum(questions.values()),
        unreadable=sum(part in task.tasks for part, _ in lm.unanswered),
        ungraded=sum(ungraded.values()),
    )
    for part in task.tasks:
        file = out / task.name / f"{part}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row, default=str) + "\n" for row in samples[part]))
    text = json.dumps(dataclasses.asdict(result), indent=1) + "\n"
    atomic.write_text(out / f"{task.name}.json", text)
    return result


def _read(file: Path) -> Result | None:
    # Files that were written before there were standard errors have none.
    return Result(**{"score_se": None, **json.loads(file.read_text())}) if file.is_file() else None
