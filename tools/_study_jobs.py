"""A study as a sweep: its runs, and the jobs that come before and beside them. Imports no jax.

What comes before is in runs of their own: `data` has four jobs, `lm-LLM` a language model each,
`vision` the encoder. Controls are jobs of the run at the star's centre.
"""

import dataclasses
import json
import math
from pathlib import Path

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import choose, tokens_side
from vvlm_jax.eval.scores import average
from vvlm_jax.flops import llm_params
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.override import from_dict
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep import jobs as sweep_jobs
from vvlm_jax.sweep import plan
from vvlm_jax.sweep.config import Evaluation, LmSize, SweepConfig, SweepPoint
from vvlm_jax.sweep.store.store import Job, State, Store
from vvlm_jax.sweep.worker import Context

from .common import shipped

stages = shipped("study")
"""Training stages of the study; `StudyConfig` is defined there, too."""
StudyConfig = stages.StudyConfig

UNTRAINED = 3
"""One random projector may by chance turn what is seen into a preference for wrong answers; the
mean of several does not."""
_TEXT = 200
"""Text tokens of a training conversation; they cost about as much as visual ones."""


def sweep(study: StudyConfig, folder: str) -> SweepConfig:
    """The star and the isoFLOP sweep of the study, by the general generators.

    Args:
      folder: of the study's data, and of its store.
    """
    from fitting import sweeps

    llms = _llms(study)
    levels = sweeps.Domain(tuple(llms), study.num_frames_levels, study.tokens_levels)
    center = max(llms), max(study.num_frames_levels), max(study.tokens_levels)
    points = [
        *sweeps.star_sweep(center, levels, study.num_examples),
        *sweeps.isoflop_sweep(
            study_domain(study),
            study.budgets,
            study.isoflop_examples,
            study_cost(study),
            tolerance=study.tolerance,
            max_per_curve=study.max_per_curve,
        ),
    ]
    vision = ("vision", f"{folder}/runs/vision")
    return SweepConfig(
        name="study",
        points=tuple(points),
        sizes=tuple(
            LmSize(size, llm, (vision, ("llm", f"{folder}/runs/{_lm(llm)}")))
            for size, llm in llms.items()
        ),
        finetune=stages.finetune_stage(study, folder),
        pretrain=stages.projector_stage(study, study.llms[-1], folder),
        evaluations=(Evaluation("val", f"{folder}/val.jsonl", folder, max_new_tokens=4),),
        data_size=study.train_videos,
        text_tokens=_TEXT,
    )


def _llms(study: StudyConfig) -> dict[int, str]:
    """{x_N: language model}."""
    return {llm_params(choose(LLAMA, llm, "llms")): llm for llm in study.llms}


def _lm(llm: str) -> str:
    return f"lm-{llm}"


def star_center(points):
    """The star's largest run: its centre at the largest n."""
    star = [p for p in points if p.sweep == "star"]
    return max(star, key=lambda p: (p.lm_params, p.num_frames, p.tokens_per_frame, p.num_examples))


