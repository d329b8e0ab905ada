"""The study: small synthetic clips, a star and an isoFLOP sweep, a law and its frontier.

    vvlm study                          # some 40 minutes on 2 cores (estimated)
    vvlm study --config study_mini      # a few minutes

The code is that of full-size runs. As in Table 4, the learning rate of language model and projector
is five times that of the vision model.
"""

from dataclasses import dataclass, replace

from vvlm_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from vvlm_jax.config_check import choose
from vvlm_jax.flops import llm_params, vision_params
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.sweep.config import Evaluation, LmSize, SweepConfig

from . import graded_stages

TEXT_TOKENS = 200
"""Text tokens of a training conversation; they cost about as much as visual ones."""


@dataclass(frozen=True)
class DecisionTest:
    """How the law's decision is put to the test: the rule, fixed before any run.

    After the star and the isoFLOP sweep the law names x* at each budget, and each of `rivals` names
    what someone might have chosen instead (`fitting/rivals.py` has the rules). All of them are
    trained with the same new seeds and answer the same new questions. The regret of x* is then
    measured in pairs (`fitting/regret.py`), and the claim "x* loses at most the bound" is
    confirmed, refuted or not resolved. The bound is what the law says that x* loses at most (with
    `level` of its members), or `tolerance` where that is more.
    """

    budgets: tuple[float, ...] = (0.7, 1.5)
    """Budgets of the test, as shares of the largest isoFLOP budget: one between two isoFLOP
    budgets, one above all. None skips the test."""
    rivals: tuple[str, ...] = ("outside", "add", "largest", "neighbour", "random")
    """Rules that name a rival each. None is tested twice: a rule whose choice is taken, by x* or by
    a rule before it, names its next one."""
    spend: tuple[float, float] = (0.85, 1.0)
    """Share of the budget that a rival costs. A budget with fewer such configurations than rivals
    and x* is refused before the study starts."""
    seeds: int = 3
    """Trainings of each: every seed draws the order of the data anew."""
    own_projectors: bool = True
    """Whether each of these seeds has a stage 1 of its own, too."""
    num_examples: int | None = None
    """n of the tested runs; None takes `isoflop_examples`, the most that the law has seen."""
    questions: int = 3000
    """New questions of each task, which all tested runs answer."""
    tolerance: float = 1.0
    """Error points that do not matter: of the regret set, and the least bound."""
    level: float = 0.9
    """Confidence of every interval, of the regret set and of the bound."""
    replicated: int = 5
    """IsoFLOP runs that are repeated, spread evenly by cost, to measure the noise of runs..."""
    replicates: int = 2
    """...with so many further seeds each."""


@dataclass(frozen=True)
class StudyConfig:
    """The options of a study."""

    seed: int = 0
    world: str = "board"
    """What the clips and questions are: `board` (`vvlm_jax/data/synthetic.py`) or `graded`
    (`vvlm_jax/data/graded.py`, with the stages of `graded_stages.py`)."""
    num_frames: int = 16
    """Frames of a clip, one a second."""
    flash_lengths: tuple[int, ...] = (1, 2, 4, 8)
    """Lengths of a flash, in frames: a short one is seen only if many frames are sampled."""
    image_size: int = 48
    train_videos: int = 4000
    """Clips to finetune on, one conversation each; no n is larger."""
    val_videos: int = 1000
    """Clips to evaluate on, one question a task each."""
    turns: tuple[tuple[str, int], ...] = (("flash", 1), ("cell", 3), ("most", 1))
    """Questions of each task in a training conversation."""
    captions: int = 6000
    """Pictures with captions, to pretrain the encoder and the projectors; in the graded world clips
    of two frames, to pretrain the language models as well."""
    stories: int = 40000
    """Text-only descriptions with questions, to pretrain the language models (board)."""

    vision: str = "study/12"
    llms: tuple[str, ...] = ("study-s", "study-m", "study-l")
    num_frames_levels: tuple[int, ...] = (1, 2, 4, 8)
    """x_T of the star."""
    tokens_levels: tuple[int, ...] = (1, 4, 9, 16)
    """x_V of the star."""
    center: tuple[int, int] | None = None
    """x_T and x_V of the star's centre; None takes the largest. Its language model is the largest.
    """
    num_examples: tuple[int, ...] = (750, 1500, 3000)
    """n of the star."""
    isoflop_examples: int = 4000
    """n of the isoFLOP sweep; larger than the star's, as in Table 6, so no run is repeated."""
    budgets: tuple[float, ...] = (12e6, 24e6)
    """Costs of the isoFLOP curves, in FLOPs a video."""
    domain_frames: tuple[int, ...] = tuple(range(1, 17))
    """x_T that may be deployed; isoFLOP runs are chosen from these, too."""
    domain_tokens: tuple[int, ...] = (1, 4, 9, 16)
    tolerance: float = 0.15
    """Relative distance of an isoFLOP run from its budget; a small domain has few exact ones."""
    max_per_curve: int = 3
    """Runs of an isoFLOP curve, at most, for each language model."""

    batch_size: int = 8
    rate: float = 3e-3
    """Peak learning rate of language model and projector in finetuning; a fifth for vision."""

    decision: DecisionTest = DecisionTest()

    resamples: int = 20
    starts: int = 50
    """Random starts of each of the bootstrap `resamples`; the paper has 500 and 100."""


