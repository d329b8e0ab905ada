"""Score a trained model: on a local question file, or on the paper's eight benchmarks.

Example:
    python -m tools.evaluate --model runs/finetune --questions data/val.jsonl --media-root data
    python -m tools.evaluate --model runs/finetune --questions data/val.jsonl --likelihood --judge
    python -m tools.evaluate --model runs/finetune --tasks paper --out eval --runs runs.csv

A question is a JSON line with id, task, video, question and answer (or references, several answers
that are right). Multiple choice has options too, and then the answer is a letter. A video is a file
or a folder of frames. With --judge a language model grades the replies to open questions.

--tasks runs LMMs-Eval (VDC AQA VCG LVB PT MV VMME NQA, its own names for them, or `paper` for all),
which has to be installed; it reads questions and videos where HF_HOME says, a folder of this
machine. Three of the eight are always judged. For every task there is a score of 0-100, and a row
in the table of runs.

Interrupted, the same command continues. The judge's key is read from the environment variable
OPENAI_API_KEY. What the judge has said is kept: asked again, it costs nothing.
"""

import dataclasses
import math
import sys
from pathlib import Path

import tyro

from vvlm_jax.config import ConfigError
from vvlm_jax.eval.judge import JudgeConfig

from .common import die_in_one_line


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.evaluate`."""

    model: Path
    """Folder of a finished training stage."""
    questions: str | None = None
    """JSONL file of questions, also one in a bucket, gs:// or s3://."""
    tasks: tuple[str, ...] = ()
    """Benchmarks, instead of a question file."""
    media_root: str | None = None
    """Folder that video paths are relative to, also one in a bucket, gs:// or s3://; the question
    file's folder by default."""
    out: Path | None = None
    """Folder for replies and scores; MODEL/eval-NAME by default, MODEL/eval-paper for tasks."""
    max_new_tokens: int | None = None
    """Longest reply; 16 by default, 1024 in benchmarks that set none."""
    max_unreadable: float = 0.01
    """Share of videos that may be unreadable before it stops. They are counted, and left out; in
    benchmarks their questions have an empty reply.
    """
    likelihood: bool = False
    """Score multiple choice by the likeliest letter, too (question file)."""
    judge: bool = False
    """Have replies to open questions graded (question file)."""
    judge_cache: Path | None = None
    """Folder of what the judge has said; OUT/judge by default."""
    judge_at: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    """Which judge."""
    runs: Path | None = None
    """Table of runs (CSV) that gets a row a benchmark; OUT/runs.csv by default."""
    run_id: str | None = None
    """The model's name there; the name of its folder by default."""
    num_examples: int | None = None
    """How many examples the model was trained on, where its config.json does not tell."""
    limit: int | None = None
    """First questions of each benchmark, for a try."""
    task_files: Path | None = None
    """Folder of LMMs-Eval task files to read instead of the installed ones."""


def main(args: Args) -> None:
    """Prints a line a task and metric, and writes replies and scores."""
    if not 0 <= args.max_unreadable <= 1:
        raise ConfigError(f"--max-unreadable {args.max_unreadable}: must be a share from 0 to 1")
    if bool(args.tasks) == bool(args.questions):
        raise ConfigError("give a question file (--questions FILE) or benchmarks (--tasks paper)")
    if args.tasks:
        for name in ("likelihood", "judge", "media_root"):
            if getattr(args, name):
                flag = f"--{name.replace('_', '-')}"
                why = "; LMMs-Eval finds videos by itself" if name == "media_root" else ""
                raise ConfigError(f"{flag}: is for a question file, not for --tasks{why}")
        from . import _evaluate_paper

        _evaluate_paper.evaluate(args)
    else:
        _evaluate_questions(args)


def _evaluate_questions(args: Args) -> None:
    from vvlm_jax.eval import grading, runner, scores
    from vvlm_jax.eval.judge import Judge
    from vvlm_jax.storage import files

    file = files.path_of(args.questions)
    questions = runner.read_questions(file)
    media_root = files.path_of(args.media_root) if args.media_root else file.parent
    if not media_root.is_dir():
        raise ConfigError(f"--media-root {media_root}: no such folder")
    out = args.out or args.model / f"eval-{file.stem}"
    judge = None
    if args.judge and not all(q.get("options") for q in questions):
        judge = Judge(args.judge_at, args.judge_cache or out / "judge")
        if not _all_graded(questions, out / "predictions.jsonl", judge):
            judge.require_key()  # before hours of answering
    measured = _answer(args, questions, str(media_root), out)
    for message in runner.unreadable_files(out / "predictions.jsonl"):
        print(f"unreadable: {message}", file=sys.stderr)
    if judge:
        predictions = runner.read_predictions(out / "predictions.jsonl")
        print(judge.plan(grading.open_replies(questions, predictions)[1]), file=sys.stderr)
        verdicts = grading.grade(questions, predictions, judge, out / "verdicts.jsonl")
        if ungraded := sum(v is None for v in verdicts.values()):
            print(f"judge: {ungraded} replies without a grade, left out", file=sys.stderr)
        measured = scores.measure(questions, predictions, verdicts)
    _report([*measured, scores.overall(measured)], out)


def _all_graded(questions, predictions_file: Path, judge) -> bool:
    """Whether an earlier run has answered everything and the judge has graded it."""
    from vvlm_jax.eval import grading, runner

    if not predictions_file.is_file():
        return False
    try:
        predictions = runner.read_predictions(predictions_file)
    except ValueError:  # its last line is half written
        return False
    plan = judge.plan(grading.open_replies(questions, predictions)[1])
    return plan.kept == plan.asked and all(q["id"] in predictions for q in questions)


def _answer(args: Args, questions, media_root: str, out: Path):
    """Return the scores by rule, without a judge; fill predictions.jsonl."""
    from vvlm_jax.eval import runner
    from vvlm_jax.train.model_dir import load_model

    model, params, tok, config = load_model(args.model)
    data = dataclasses.replace(
        config.data,
        media_root=media_root,
        max_unreadable=args.max_unreadable,
    )
    return runner.evaluate(
        model,
        params,
        tok,
        questions,
        out / "predictions.jsonl",
        config.model,
        data,
        identity=f"{args.model} of {(args.model / 'params').stat().st_mtime_ns}",
        max_new_tokens=16 if args.max_new_tokens is None else args.max_new_tokens,
        likelihood=args.likelihood,
    )


def _report(measured, out: Path) -> None:
    """Print a line a metric and write scores.json: {task: {metric: its numbers}}."""
    from vvlm_jax.sweep.store.sweep_json import write_json

    values: dict[str, dict] = {}
    for s in measured:
        left_out = f", {s.left_out} left out" if s.left_out else ""
        print(
            f"{s.task:12s} {s.metric:12s} {s.score:6.2f}  95% {s.low:6.2f} to {s.high:6.2f}  "
            f"({s.num_questions} questions{left_out})"
        )
        row = dataclasses.asdict(s)
        del row["task"], row["metric"]
        numbers = {k: None if math.isnan(v) else v for k, v in row.items()}  # JSON has no NaN
        values.setdefault(s.task, {})[s.metric] = numbers
    write_json(out / "scores.json", values)


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))


if __name__ == "__main__":
    cli()