def check(study: StudyConfig) -> None:
    """Raises ConfigError, before anything is written, for a study that cannot be run."""
    from vvlm_jax.data.synthetic import SIDE, TASKS

    def require(name: str, ok: bool, allowed: str):
        if not ok:
            value = json.dumps(getattr(study, name))
            raise ConfigError(f"{name} = {value}: must be {allowed}")

    def levels(name: str, least: float, most: float, count: int = 1):
        values = getattr(study, name)
        good = len(set(values)) == len(values) >= count and all(least <= v <= most for v in values)
        span = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        require(name, good, f"{count} or more different values {span}")

    vision = choose(VISION, study.vision, "vision")
    for llm in study.llms:
        choose(LLAMA, llm, "llms")
    prepared = stages.lm_stage(study, study.llms[0], "").batch_size if study.llms else 1
    require("seed", study.seed >= 0, "0 or above")
    require("num_frames", study.num_frames >= 1, "at least 1")
    require(
        "image_size", study.image_size == vision.image_size, f"{vision.image_size}, the encoder's"
    )
    require("image_size", study.image_size % SIDE == 0, f"a multiple of {SIDE}")
    levels("flash_lengths", 1, study.num_frames)
    require("batch_size", study.batch_size >= 2 and study.batch_size % 2 == 0, "even, at least 2")
    levels("num_examples", study.batch_size, study.train_videos, count=3)
    n = study.isoflop_examples
    require(
        "isoflop_examples",
        study.batch_size <= n <= study.train_videos and n not in study.num_examples,
        f"from batch_size = {study.batch_size} to train_videos = {study.train_videos}, and none of "
        "num_examples",
    )
    require("val_videos", study.val_videos >= 1, "at least 1")
    for name in ("captions", "stories"):
        require(name, getattr(study, name) >= prepared, f"at least {prepared}, one batch")
    tasks = [task for task, _ in study.turns]
    require(
        "turns",
        set(tasks) <= set(TASKS) and tasks and all(count >= 1 for _, count in study.turns),
        f"pairs of a task ({', '.join(TASKS)}) and how often it is asked",
    )
    require("llms", len(set(study.llms)) == len(study.llms) >= 3, "3 or more different models")
    for name in ("num_frames_levels", "domain_frames"):
        levels(name, 1, math.inf)
    for name in ("tokens_levels", "domain_tokens"):
        levels(name, 1, vision.out_grid**2)
        for tokens in getattr(study, name):
            tokens_side(tokens, vision.out_grid, name)
    levels("budgets", 1, math.inf, count=2)
    require("tolerance", 0 < study.tolerance < 1, "between 0 and 1")
    for name in ("max_per_curve", "resamples", "starts"):
        require(name, getattr(study, name) >= 1, "at least 1")
    require("rate", study.rate > 0, "above 0")
    sweep_config.check(sweep(study, ""), study.train_videos)


def study_cost(study: StudyConfig):
    """Equation 1 with the study's own encoder: x_M its parameters, x_W its features a frame."""
    from fitting.cost import CostConstants
    from vvlm_jax.flops import vision_params

    vision = choose(VISION, study.vision, "vision")
    return CostConstants(vision_params(vision), vision.num_patches)


def study_domain(study: StudyConfig):
    """What may be deployed: the three language models, every x_T and every x_V on offer."""
    from fitting.sweeps import Domain

    return Domain(
        tuple(llm_params(LLAMA[llm]) for llm in study.llms),
        study.domain_frames,
        study.domain_tokens,
    )


# --- the jobs ---


def create(study: StudyConfig, work: Path) -> Store:
    """The study's store, in the folder that its hash names; jobs of another study with the same
    hash are left out, what they gave stays.
    """
    config = sweep(study, str(work))
    points = {p.run_id: p for p in config.points}
    prepared = {_lm(llm): stages.lm_stage(study, llm, str(work)) for llm in study.llms}
    prepared["vision"] = stages.vision_stage(study, str(work))
    shared = sweep_jobs.shared_by(config) | {"study": dataclasses.asdict(study)}
    shared |= {name: dataclasses.asdict(stage) for name, stage in prepared.items()}
    jobs = [
        *_data_jobs(study),
        *(_prepare(study, str(work), name, stage) for name, stage in prepared.items()),
        *(_complete(study, job, points.get(job.run)) for job in sweep_jobs.jobs_of(config)),
        *_controls(study, star_center(config.points)),
    ]
    runs, about = sweep_jobs.runs_of(config), plan.encoder(config)
    return Store.renew(work, config.name, jobs, runs, shared, encoder=about)


def _data_jobs(study: StudyConfig) -> list[Job]:
    """Four files of annotations with their clips and pictures."""
    counts = {
        "train": study.train_videos * 4,
        "val": study.val_videos * 4,
        "captions": study.captions,
        "stories": study.stories,
    }
    return [Job(f"data/{kind}", "data", {"kind": kind}, cost=3e6 * n) for kind, n in counts.items()]


