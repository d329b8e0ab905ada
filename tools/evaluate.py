"""Answer and score a local question file with a trained model.

Example:
    python -m tools.evaluate --model runs/finetune --questions data/val.jsonl --media-root data

A question is a JSON line with id, task, video, question and answer. Multiple choice has options
too, and then the answer is a letter. Interrupted, the same command continues.
"""

import dataclasses
import sys
from pathlib import Path

import tyro

from tools._shared import die_in_one_line


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.evaluate`."""

    model: Path
    """Folder of a finished training stage."""
    questions: Path
    """JSONL file of questions."""
    media_root: Path | None = None
    """Folder that video paths are relative to; the question file's folder by default."""
    out: Path | None = None
    """Folder for predictions.jsonl and scores.json; MODEL/eval-NAME by default."""
    max_new_tokens: int = 16
    """Longest reply."""
    max_unreadable: float = 0.01
    """Share of videos that may be unreadable (counted, left out) before it stops."""


def main(args: Args) -> None:
    """Prints a line a task and writes predictions and scores."""
    from vvlm_jax.eval import runner
    from vvlm_jax.sweep.document import write_json
    from vvlm_jax.train.model_dir import load_model

    questions = runner.read_questions(args.questions)
    model, params, tok, config = load_model(args.model)
    data = dataclasses.replace(
        config.data,
        media_root=str(args.media_root or args.questions.parent),
        max_unreadable=args.max_unreadable,
    )
    out = args.out or args.model / f"eval-{args.questions.stem}"
    scores = runner.evaluate(
        model,
        params,
        tok,
        questions,
        out / "predictions.jsonl",
        config.model,
        data,
        identity=f"{args.model} of {(args.model / 'params').stat().st_mtime_ns}",
        max_new_tokens=args.max_new_tokens,
    )
    for message in runner.unreadable_files(out / "predictions.jsonl"):
        print(f"unreadable: {message}", file=sys.stderr)
    for task, s in scores.items():
        left_out = f", {s.unreadable} unreadable left out" if s.unreadable else ""
        print(
            f"{task:12s} {s.score:6.2f} ± {s.stderr:.2f}  ({s.num_questions} questions{left_out})"
        )
    print(f"{'avg':12s} {runner.average(scores):6.2f}")
    values = {task: dataclasses.asdict(s) for task, s in scores.items()}
    write_json(out / "scores.json", values)


if __name__ == "__main__":
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))
