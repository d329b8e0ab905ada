"""Score a trained model: on a local question file, or on the paper's eight benchmarks.

Example:
    vvlm evaluate --model runs/finetune --questions data/val.jsonl --media-root data
    vvlm evaluate --model runs/finetune --questions data/val.jsonl --likelihood --judge
    vvlm evaluate --model runs/finetune --tasks paper --out eval --runs runs.csv

A question is a JSON line with id, task, video, question and answer (or references, several answers
that are right). Multiple choice has options too, and then the answer is a letter. A video is a file
or a folder of frames. With --judge a language model grades the replies to open questions.

--tasks runs LMMs-Eval, which must be installed, on its benchmarks (VDC AQA VCG LVB PT MV VMME NQA,
LMMs-Eval's own names for them, or `paper` for all). It reads questions and videos from HF_HOME, a
folder of this machine. Three of the eight are always judged. Every task gets a score of 0-100 and a
row in the table of runs.

Interrupted, the same command continues. The judge's key is read from the environment variable
OPENAI_API_KEY. The judge's replies are kept: asking again costs nothing.
"""

import dataclasses
import sys
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.eval.judge import JudgeConfig

from .arguments import read_options
from .common import check_positive, die_in_one_line


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm evaluate`."""

    model: Path
    """Folder of a finished training stage."""
    questions: str | None = None
    """JSONL file of questions; may be in a bucket, gs:// or s3://."""
    tasks: tuple[str, ...] = ()
    """Benchmarks, instead of a question file."""
    media_root: str | None = None
    """Folder that video paths are relative to; may be in a bucket, gs:// or s3://. The question
    file's folder by default.
    """
    out: Path | None = None
    """Folder for replies and scores; MODEL/eval-NAME by default, MODEL/eval-paper for tasks."""
    max_new_tokens: int | None = None
    """Longest reply; 16 by default, 1024 in benchmarks that set none."""
    max_unreadable: float = 0.01
    """Largest share of videos that may be unreadable. Their questions are counted and left out; in
    benchmarks they get an empty reply.
    """
    dtype: str | None = None
    """Compute dtype, such as float32, in place of the model's own."""
    prompts_per_batch: int = 16
    """Prompts answered at a time."""
    likelihood: bool = False
    """Also score multiple choice by the likeliest letter (question file)."""
    judge: bool = False
    """Have replies to open questions graded (question file)."""
    judge_cache: Path | None = None
    """Folder of the judge's replies; OUT/judge by default."""
    judge_at: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)
    """The judge."""
    runs: Path | None = None
    """Table of runs (CSV) to which a row is added for each benchmark; OUT/runs.csv by default."""
    run_id: str | None = None
    """The model's name in the table; the name of its folder by default."""
    num_examples: int | None = None
    """Examples the model was trained on, where its config.json does not say."""
    limit: int | None = None
    """Ask only the first questions of each benchmark, as a trial; adds no rows to the table."""
    task_files: Path | None = None
    """Folder of LMMs-Eval task files to read instead of the installed ones."""


def main(args: Args) -> None:
    """Print a line for each task and metric, and write replies and scores."""
    if not 0 <= args.max_unreadable <= 1:
        raise ConfigError(f"--max-unreadable {args.max_unreadable}: must be a share from 0 to 1")
    check_positive(args, "max_new_tokens", "prompts_per_batch", "limit")
    if bool(args.tasks) == bool(args.questions):
        raise ConfigError("give a question file (--questions FILE) or benchmarks (--tasks paper)")
    if args.tasks:
        for name in ("likelihood", "judge", "media_root"):
            if getattr(args, name):
                flag = f"--{name.replace('_', '-')}"
                why = "; LMMs-Eval finds videos itself" if name == "media_root" else ""
                raise ConfigError(f"{flag}: is for a question file, not for --tasks{why}")
        _evaluate_benchmarks(args)
    else:
        _evaluate_questions(args)


def _evaluate_benchmarks(args: Args) -> None:
    from fitting.runs import add_runs
    from vvlm_jax.eval import benchmarks

    tasks = benchmarks.select(args.tasks)
    options = benchmarks.Options(
        out=args.out or args.model / "eval-paper",
        judge_at=args.judge_at,
        judge_cache=args.judge_cache,
        max_new_tokens=args.max_new_tokens or benchmarks.LENGTH,
        max_unreadable=args.max_unreadable,
        limit=args.limit,
        task_files=args.task_files,
        dtype=args.dtype,
        prompts_per_batch=args.prompts_per_batch,
    )
    benchmarks.check(options)
    run = benchmarks.run_of(args.model, args.run_id, args.num_examples)
    if args.runs and run["num_examples"] is None:
        raise ConfigError(
            f"--runs {args.runs}: {args.model / 'config.json'} does not tell how many examples the "
            "model was trained on (data.num_examples takes all): give --num-examples"
        )
    found = benchmarks.evaluate(args.model, tasks, options, _note)
    for name, result in found.items():
        print(f"{name:6s} {result}")
    scores = benchmarks.with_average(found)
    if "avg" in scores:
        print(f"{'avg':6s} {scores['avg'][0]:6.2f}")
    if args.limit is not None:
        _note("no rows in the table of runs: --limit asked only some of the questions")
    elif run["num_examples"] is None:
        _note("no rows in the table of runs: --num-examples is missing")
    else:
        file = args.runs or options.out / "runs.csv"
        add_runs(
            file, [dict(**run, metric=m, score=s, score_se=se) for m, (s, se) in scores.items()]
        )
        print(f"{file}: {len(scores)} scores of {run['run_id']}")


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _evaluate_questions(args: Args) -> None:
    from vvlm_jax.eval import grading, runner, scores
    from vvlm_jax.eval.judge import Judge
    from vvlm_jax.storage import files
    from vvlm_jax.sweep.store.sweep_json import write_json

    file = files.path_of(args.questions)
    questions = runner.read_questions(file)
    media_root = files.path_of(args.media_root) if args.media_root else file.parent
    if not media_root.is_dir():
        raise ConfigError(f"--media-root {media_root}: no such folder")
    out = args.out or args.model / f"eval-{file.stem}"
    predictions_file, judge = out / "predictions.jsonl", None
    if args.judge and not all(q.get("options") for q in questions):
        judge = Judge(args.judge_at, args.judge_cache or out / "judge")
        if not grading.all_graded(questions, runner.earlier_predictions(predictions_file), judge):
            judge.require_key()  # before hours of answering
    measured = _answer(args, questions, str(media_root), out)
    for message in runner.unreadable_files(predictions_file):
        print(f"unreadable: {message}", file=sys.stderr)
    if judge:
        predictions = runner.read_predictions(predictions_file)
        print(judge.plan(grading.open_replies(questions, predictions)[1]), file=sys.stderr)
        verdicts = grading.grade(questions, predictions, judge, out / "verdicts.jsonl")
        if ungraded := sum(v is None for v in verdicts.values()):
            print(f"judge: {ungraded} replies without a grade, left out", file=sys.stderr)
        measured = scores.measure(questions, predictions, verdicts)
    measured = [*measured, scores.overall(measured)]
    print(*measured, sep="\n")
    write_json(out / "scores.json", scores.as_json(measured))


def _answer(args: Args, questions, media_root: str, out: Path):
    """Return the scores by rule, without a judge; fill predictions.jsonl."""
    from vvlm_jax import VideoVLM
    from vvlm_jax.eval import runner

    vlm = VideoVLM.load(args.model, dtype=args.dtype)
    in_dtype = f" in {args.dtype}" if args.dtype else ""
    return runner.evaluate(
        vlm,
        questions,
        out / "predictions.jsonl",
        media_root=media_root,
        max_unreadable=args.max_unreadable,
        identity=f"{args.model} of {(args.model / 'params').stat().st_mtime_ns}{in_dtype}",
        max_new_tokens=16 if args.max_new_tokens is None else args.max_new_tokens,
        likelihood=args.likelihood,
        prompts_per_batch=args.prompts_per_batch,
    )


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