def _prepare(study: StudyConfig, folder: str, name: str, stage: TrainConfig) -> Job:
    """A language model, or the encoder, which one of them helps to learn."""
    # After all data, which are quick, and so a phase that has an end of its own.
    init, after, tokens = (), tuple(job.id for job in _data_jobs(study)), 100
    if name == "vision":
        lm, tokens = _lm(stages.caption_llm(study)), 32
        init, after = (("llm", f"{folder}/runs/{lm}"),), (f"{lm}/train", "data/captions")
    n = stage.data.num_examples
    argument = dict(stage=name, model={}, init=init, steps=sweep_config.num_steps(stage, n))
    cost = _cost(stage.model.llm, n * stage.epochs, tokens)
    return Job(f"{name}/train", "train", argument, after, cost)


def _complete(study: StudyConfig, job: Job, point: SweepPoint | None) -> Job:
    """A job of the sweep with all that it reads before it, and with a cost that is right for small
    models, of which a token takes longer than its FLOPs say.
    """
    if point is None:  # stage 1
        llm = job.argument["model"]["llm"]
        examples = study.captions * stages.projector_stage(study, llm, "").epochs
        before = ("vision/train", f"{_lm(llm)}/train", "data/captions")
        return dataclasses.replace(job, after=before, cost=_cost(llm, examples, 32, passes=2))
    if job.kind == "evaluate":
        after = (*job.after, "data/val")
        return dataclasses.replace(job, after=after, cost=_asking(study, point))
    llm, tokens = job.argument["model"]["llm"], point.num_frames * point.tokens_per_frame + _TEXT
    before = (*job.after, "vision/train", f"{_lm(llm)}/train", "data/train")
    return dataclasses.replace(job, after=before, cost=_cost(llm, point.num_examples, tokens))


def _controls(study: StudyConfig, center: SweepPoint) -> list[Job]:
    """Evaluations of what the largest run starts from, and of itself asked about other clips."""
    cost, run = _asking(study, center), center.run_id
    prepared = ("vision/train", f"{_lm(_llms(study)[center.lm_params])}/train", "data/val")
    return [
        *(
            Job(f"{run}/untrained-{i}", "untrained", {"seed": i}, prepared, cost)
            for i in range(UNTRAINED)
        ),
        Job(f"{run}/other-clip", "other-clip", {}, (f"{run}/train", "data/val"), cost),
    ]


def _asking(study: StudyConfig, point: SweepPoint) -> float:
    """The cost of an evaluation."""
    tokens = point.num_frames * point.tokens_per_frame + 50
    return _cost(_llms(study)[point.lm_params], study.val_videos, tokens)


def _cost(llm: str, examples: int, tokens: int, passes: int = 3) -> float:
    """Relative: some parts of a step cost the same for every size of language model."""
    return passes * examples * tokens * (llm_params(LLAMA[llm]) + 3e4)


PHASES = {
    "videos, pictures and stories": lambda job: job.kind == "data",
    "pretrained encoder and language models": lambda job: (
        job.kind == "train" and job.argument["stage"] != "finetune"
    ),
    "sweep and evaluation": lambda job: job.kind != "data",
}
"""Which jobs belong to a phase, of those that no phase before it has."""


def phase(store: Store, states: dict[str, State]) -> str | None:
    """The first phase that has something to do; None when nothing is left."""
    left = [job for id, job in store.jobs.items() if not states[id].is_final]
    return next((name for name, has in PHASES.items() if any(map(has, left))), None)


# --- what they do ---


def write_data(context: Context) -> dict:
    """Writes one kind of data, unless it is there: its annotation file comes last."""
    from vvlm_jax.data import synthetic

    study = from_dict(StudyConfig, context.store.shared["study"])
    folder, kind = context.store.path, context.job.argument["kind"]
    file = folder / {"train": "train.json", "val": "val.jsonl"}.get(kind, f"{kind}.json")
    with context.stop.anywhere():
        if file.exists():
            return {"file": file.name}
        synthetic.write_tokenizer(folder)
        if kind == "stories":
            synthetic.write_stories(folder, study.stories, study.turns, study.seed)
        elif kind == "captions":
            synthetic.write_captions(folder, study.captions, study.image_size, study.seed)
        else:
            synthetic.write_videos(
                folder,
                kind,
                study.train_videos if kind == "train" else study.val_videos,
                study.turns,
                num_frames=study.num_frames,
                flash_lengths=study.flash_lengths,
                size=study.image_size,
                seed=study.seed,
            )
    return {"file": file.name}


