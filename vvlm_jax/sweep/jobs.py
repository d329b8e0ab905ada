"""A sweep's config → the jobs of its store, and the functions that do them: training, evaluation.

Stage 1 of each language-model size comes before all runs of it; evaluations and exports come after
a run's training, are keyed by the step of its model, and are jobs of their own: what was missed by
a preemption is done later by whoever comes. Milestones (`keep_every`) are evaluated, too.
"""

import math
import re
from dataclasses import asdict, replace
from pathlib import Path

from vvlm_jax.config import TrainConfig
from vvlm_jax.override import from_dict
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import Evaluation, SweepConfig
from vvlm_jax.sweep.plan import encoder, stage_1_cost, step_flops
from vvlm_jax.sweep.status import QUESTIONS
from vvlm_jax.sweep.store.store import Job, Store
from vvlm_jax.sweep.worker import Context, Interrupted

CONFIG_OF_STORE = ("out_dir", "init")
"""Options that change when a store is moved, and nothing else does."""


def create(path: str | Path, config: SweepConfig, **options) -> Store:
    """The store of a sweep. ConfigError when the folder holds another one."""
    asked = (jobs_of(config), runs_of(config), shared_by(config))
    return Store.create(path, config.name, *asked, encoder=encoder(config), **options)


def shared_by(config: SweepConfig) -> dict:
    """What all jobs of a sweep need: its stages, weights and questions."""
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
    """Stage 1 once a size, then of each run its training, evaluations and exports."""
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


def not_there(config: SweepConfig) -> list[str]:
    """Files and folders that the jobs will read and that are not there, with what names them."""
    named = [(f"evaluations: {e.name}", e.questions) for e in config.evaluations]
    for name in ("finetune", "pretrain"):
        if (stage := getattr(config, name)) is not None:
            data = {key: getattr(stage.data, key) for key in ("annotations", "tokenizer")}
            named += [(f"{name}.data.{key}", file) for key, file in data.items()]
    named += [(f"init: {part}", folder) for part, folder in config.init]
    for size in sweep_config.used_sizes(config):
        named += [(f"sizes: {size.llm}: {part}", folder) for part, folder in size.init]
    from vvlm_jax.storage.files import exists, path_of

    # An .npz may be followed by where in it the parameters are.
    files = {re.sub(r"(\.npz):.*", r"\1", file): name for name, file in reversed(named)}
    return [
        f"{file}: not there ({name})" for file, name in files.items() if not exists(path_of(file))
    ]


def train_config(context: Context) -> TrainConfig:
    """The stage of a training job, in its run's folder."""
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
    """Trains a stage, from its newest checkpoint; its model is the run's folder."""
    from vvlm_jax.train import loop

    try:
        summary = loop.train(
            train_config(context), should_stop=context.should_stop, allow=CONFIG_OF_STORE
        )
    except loop.Preempted as e:
        raise Interrupted from e
    return {name: summary[name] for name in ("steps", "loss", "unreadable")}


def evaluate(context: Context) -> dict:
    """Answers a question file with a finished run, or with one of its milestones."""
    from vvlm_jax.eval import runner
    from vvlm_jax.train import checkpoint, model_dir

    argument = context.job.argument
    step = argument["step"]

    def of_milestone(folder, like):
        return checkpoint.load_params(folder, step, like)

    read = of_milestone if argument.get("milestone") else model_dir.load_params
    asked = evaluation(context, argument["evaluation"])
    with context.stop.anywhere():
        questions = runner.read_questions(asked.questions)
        model = model_dir.load_model(context.folder, read=read)
        return answer(context, asked, questions, model, f"{context.job.run} at step {step}")


def evaluation(context: Context, name: str) -> Evaluation:
    """One of the sweep's."""
    return from_dict(Evaluation, context.store.shared["evaluations"][name])


def answer(
    context: Context, asked: Evaluation, questions: list[dict], model: tuple, identity: str
) -> dict:
    """Answers questions by a model, (model, params, tokenizer, TrainConfig), whose name is
    `identity`: the result of a job. What is answered already is not asked again.
    """
    from vvlm_jax.eval import runner
    from vvlm_jax.eval.scores import main_scores

    model, params, tok, config = model
    predictions = context.folder / context.job.name / "predictions.jsonl"
    measured = runner.evaluate(
        model,
        params,
        tok,
        questions,
        predictions,
        config.model,
        replace(config.data, media_root=asked.media_root),
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


KINDS = {"train": train, "evaluate": evaluate}
"""What the jobs of a sweep are, but for exports."""
