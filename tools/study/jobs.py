"""The jobs of a study: data, pretraining, the runs of the sweep, and controls. Imports no jax.

Data and pretraining are runs of their own: `data` with four jobs, `lm-LLM` for each language model
and `vision`. Controls are jobs of the run at the star's centre. `decision_jobs.py` has the jobs
that test the decision; they are added once the law has named it.
"""

import dataclasses
from pathlib import Path

from vvlm_jax.config import TrainConfig
from vvlm_jax.flops import llm_params
from vvlm_jax.models.variants import LLAMA
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep import jobs as sweep_jobs
from vvlm_jax.sweep import plan
from vvlm_jax.sweep.config import SweepPoint
from vvlm_jax.sweep.store.store import Job, State, Store

from ..common import shipped
from .parts import data_kinds
from .results import star_center

study_lib = shipped("study")
StudyConfig = study_lib.StudyConfig
UNTRAINED = 3
"""Random projectors of the untrained control. A single one may happen to prefer wrong answers."""


def create(study: StudyConfig, work: Path, tested=(), parts=None) -> Store:
    """Create the study's store, or renew it in a folder that a study with the same hash used.

    The jobs are those of this study; results of jobs that only the other one had are kept.

    Args:
      tested: configurations that test the decision, once the law has named them.
      parts: pretrained `Parts` to start from; None trains them.
    """
    from . import decision_jobs

    config = study_lib.sweep(study, str(work))
    points = {p.run_id: p for p in config.points}
    prepared = study_lib.part_stages(study, str(work))
    shared = sweep_jobs.shared_by(config)
    shared |= {name: dataclasses.asdict(stage) for name, stage in prepared.items()}
    jobs = [
        *_preparing(study, str(work), parts),
        *(complete(study, job, points.get(job.run)) for job in sweep_jobs.jobs_of(config)),
        *_controls(study, star_center(config.points)),
    ]
    runs, about = sweep_jobs.runs_of(config), plan.encoder(config)
    if len(tested):
        more = decision_jobs.sweeps(study, str(work), tested)
        jobs += decision_jobs.jobs(study, more)
        for sweep in more:
            runs += sweep_jobs.runs_of(sweep)
            shared["evaluations"] |= sweep_jobs.shared_by(sweep)["evaluations"]
    return Store.renew(work, config.name, jobs, runs, shared, encoder=about)


def preparing(study: StudyConfig, work: Path) -> Store:
    """Create the study's store with the jobs of its data and of its parts alone."""
    shared = {
        name: dataclasses.asdict(stage)
        for name, stage in study_lib.part_stages(study, str(work)).items()
    }
    about = plan.encoder(study_lib.sweep(study, str(work)))
    return Store.renew(work, "study", _preparing(study, str(work), None), (), shared, encoder=about)


def _preparing(study: StudyConfig, folder: str, parts) -> list[Job]:
    """Return the jobs of the data, and those that train the parts or put them in place."""
    data, prepared = data_jobs(study), study_lib.part_stages(study, folder)
    if parts is None:
        return [*data, *(_prepare(study, folder, name, one) for name, one in prepared.items())]
    # Stage 1 reads the pictures, too; the rest of what the parts learn from is not needed.
    read = Path(study_lib.projector_stage(study, study.llms[0], "").data.annotations).stem
    unused = {kind for kind in data_kinds(study) if kind != read}
    kept = [job for job in data if job.argument["kind"] not in unused]
    return [*kept, *(parts.job(name) for name in prepared)]


def videos(study: StudyConfig) -> dict:
    """Return the arguments of every job that writes clips."""
    graded = study.world == "graded"
    more = dict(world="graded") if graded else dict(flash_lengths=study.flash_lengths)
    clip = dict(num_frames=study.num_frames, size=study.image_size, seed=study.seed)
    return dict(turns=study.turns, **clip, **more)


def data_job(kind: str, options: dict) -> Job:
    """Return a job that writes annotations with their clips or pictures."""
    relative = {"captions": 1, "stories": 1}.get(kind, 4)  # a clip costs four times a picture
    return Job(
        f"data/{kind}", "data", {"kind": kind, **options}, cost=3e6 * relative * options["count"]
    )


def data_jobs(study: StudyConfig) -> list[Job]:
    """Return the jobs that write the data, apart from the questions of tested runs."""
    counts = {"train": study.train_videos, "val": study.val_videos}
    options = {kind: dict(count=n, **videos(study)) for kind, n in counts.items()}
    if study.world == "graded":
        taught = videos(study) | dict(turns=study_lib.graded_stages.TAUGHT)
        options["pairs"] = dict(count=study.captions, **taught)
    else:
        options["captions"] = dict(count=study.captions, size=study.image_size, seed=study.seed)
        options["stories"] = dict(count=study.stories, turns=study.turns, seed=study.seed)
    return [data_job(kind, one) for kind, one in options.items()]


