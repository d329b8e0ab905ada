"""The jobs of a study: each function is picklable, and with `check=True` only says whether its
work is done."""

import dataclasses
import json
import math
import os
import time
from pathlib import Path

from configs import study as stages
from configs.study import StudyConfig

# ------------------------


def data_jobs(study: StudyConfig, folder: str):
    """Four files of annotations with their clips and pictures."""
    from vvlm_jax.sweep.launch import Job

    kinds = {
        "train": study.train_videos * 4,
        "val": study.val_videos * 4,
        "captions": study.captions,
        "stories": study.stories,
    }
    return [Job(f"{kind}", write_data, (study, folder, kind), cost) for kind, cost in kinds.items()]


def write_data(argument, check: bool = False) -> bool:
    """Writes one kind of data, or says whether it is there (its annotation file comes last)."""
    study, folder, kind = argument
    name = {"train": "train.json", "val": "val.jsonl"}.get(kind, f"{kind}.json")
    folder = Path(folder)
    if check or (folder / name).exists():
        return (folder / name).exists()
    from vvlm_jax.data import synthetic
    from vvlm_jax.sweep.launch import report

    def on_done(total):
        return lambda i: report((i / total, f"{i}/{total} {kind}")) if i % 50 == 0 else None

    synthetic.write_tokenizer(folder)
    if kind == "stories":
        synthetic.write_stories(folder, study.stories, study.turns, study.seed)
    elif kind == "captions":
        synthetic.write_captions(
            folder, study.captions, study.image_size, study.seed, on_done(study.captions)
        )
    else:
        count = study.train_videos if kind == "train" else study.val_videos
        synthetic.write_videos(
            folder,
            kind,
            count,
            study.turns,
            num_frames=study.num_frames,
            flash_lengths=study.flash_lengths,
            size=study.image_size,
            seed=study.seed,
            on_done=on_done(count),
        )
    return True


def pretrain_jobs(study: StudyConfig, folder: str):
    """The language models; the encoder follows the one that helps it, in the same job."""
    from vvlm_jax.sweep.launch import Job

    chains = {llm: [stages.lm_stage(study, llm, folder)] for llm in study.llms}
    chains[stages.caption_llm(study)].append(stages.vision_stage(study, folder))
    return [
        Job(name, train_chain, chain, sum(map(stage_cost, chain))) for name, chain in chains.items()
    ]


def projector_jobs(study: StudyConfig, folder: str):
    """Stage 1, once a language-model size."""
    from vvlm_jax.sweep.launch import Job

    configs = [stages.projector_stage(study, llm, folder) for llm in study.llms]
    return [Job(f"projector of {c.model.llm}", train_chain, [c], stage_cost(c)) for c in configs]


def stage_cost(config) -> float:
    """Relative: language-model parameters, as steps are alike."""
    from vvlm_jax.flops import llm_params
    from vvlm_jax.models.variants import LLAMA

    return 2e4 + llm_params(LLAMA[config.model.llm])


def train_chain(configs, check: bool = False, share: float = 1.0) -> bool:
    """Trains stages one after another, `share` of a job, or says whether the last one is done."""
    if check:
        return (Path(configs[-1].out_dir) / "params").is_dir()
    from vvlm_jax.sweep.launch import report
    from vvlm_jax.train.loop import train

    for i, config in enumerate(configs):
        start = time.monotonic()

        def on_step(step, steps, metrics, i=i, start=start, config=config):
            rate = step * config.batch_size / (time.monotonic() - start)
            part = share * (i + step / steps) / len(configs)
            report((part, f"loss {metrics['loss']:.3f} · {rate:.0f} examples/s"))

        train(config, on_step=on_step)
    return True