def ask_untrained(context: Context) -> dict:
    """Evaluates what finetuning starts from, but with a random projector: it has seen no video.

    It may reply with valid answers only; its free replies are often none, and would score less
    than a guess.
    """
    from vvlm_jax.data import synthetic, tokenizer
    from vvlm_jax.eval import runner
    from vvlm_jax.generate.video_vlm import VideoVLM
    from vvlm_jax.sharding import make_mesh
    from vvlm_jax.train import optim
    from vvlm_jax.train.compiled import initial_state
    from vvlm_jax.train.model_dir import build_model

    seed, run = context.job.argument["seed"], context.store.job(f"{context.job.run}/train")
    config = sweep_jobs.train_config(dataclasses.replace(context, job=run))
    init = tuple(i for i in config.init if i[0] != "projector")
    config = dataclasses.replace(config, init=init, seed=seed)
    asked = sweep_jobs.evaluation(context, "val")
    with context.stop.anywhere():
        tok = tokenizer.load(config.data.tokenizer)
        model = build_model(config, tok)
        state = initial_state(config, model, make_mesh(config.mesh))
        vlm = VideoVLM.from_params(config, optim.merge(state.trainable, state.frozen), tok)
        questions = [
            {**q, "choices": synthetic.valid_replies(q)}
            for q in runner.read_questions(asked.questions)
        ]
        return sweep_jobs.answer(context, asked, questions, vlm, f"untrained, seed {seed}")


def ask_about_others(context: Context) -> dict:
    """Asks a finished run every question about the next clip instead of its own: a control in
    which nothing but the format can be right, so that it must score chance.
    """
    from vvlm_jax.eval import runner
    from vvlm_jax.generate.video_vlm import VideoVLM

    asked = sweep_jobs.evaluation(context, "val")
    with context.stop.anywhere():
        questions = runner.read_questions(asked.questions)
        clips = list(dict.fromkeys(q["video"] for q in questions))
        following = dict(zip(clips, clips[1:] + clips[:1], strict=True))
        questions = [{**q, "video": following[q["video"]]} for q in questions]
        vlm = VideoVLM.load(context.folder)
        return sweep_jobs.answer(context, asked, questions, vlm, f"{context.job.run}, other clip")


KINDS = {"data": write_data, "untrained": ask_untrained, "other-clip": ask_about_others}
"""What jobs of a study are, beside those of any sweep."""


# --- what they gave ---


@dataclasses.dataclass(frozen=True)
class Results:
    """What the jobs of a finished study found: scores, standard errors and counts by task, with
    `avg`, the mean of the tasks.
    """

    by_run: dict[str, dict]
    untrained: list[dict]
    other_clip: dict
    unreadable: list[str]
    """Messages of training files, each naming its file."""


def results(store: Store, states: dict[str, State]) -> Results:
    """Of a store whose jobs are done."""
    found: dict[str, list[tuple[Job, dict]]] = {}
    for id, job in store.jobs.items():
        found.setdefault(job.kind, []).append((job, states[id].entry.body["result"]))
    messages = {m for _, result in found["train"] for m in result["unreadable"]}
    return Results(
        {job.run: _averaged(result) for job, result in found["evaluate"]},
        [_averaged(result) for _, result in found["untrained"]],
        *(_averaged(result) for _, result in found["other-clip"]),
        sorted(messages),
    )


def _averaged(result: dict) -> dict:
    """With the mean over tasks, and its standard error, taking tasks as independent."""
    scores, stderr = result["scores"], result["stderr"]
    mean, error = average(list(scores.values()), list(stderr.values()))
    return {**result, "scores": {**scores, "avg": mean}, "stderr": {**stderr, "avg": error}}
