"""`tools.evaluate --tasks`: the paper's benchmarks, through LMMs-Eval."""

import importlib.util
import json
import os
import sys
from pathlib import Path

from vvlm_jax.config import ConfigError, LlamaConfig
from vvlm_jax.config_check import choose
from vvlm_jax.eval import benchmarks
from vvlm_jax.eval.judge import Judge
from vvlm_jax.eval.judge_server import GRADES, Relay
from vvlm_jax.sweep.store.sweep_json import write_json

LENGTH = 1024
"""Longest reply, in tokens, where a task sets none."""


def evaluate(args) -> None:
    """Prints a line a task, and writes for each its score and its samples; the row of each score
    goes into the table of runs. A task that was finished before is not evaluated again.

    Raises ConfigError for options that cannot work, and where LMMs-Eval is not installed.
    """
    tasks = benchmarks.choose(args.tasks)
    _check(args)
    _set(HF_HOME=str(Path("~/.cache/huggingface").expanduser()), LOGURU_LEVEL="WARNING")
    out = args.out or args.model / "eval-paper"
    row = _row(args)
    _claim(args, out)
    found = {task.name: _read(out / f"{task.name}.json") for task in tasks}
    if todo := [task for task in tasks if found[task.name] is None]:
        judge = None
        if any(task.judged for task in todo):
            judge = Judge(args.judge_at, args.judge_cache or out / "judge")
            judge.require_key()  # before hours of answering
        with Relay(judge) as relay:
            os.environ.update(relay.environment(args.judge_at.model))
            lm = _model(args, out)
            for task in todo:
                found[task.name] = _evaluate(task, lm, relay, judge, args, out)
    for task in tasks:
        _tell(task.name, found[task.name])
    scores = benchmarks.average({task.name: found[task.name]["score"] for task in tasks})
    if "avg" in scores:
        print(f"{'avg':6s} {scores['avg']:6.2f}")
    _add_rows(args, out, row, scores)


def _check(args) -> None:
    if "://" in (home := os.environ.get("HF_HOME", "")):
        raise ConfigError(
            f"HF_HOME={home}: must be a folder of this machine; LMMs-Eval itself looks there for "
            "the benchmarks' questions and videos, and unpacks them"
        )
    if importlib.util.find_spec("lmms_eval") is None:
        raise ConfigError(
            "--tasks needs LMMs-Eval, which wants an older PyAV than the rest: make an environment "
            'of its own and there pip install -e ".[lmms]"'
        )
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: must be at least 1")
    if args.task_files and not args.task_files.is_dir():
        raise ConfigError(f"--task-files {args.task_files}: no such folder")


def _row(args) -> dict:
    """What the table of runs says of the model. ConfigError when its n is not known."""
    from vvlm_jax.eval import lmms
    from vvlm_jax.flops import llm_params
    from vvlm_jax.models.variants import LLAMA
    from vvlm_jax.train.model_dir import read_config

    config = read_config(args.model)
    n = args.num_examples or config.data.num_examples
    if args.runs and n is None:
        raise ConfigError(
            f"--runs {args.runs}: {args.model / 'config.json'} does not tell how many examples the "
            "model was trained on (data.num_examples takes all): say so with --num-examples"
        )
    llm: LlamaConfig = choose(LLAMA, config.model.llm, "model.llm")
    return dict(
        run_id=args.run_id or args.model.resolve().name,
        sweep="single",
        lm_params=llm_params(llm),
        num_frames=config.model.num_frames,
        tokens_per_frame=config.model.tokens_per_frame,
        num_examples=n,
        seed=config.seed,
        protocol=f"lmms-eval-{lmms.version()}",
    )