def sweep_specs(study: StudyConfig, folder: str):
    """The star and the isoFLOP sweep of the study as run configs, by the general generators."""
    from fitting import sweeps
    from vvlm_jax.config import choose
    from vvlm_jax.flops import llm_params
    from vvlm_jax.models.variants import LLAMA
    from vvlm_jax.sweep.runs import run_spec

    size = {llm_params(choose(LLAMA, llm, "llms")): llm for llm in study.llms}
    cost, domain = study_cost(study), study_domain(study)
    levels = sweeps.Domain(tuple(size), study.num_frames_levels, study.tokens_levels)
    center = max(size), max(study.num_frames_levels), max(study.tokens_levels)
    points = [
        *sweeps.star_sweep(center, levels, study.num_examples),
        *sweeps.isoflop_sweep(
            domain,
            study.budgets,
            study.isoflop_examples,
            cost,
            tolerance=study.tolerance,
            max_per_curve=study.max_per_curve,
        ),
    ]
    base = stages.finetune_stage(study, folder)
    text = 200.0  # text tokens of a training conversation; they cost about as much as visual ones

    def work(p):
        train = p.num_examples * (p.num_frames * p.tokens_per_frame + text)
        return (p.lm_params + 3e4) * (
            3 * train + study.val_videos * 3 * (p.num_frames * p.tokens_per_frame + 50)
        )

    return [
        run_spec(
            p,
            base,
            f"{folder}/runs/{p.run_id}",
            size[p.lm_params],
            stages.finetune_init(size[p.lm_params], folder),
            cost=work(p),
            questions=f"{folder}/val.jsonl",
            eval_media_root=folder,
        )
        for p in points
    ]


def check(study: StudyConfig) -> None:
    """Raises ConfigError, before anything is written, for a study that cannot be run."""
    from vvlm_jax.config import ConfigError, choose, tokens_side, validate
    from vvlm_jax.data.synthetic import SIDE, TASKS
    from vvlm_jax.models.variants import LLAMA, VISION

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
    for spec in sweep_specs(study, ""):
        validate(spec.train, vision)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def sweep_jobs(specs, folder: str):
    """Every run, and evaluations of what the largest starts from."""
    from vvlm_jax.sweep.launch import Job

    center = star_center(specs)
    return [
        *(Job(s.run_id, run_one, s, s.cost) for s in specs),
        *(
            Job(out.name, run_untrained, (center, str(out), seed), center.cost / 20)
            for seed, out in enumerate(untrained_folders(center, folder))
        ),
    ]


def untrained_folders(center, folder) -> list[Path]:
    """Where the evaluations of untrained models are. One random projector may by chance turn what
    is seen into a preference for wrong answers; the mean of several does not.
    """
    return [Path(folder) / "controls" / center.run_id / f"untrained-{seed}" for seed in range(3)]


def other_clip_folder(center, folder) -> Path:
    """Where the evaluation on other clips is."""
    return Path(folder) / "controls" / center.run_id / "other-clip"


def control_jobs(specs, folder: str):
    """What needs a finished run: the star's centre, asked about other clips."""
    from vvlm_jax.sweep.launch import Job

    center = star_center(specs)
    return [
        Job("other clip", run_other_clip, (center, str(other_clip_folder(center, folder))), 1.0)
    ]


def star_center(specs):
    """The star's largest run: its centre at the largest n."""
    return max((s for s in specs if s.sweep == "star"), key=lambda s: s.cost)


def study_cost(study: StudyConfig):
    """Equation 1 with the study's own encoder: x_M its parameters, x_W its features a frame."""
    from fitting.cost import CostConstants
    from vvlm_jax.config import choose
    from vvlm_jax.flops import vision_params
    from vvlm_jax.models.variants import VISION

    vision = choose(VISION, study.vision, "vision")
    return CostConstants(vision_params(vision), vision.num_patches)


def study_domain(study: StudyConfig):
    """What may be deployed: the three language models, every x_T and every x_V on offer."""
    from fitting.sweeps import Domain
    from vvlm_jax.flops import llm_params
    from vvlm_jax.models.variants import LLAMA

    return Domain(
        tuple(llm_params(LLAMA[llm]) for llm in study.llms),
        study.domain_frames,
        study.domain_tokens,
    )


