"""The jobs of a sweep, and the functions that do them: training, evaluation, export.

Stage 1 of a language-model size comes before all its runs. Evaluations and exports are jobs of
their own, named by the step of the model, so that any worker can do what a preempted one left.
Milestones (`keep_every`) are evaluated too.
"""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vvlm_jax.config import TrainConfig
from vvlm_jax.override import from_dict
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import Evaluation, SweepConfig
from vvlm_jax.sweep.plan import encoder, stage_1_cost, step_flops
from vvlm_jax.sweep.store.store import Job, Store
from vvlm_jax.sweep.table import QUESTIONS
from vvlm_jax.sweep.worker import Context, Interrupted

CONFIG_OF_STORE = ("out_dir", "init")
"""Options of a training stage that depend on the store's address alone."""


def create(path: str | Path, config: SweepConfig, **options) -> Store:
    """Create the store of a sweep, or open it. Raises ConfigError as `Store.create`."""
    asked = (jobs_of(config), runs_of(config), shared_by(config))
    return Store.create(path, config.name, *asked, encoder=encoder(config), **options)


def shared_by(config: SweepConfig) -> dict:
    """Return what all jobs of a sweep need: its stages, weights and questions."""
    return dict(
        finetune=asdict(config.finetune),
        pretrain=config.pretrain and asdict(config.pretrain),
        init=config.init,
        evaluations={e.name: asdict(e) for e in config.evaluations},
    )


def runs_of(config: SweepConfig) -> list[dict]:
    """Return a row of the runs table for each run, without scores."""
    return [sweep_config.row(config, point) for point in config.points]


def jobs_of(config: SweepConfig) -> list[Job]:
    """Return stage 1 of each size, then each run's training, evaluations and exports."""
    jobs, before, flops = [], {}, {}
    for size in sweep_config.used_sizes(config):
        if config.pretrain is None:
            continue
        run = sweep_config.stage_1_run(size)
        before[size.lm_params] = run
        n = config.pretrain.data.num_examples
        steps = n and sweep_config.num_steps(config.pretrain, n)
        argument = dict(stage="pretrain", model={"llm": size.llm}, init=size.init, steps=steps)
        cost = stage_1_cost(config, size)
        jobs.append(Job(f"{run}/train", "train", argument, cost=cost))
    for point in config.points:
        size, stage_1 = config.size(point), before.get(point.lm_params)
        x = dict(llm=size.llm, num_frames=point.num_frames, tokens_per_frame=point.tokens_per_frame)
        stage = sweep_config.finetune_config(config, point)
        steps = sweep_config.num_steps(stage, point.num_examples)
        argument = dict(
            stage="finetune",
            model=x,
            num_examples=point.num_examples,
            init=size.init,
            projector=stage_1,
            steps=steps,
            **({} if point.seed is None else {"seed": point.seed}),
        )
        key = tuple(x.values())
        if key not in flops:
            flops[key] = step_flops(stage, config.text_tokens)
        cost, train = float(steps * flops[key]), f"{point.run_id}/train"
        after = (f"{stage_1}/train",) if stage_1 else ()
        jobs.append(Job(train, "train", argument, after, cost))
        for name in (e.name for e in config.evaluations):
            for step in (*sweep_config.milestones(stage, steps), steps):
                id = f"{point.run_id}/evaluate-s{step}-{name}"
                early = {"milestone": True} if step < steps else {}
                argument = {"evaluation": name, "step": step, **early}
                jobs.append(Job(id, "evaluate", argument, (train,), cost / 100))
        for kind in config.exports:
            id = f"{point.run_id}/export-s{steps}-{kind}"
            jobs.append(Job(id, "export", {"to": kind, "step": steps}, (train,), cost / 1000))
    return jobs


def missing_inputs(config: SweepConfig) -> list[str]:
    """Return a line for each file or folder that the jobs will read and that does not exist."""
    named = [(f"evaluations: {e.name}", e.questions) for e in config.evaluations]
    for name in ("finetune", "pretrain"):
        if (stage := getattr(config, name)) is not None:
            data = {key: getattr(stage.data, key) for key in ("annotations", "tokenizer")}
            named += [(f"{name}.data.{key}", file) for key, file in data.items()]
    named += [(f"init[{part}]", folder) for part, folder in config.init]
    for size in sweep_config.used_sizes(config):
        named += [(f"init[{part}] of {size.llm}", folder) for part, folder in size.init]
    from vvlm_jax.storage.files import exists, path_of  # data may be in a bucket

    # An .npz may be followed by the prefix of the parameters in it.
    files = {re.sub(r"(\.npz):.*", r"\1", file): name for name, file in reversed(named)}
    return [
        f"{file}: no such file or folder ({name})"
        for file, name in files.items()
        if not exists(path_of(file))
    ]