def study() -> StudyConfig:
    """Return the default study."""
    return StudyConfig()


config = study


def language_models(study: StudyConfig) -> dict[int, str]:
    """Return x_N -> language model."""
    return {llm_params(choose(LLAMA, llm, "llms")): llm for llm in study.llms}


def lm_run(llm: str) -> str:
    """Return the name of the run that pretrains a language model."""
    return f"lm-{llm}"


def sweep(study: StudyConfig, folder: str) -> SweepConfig:
    """Return the star and the isoFLOP sweep of the study.

    Args:
      folder: holds the study's data and its store.
    """
    from fitting import sweeps

    llms = language_models(study)
    measured = sweeps.Domain(tuple(llms), study.num_frames_levels, study.tokens_levels)
    at = study.center or (max(study.num_frames_levels), max(study.tokens_levels))
    center = (max(llms), *at)
    points = [
        *sweeps.star_sweep(center, measured, study.num_examples),
        *sweeps.isoflop_sweep(
            domain(study),
            study.budgets,
            study.isoflop_examples,
            inference_cost(study),
            tolerance=study.tolerance,
            max_per_curve=study.max_per_curve,
        ),
    ]
    vision = ("vision", f"{folder}/runs/vision")
    return SweepConfig(
        name="study",
        points=tuple(points),
        sizes=tuple(
            LmSize(size, llm, (vision, ("llm", f"{folder}/runs/{lm_run(llm)}")))
            for size, llm in llms.items()
        ),
        finetune=finetune_stage(study, folder),
        pretrain=projector_stage(study, study.llms[-1], folder),
        evaluations=(_asked(study, "val", folder),),
        data_size=study.train_videos,
        text_tokens=TEXT_TOKENS,
    )


def tested_budgets(study: StudyConfig) -> tuple[float, ...]:
    """Return the budgets at which the decision is tested, in FLOPs a video."""
    return tuple(share * max(study.budgets) for share in study.decision.budgets)


def tested_examples(study: StudyConfig) -> int:
    """Return n of the tested runs."""
    return study.decision.num_examples or study.isoflop_examples


def quiz_videos(study: StudyConfig) -> int:
    """Return the number of clips of the tested runs' questions, one of each task a clip."""
    return study.decision.questions


def further_seeds(study: StudyConfig, count: int) -> tuple[int, ...]:
    """Return seeds of further trainings, none of them the study's own."""
    return tuple(study.seed + 1000 * (i + 1) for i in range(count))


def decision_sweep(study: StudyConfig, folder: str, tested) -> SweepConfig:
    """Return the runs that test the decision, which answer questions of their own.

    Args:
      folder: as in `sweep`.
      tested: configurations (x_N, x_T, x_V).
    """
    from fitting.sweeps import Point

    seeds = further_seeds(study, study.decision.seeds)
    points = [
        Point("decision", x[0], int(x[1]), int(x[2]), tested_examples(study), None, seed)
        for x in dict.fromkeys(map(tuple, tested))
        for seed in seeds
    ]
    asked = _asked(study, "test", folder)
    return replace(sweep(study, folder), points=tuple(points), evaluations=(asked,))


def _asked(study: StudyConfig, name: str, folder: str) -> Evaluation:
    most = 1 if study.world == "graded" else 4  # tokens of a reply
    return Evaluation(name, f"{folder}/{name}.jsonl", folder, max_new_tokens=most)


def replicate_sweep(study: StudyConfig, folder: str) -> SweepConfig | None:
    """Return further runs of some isoFLOP runs, spread evenly by cost, with other seeds."""
    law, rule = sweep(study, folder), study.decision
    cost, seeds = inference_cost(study), further_seeds(study, rule.replicates)
    isoflop = [p for p in law.points if p.sweep == "isoflop"]
    isoflop.sort(key=lambda p: float(cost(_x(p))))
    count = min(rule.replicated, len(isoflop))
    rows = [round(i * (len(isoflop) - 1) / max(1, count - 1)) for i in range(count)]
    points = [
        replace(p, sweep="replicate", seed=seed, run_id=f"replicate-{_stem(p)}-seed{seed}")
        for p in (isoflop[i] for i in dict.fromkeys(rows))
        for seed in seeds
    ]
    return replace(law, points=tuple(points)) if points else None


def _x(point):
    import numpy as np

    return np.array([point.lm_params, point.num_frames, point.tokens_per_frame], float)


def _stem(point) -> str:
    return point.run_id.partition("-")[2]