def run_one(spec, check: bool = False) -> bool:
    """Finetunes and evaluates one run, or says whether it is done."""
    from vvlm_jax.sweep import store

    out = Path(spec.train.out_dir)
    if check or store.read_result(out):
        return store.read_result(out) is not None
    from vvlm_jax.sweep.launch import report
    from vvlm_jax.train.model_dir import load_model

    train_chain([spec.train], share=0.8)
    summary = json.loads((out / "summary.json").read_text())
    report((0.8, f"loss {summary['loss']:.3f} · evaluating"))
    scored = evaluate_one(spec, out, *load_model(out))
    store.write_result(
        out, {**scored, "unreadable_train": summary["unreadable"], "loss": summary["loss"]}
    )
    return True


def run_untrained(argument, check: bool = False) -> bool:
    """Evaluates what finetuning starts from, but with a random projector: it has seen no video.

    It may reply with valid answers only; its free replies are often none, and would score less
    than a guess.
    """
    from vvlm_jax.sweep import store

    spec, out, seed = argument
    if check or store.read_result(out):
        return store.read_result(out) is not None
    from vvlm_jax.data import pipeline, synthetic, tokenizer
    from vvlm_jax.eval import runner
    from vvlm_jax.models import vlm
    from vvlm_jax.sharding import make_mesh
    from vvlm_jax.train import optim
    from vvlm_jax.train.program import initial_state

    config = dataclasses.replace(
        spec.train, init=tuple(i for i in spec.train.init if i[0] != "projector"), seed=seed
    )
    tok = tokenizer.load(config.data.tokenizer)
    model = vlm.build(config.model, pipeline.video_id(tok), tok.vocab)
    state = initial_state(config, model, make_mesh(config.mesh))
    params = optim.merge(state.trainable, state.frozen)
    questions = [
        {**q, "choices": synthetic.valid_replies(q)} for q in runner.read_questions(spec.questions)
    ]
    store.write_result(out, evaluate_one(spec, Path(out), model, params, tok, config, questions))
    return True


def run_other_clip(argument, check: bool = False) -> bool:
    """Asks a finished run every question about the next clip instead of its own: a control in
    which nothing but the format can be right, so that it must score chance.
    """
    from vvlm_jax.sweep import store

    spec, out = argument
    if check or store.read_result(out):
        return store.read_result(out) is not None
    from vvlm_jax.eval import runner
    from vvlm_jax.train.model_dir import load_model

    questions = runner.read_questions(spec.questions)
    clips = list(dict.fromkeys(q["video"] for q in questions))
    following = dict(zip(clips, clips[1:] + clips[:1], strict=True))
    questions = [{**q, "video": following[q["video"]]} for q in questions]
    model = load_model(spec.train.out_dir)
    store.write_result(out, evaluate_one(spec, Path(out), *model, questions))
    return True


def evaluate_one(spec, out: Path, model, params, tok, config, questions=None) -> dict:
    """Scores, standard errors and counts by task and on average."""
    from vvlm_jax.eval import runner

    scores = runner.evaluate(
        model,
        params,
        tok,
        questions or runner.read_questions(spec.questions),
        out / "predictions.jsonl",
        config.model,
        dataclasses.replace(config.data, media_root=spec.eval_media_root),
        max_new_tokens=spec.max_new_tokens,
    )
    return {
        "scores": {**{t: s.score for t, s in scores.items()}, "avg": runner.average(scores)},
        "stderr": {**{t: s.stderr for t, s in scores.items()}, "avg": average_stderr(scores)},
        "num_questions": {t: s.num_questions for t, s in scores.items()},
        "unreadable_eval": runner.unreadable_files(out / "predictions.jsonl"),
    }


def average_stderr(scores) -> float:
    """Standard error of the mean over tasks, taking tasks as independent."""
    return math.sqrt(sum(s.stderr**2 for s in scores.values())) / len(scores)