def train_config(context: Context) -> TrainConfig:
    """Return the config of a training job, with weights and folders of this store."""
    argument, shared = context.job.argument, context.store.shared
    base = from_dict(TrainConfig, shared[argument["stage"]])
    init = [*shared["init"], *argument["init"]]
    if projector := argument.get("projector"):
        init.append(("projector", str(context.folder_of(projector))))
    n = argument.get("num_examples", base.data.num_examples)
    return replace(
        base,
        model=replace(base.model, **argument["model"]),
        data=replace(base.data, num_examples=n),
        seed=argument.get("seed", base.seed),
        init=tuple((part, folder) for part, folder in init),
        out_dir=str(context.folder),
    )


def train(context: Context) -> dict:
    """Train a stage into the run's folder, from its newest checkpoint if there is one."""
    from vvlm_jax.train import loop

    try:
        summary = loop.train(
            train_config(context), should_stop=context.should_stop, allow=CONFIG_OF_STORE
        )
    except loop.Preempted as e:
        raise Interrupted from e
    return {name: summary[name] for name in ("steps", "loss", "unreadable")}


def evaluate(context: Context) -> dict:
    """Evaluate a finished run, or one of its milestones, on a question file."""
    from vvlm_jax.eval import runner
    from vvlm_jax.generate.video_vlm import VideoVLM
    from vvlm_jax.train import checkpoint, model_dir

    argument = context.job.argument
    step = argument["step"]

    def of_milestone(folder, like):
        return checkpoint.load_params(folder, step, like)

    read = of_milestone if argument.get("milestone") else model_dir.load_params
    asked = evaluation(context, argument["evaluation"])
    with context.stop.anywhere():
        questions = runner.read_questions(asked.questions)
        vlm = VideoVLM.load(context.folder, read=read)
        return answer(context, asked, questions, vlm, f"{context.job.run} at step {step}")


def evaluation(context: Context, name: str) -> Evaluation:
    """Return an evaluation of the sweep by its name."""
    return from_dict(Evaluation, context.store.shared["evaluations"][name])


def answer(context: Context, asked: Evaluation, questions: list[dict], vlm, identity: str) -> dict:
    """Answer questions and return the result of an evaluation job.

    Predictions are kept in the job's folder, and answered questions are not asked again.

    Args:
      vlm: the model, a `VideoVLM`.
      identity: names the model; predictions of another one are not taken over.
    """
    from vvlm_jax.eval import runner
    from vvlm_jax.eval.scores import main_scores

    predictions = context.folder / context.job.name / "predictions.jsonl"
    measured = runner.evaluate(
        vlm,
        questions,
        predictions,
        media_root=asked.media_root,
        identity=identity,
        max_new_tokens=asked.max_new_tokens,
        title=context.job.id,
    )
    scores = main_scores(measured)
    return {
        "protocol": QUESTIONS,
        "scores": {task: _number(s.score) for task, s in scores.items()},
        "stderr": {task: _number(s.score_se) for task, s in scores.items()},
        "num_questions": {task: s.num_questions for task, s in scores.items()},
        "unreadable": runner.unreadable_files(predictions),
    }


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None


def export(context: Context, command: Sequence[str]) -> dict:
    """Write a run's model, or a tower of it, as a Hugging Face folder in the run's folder.

    Args:
      command: the start of the command line that converts models, in a process of its own: jax
        must be on the CPU there, and cannot be moved in this process.
    """
    out = context.folder / context.job.name
    _, _, part = context.job.argument["to"].partition("-")
    shutil.rmtree(out, ignore_errors=True)  # a worker that died may have left a part of it
    with context.stop.anywhere():
        done = subprocess.run(
            [*command, str(context.folder), str(out), "--to", "hf"]
            + (["--part", part] if part else []),
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["the export failed"])[-1])
    return {"folder": out.name}


KINDS = {"train": train, "evaluate": evaluate}
"""The functions of a sweep's jobs, apart from `export`, which needs a command."""
