"""The jobs that test the decision: new questions, tested configurations, replicates. No jax.

Every seed of a tested or repeated run has a stage 1 of its own, `seed1000-stage1-LLM`, where the
study says so.
"""

import dataclasses

from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep import jobs as sweep_jobs
from vvlm_jax.sweep.config import SweepConfig
from vvlm_jax.sweep.store.store import Job

from ..common import shipped
from . import jobs as study_jobs

study_lib = shipped("study")
StudyConfig = study_lib.StudyConfig


def sweeps(study: StudyConfig, folder: str, tested) -> list[SweepConfig]:
    """Return the sweep of the tested configurations, and that of the replicates."""
    found = [
        study_lib.decision_sweep(study, folder, tested),
        study_lib.replicate_sweep(study, folder),
    ]
    return [sweep for sweep in found if sweep is not None]


def jobs(study: StudyConfig, configs: list[SweepConfig]) -> list[Job]:
    """Return the jobs of these sweeps, without those that the law's sweep has."""
    count = study_lib.quiz_videos(study)
    found = {
        "data/test": study_jobs.data_job("test", dict(count=count, **study_jobs.videos(study)))
    }
    for config in configs:
        points = {point.run_id: point for point in config.points}
        stage_1 = {sweep_config.stage_1_run(size) for size in sweep_config.used_sizes(config)}
        own = {job.run: job for job in sweep_jobs.jobs_of(config) if job.run in stage_1}
        for job in sweep_jobs.jobs_of(config):
            if job.run in stage_1:
                continue
            if study.decision.own_projectors and job.kind == "train":
                job, before = _with_own_stage_1(study, job, own)
                found[before.id] = before
            found[job.id] = study_jobs.complete(study, job, points[job.run])
    return list(found.values())


def _with_own_stage_1(study: StudyConfig, job: Job, stage_1: dict[str, Job]) -> tuple[Job, Job]:
    """Return a training with the stage 1 of its seed, and that stage 1."""
    shared, seed = job.argument["projector"], job.argument["seed"]
    run = f"seed{seed}-{shared}"
    argument = stage_1[shared].argument | {"seed": seed}
    before = dataclasses.replace(stage_1[shared], id=f"{run}/train", argument=argument)
    after = tuple(f"{run}/train" if id == f"{shared}/train" else id for id in job.after)
    argument = job.argument | {"projector": run}
    return (
        dataclasses.replace(job, argument=argument, after=after),
        study_jobs.complete(study, before, None),
    )