def inference_cost(study: StudyConfig):
    """Return equation 1 with the study's encoder: x_M its parameters, x_W its features a frame."""
    from fitting.cost import CostConstants

    vision = choose(VISION, study.vision, "vision")
    return CostConstants(vision_params(vision), vision.num_patches)


def domain(study: StudyConfig):
    """Return the configurations that may be deployed."""
    from fitting.sweeps import Domain

    return Domain(
        tuple(llm_params(LLAMA[llm]) for llm in study.llms),
        study.domain_frames,
        study.domain_tokens,
    )


def world(study: StudyConfig):
    """Return the module of the study's world, with its tasks and their chance."""
    from vvlm_jax.data import graded, synthetic

    return {"board": synthetic, "graded": graded}[study.world]


def part_stages(study: StudyConfig, folder: str) -> dict[str, TrainConfig]:
    """Return the stage that pretrains each part, by the name of its run.

    These parts may ship as files: the study's seed changes none of what is taken from them.
    """
    found = {lm_run(llm): lm_stage(study, llm, folder) for llm in study.llms}
    return found | {"vision": vision_stage(study, folder)}


def parts_of(run: str) -> tuple[str, ...]:
    """Return what is used of the model that a run of `part_stages` trains."""
    return ("vision",) if run == "vision" else ("llm",)


def part_starts(study: StudyConfig, run: str) -> dict[str, str]:
    """Return {part: run of `part_stages`} of the weights that such a run starts from."""
    if study.world == "graded":
        return {} if run == "vision" else {"vision": "vision"}
    return {"llm": lm_run(caption_llm(study))} if run == "vision" else {}


def lm_stage(study: StudyConfig, llm: str, folder: str) -> TrainConfig:
    """Return the stage that pretrains a language model on text-only conversations."""
    if study.world == "graded":
        return graded_stages.lm_stage(study, llm, folder)
    depth_rate = {"study-s": 5e-3, "study-m": 4e-3}.get(llm, 3e-3)
    return TrainConfig(
        model=_model(study, llm, 1, 16),
        data=DataConfig(
            f"{folder}/stories.json",
            folder,
            f"{folder}/tokenizer.json",
            num_examples=study.stories,
            max_text_tokens=200,
        ),
        optim=_optim(("llm/.*", depth_rate), (".*", 0.0)),
        **_prepare(study) | dict(microbatches=16),
    )


def vision_stage(study: StudyConfig, folder: str) -> TrainConfig:
    """Return the stage that pretrains the encoder on captions.

    The projector and the language model that train with it are not used afterwards.
    """
    if study.world == "graded":
        return graded_stages.vision_stage(study, folder)
    return TrainConfig(
        model=_model(study, caption_llm(study), 1, 16),
        data=_captions(study, folder),
        optim=_optim(("llm/.*", 1e-3), (".*", 2e-3)),
        epochs=3,
        **_prepare(study),
    )


def caption_llm(study: StudyConfig) -> str:
    """Return the language model that the encoder is pretrained with."""
    return study.llms[len(study.llms) // 2]


def projector_stage(study: StudyConfig, llm: str, folder: str) -> TrainConfig:
    """Return stage 1 of Table 4: the projector alone, on pictures, with unpooled features."""
    if study.world == "graded":
        return graded_stages.projector_stage(study, llm, folder)
    return TrainConfig(
        model=_model(study, llm, 1, 16),
        data=_captions(study, folder),
        optim=_optim(("projector/.*", 5e-3), (".*", 0.0)),
        epochs=16,
        **_prepare(study),
    )


def finetune_stage(study: StudyConfig, folder: str) -> TrainConfig:
    """Return stage 2 of Table 4: all parts train on video conversations; a sweep sets x and n."""
    if study.world == "graded":
        return graded_stages.finetune_stage(study, folder)
    return TrainConfig(
        model=_model(study, study.llms[-1], 8, 16),
        data=DataConfig(
            f"{folder}/train.json",
            folder,
            f"{folder}/tokenizer.json",
            max_text_tokens=144,
            frame_cache_mb=512,
            read_threads=1,
        ),
        optim=_optim(("vision/.*", study.rate / 5), ("(projector|llm)/.*", study.rate)),
        batch_size=study.batch_size,
        microbatches=study.batch_size // 2,
        seed=study.seed,
        log_every=10,
        checkpoint_every=0,
    )


def _model(study, llm, num_frames, tokens):
    return ModelConfig(study.vision, llm, num_frames, tokens, dtype="float32", remat="none")


def _optim(*rates):
    return OptimConfig(learning_rates=rates, b2=0.98)


def _captions(study, folder):
    return DataConfig(
        f"{folder}/captions.json",
        folder,
        f"{folder}/tokenizer.json",
        num_examples=study.captions,
        max_text_tokens=48,
        frame_cache_mb=64,
        read_threads=1,
    )


def _prepare(study):
    """Return options of the pretraining stages; their microbatches fit a core's cache."""
    return dict(batch_size=32, microbatches=8, seed=study.seed, log_every=20, checkpoint_every=0)