def _claim(args, out: Path) -> None:
    """Raises ConfigError when `out` is of another model, or of other options."""
    from vvlm_jax.eval import lmms, runner

    params = args.model / "params"
    changed = params.stat().st_mtime_ns if params.exists() else 0  # which loading will complain of
    runner.claim(
        out / "replies.jsonl",
        {
            "model": f"{args.model.resolve()} of {changed}",
            "lmms_eval": lmms.version(),
            "task_files": str(args.task_files),
            "limit": args.limit,
            "max_new_tokens": args.max_new_tokens or LENGTH,
            **({"dtype": args.dtype} if args.dtype else {}),
            "judge": args.judge_at.model,
        },
    )


def _set(**variables: str) -> None:
    """What LMMs-Eval reads as it is imported, unless people have set it."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _model(args, out: Path):
    from vvlm_jax.eval.lmms import VvlmJax

    return VvlmJax(
        args.model,
        batch_size=args.prompts_per_batch,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens or LENGTH,
        max_unreadable=args.max_unreadable,
        replies=out / "replies.jsonl",
    )


def _evaluate(
    task: benchmarks.Task, lm, relay: Relay, judge: Judge | None, args, out: Path
) -> dict:
    """{score, parts, questions, unreadable, ungraded}; kept in out, beside the samples."""
    from vvlm_jax.eval import lmms

    # Some tasks draw a letter where they find none: one after the other they draw the same again.
    workers = args.judge_at.concurrency if task.judged else 1

    def run():
        relay.restart()
        return lmms.evaluate(
            lm, task.asked, task.tasks, out / task.name, args.task_files, args.limit, workers
        )

    results, samples = run()
    if relay.missing:
        print(judge.plan(relay.missing), file=sys.stderr)
        judge.ask(relay.missing, f"{task.name} judge")
        results, samples = run()  # replies and grades are there
    grades = {metric: GRADES[metric] for _, metric in task.parts if metric in GRADES}
    asked = {metric: relay.asked[wanted] for metric, wanted in grades.items()}
    ungraded = {metric: relay.ungraded[wanted] for metric, wanted in grades.items()}
    found = dict(
        score=task.score(results, asked, ungraded),
        parts={f"{part} {metric}": results[part][f"{metric},none"] for part, metric in task.parts},
        questions=sum(len(samples[part]) for part in task.tasks),
        unreadable=sum(part in task.tasks for part, _ in lm.unanswered),
        ungraded=sum(ungraded.values()),
    )
    for part in task.tasks:
        _write_lines(out / task.name / f"{part}.jsonl", samples[part])
    write_json(out / f"{task.name}.json", found)
    return found


def _tell(name: str, found: dict) -> None:
    left = [f"{found['questions']} questions"]
    if found["unreadable"]:
        left.append(f"{found['unreadable']} about unreadable videos, with an empty reply")
    if found["ungraded"]:
        left.append(f"{found['ungraded']} grades that the judge did not give, left out")
    print(f"{name:6s} {found['score']:6.2f}  ({', '.join(left)})")


def _add_rows(args, out: Path, row: dict, scores: dict[str, float]) -> None:
    """Write one row a metric; those of the same run, protocol and metric are replaced."""
    from fitting.runs import read_runs, write_runs

    if args.limit is not None:
        return print("no rows in the table of runs: of --limit questions", file=sys.stderr)
    if row["num_examples"] is None:
        return print(
            "no rows in the table of runs: say on how many examples the model was trained "
            "(--num-examples)",
            file=sys.stderr,
        )
    file = args.runs or out / "runs.csv"
    rows = read_runs(file).rows() if file.exists() else []
    mine = {(row["run_id"], row["protocol"], metric) for metric in scores}
    rows = [r for r in rows if (r["run_id"], r["protocol"], r["metric"]) not in mine]
    rows += [{**row, "metric": metric, "score": score} for metric, score in scores.items()]
    write_runs(file, rows)
    print(f"{file}: {len(scores)} scores of {row['run_id']}")


def _read(file: Path) -> dict | None:
    return json.loads(file.read_text()) if file.is_file() else None


def _write_lines(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, default=str) + "\n" for row in rows]
    file.write_text("".join(lines))