def _prepare(study: StudyConfig, folder: str, name: str, stage: TrainConfig) -> Job:
    """Return the job that pretrains a language model, or the encoder with a language model."""
    tokens, frames = (32, 1) if name == "vision" else (100, 0)
    starts, after = study_lib.part_starts(study, name), tuple(job.id for job in data_jobs(study))
    if starts:
        after = (*(f"{run}/train" for run in starts.values()), _data_of(stage))
    init = tuple((part, f"{folder}/runs/{run}") for part, run in starts.items())
    n = stage.data.num_examples
    argument = dict(stage=name, model={}, init=init, steps=sweep_config.num_steps(stage, n))
    cost = _cost(study, stage.model.llm, n * stage.epochs, tokens, frames)
    return Job(f"{name}/train", "train", argument, after, cost)


def _data_of(stage: TrainConfig) -> str:
    """Return the job that writes a stage's data."""
    return f"data/{Path(stage.data.annotations).stem}"


def complete(study: StudyConfig, job: Job, point: SweepPoint | None) -> Job:
    """Return a job of the sweep with the jobs whose files it reads, and a cost for small models."""
    if point is None:  # stage 1
        llm = job.argument["model"]["llm"]
        stage = study_lib.projector_stage(study, llm, "")
        examples = stage.data.num_examples * stage.epochs
        before = ("vision/train", f"{study_lib.lm_run(llm)}/train", _data_of(stage))
        return dataclasses.replace(job, after=before, cost=_cost(study, llm, examples, 32, 1, 2))
    if job.kind == "evaluate":
        asked = job.argument["evaluation"]
        count = study.val_videos if asked == "val" else study_lib.quiz_videos(study)
        cost = _asking(study, point, count)
        return dataclasses.replace(job, after=(*job.after, f"data/{asked}"), cost=cost)
    llm = job.argument["model"]["llm"]
    frames, n = point.num_frames, point.num_examples
    tokens = frames * point.tokens_per_frame + study_lib.TEXT_TOKENS
    before = (*job.after, "vision/train", f"{study_lib.lm_run(llm)}/train", "data/train")
    return dataclasses.replace(job, after=before, cost=_cost(study, llm, n, tokens, frames))


def _controls(study: StudyConfig, center: SweepPoint) -> list[Job]:
    """Return the evaluations of the untrained model, and of the largest run on other clips."""
    cost, run = _asking(study, center, study.val_videos), center.run_id
    lm = study_lib.lm_run(study_lib.language_models(study)[center.lm_params])
    prepared = ("vision/train", f"{lm}/train", "data/val")
    return [
        *(
            Job(f"{run}/untrained-{i}", "untrained", {"seed": i}, prepared, cost)
            for i in range(UNTRAINED)
        ),
        Job(f"{run}/other-clip", "other-clip", {}, (f"{run}/train", "data/val"), cost),
    ]


def _asking(study: StudyConfig, point: SweepPoint, videos: int) -> float:
    """Return the cost of an evaluation; a video is encoded once and asked one question a task."""
    tokens = point.num_frames * point.tokens_per_frame + 50
    llm = study_lib.language_models(study)[point.lm_params]
    return _cost(study, llm, videos, tokens, point.num_frames, 2)


def _cost(study, llm: str, examples: int, tokens: int, frames: int, passes: int = 3) -> float:
    """Return FLOPs; part of a step costs the same for every language model."""
    encoder = study_lib.inference_cost(study)
    seen = frames * encoder.vision_params * encoder.features_per_frame
    return 2 * passes * examples * (seen + tokens * (llm_params(LLAMA[llm]) + 3e4))


DATA, PARTS, SWEEP, TEST = (
    "videos, pictures and stories",
    "pretrained encoder and language models",
    "sweep and evaluation",
    "decision test",
)
"""The phases that a store's jobs belong to, in their order."""


def phase_of(job: Job) -> str:
    """Return the phase that a job belongs to."""
    if job.id == "data/test" or job.run.startswith(("decision-", "replicate-", "seed")):
        return TEST
    if job.kind == "data":
        return DATA
    prepares = job.kind == "train" and job.argument["stage"] != "finetune"
    return PARTS if prepares or job.kind == "part" else SWEEP


def phase(store: Store, states: dict[str, State]) -> str | None:
    """Return the first phase with jobs to do; None when all jobs have ended."""
    left = {phase_of(job) for id, job in store.jobs.items() if not states[id].is_final}
    return next((name for name in (DATA, PARTS, SWEEP, TEST) if name in left), None)
