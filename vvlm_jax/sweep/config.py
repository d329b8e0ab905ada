"""The config of a sweep: its runs, and the training stages, weights and questions that they share.

A sweep's file is short Python that defines `sweep() -> SweepConfig`; configs/sweeps/ has Table 6.
Imports no jax.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, fields, replace

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import check_seed, choose, nearest, validate

EXPORTS = ("hf", "hf-llm", "hf-vision")
"""Hugging Face folders to export: the whole model (LlavaOnevision), or one tower."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,119}")
"""Names become folders and parts of file names, which filesystems limit to 255 characters."""
PARTS = ("vision", "projector", "llm", "quecc", "newline")
"""Parts of a model that can be initialised from weights."""


@dataclass(frozen=True)
class SweepPoint:
    """One run: x and n, under the names of the table of runs."""

    run_id: str
    """Name of the run and of its folder."""
    sweep: str
    lm_params: float
    """x_N, the value in the table; `LmSize` maps it to a language model."""
    num_frames: int
    tokens_per_frame: int
    num_examples: int
    budget: float | None = None
    """Inference FLOPs that an isoFLOP run was chosen for."""
    seed: int | None = None
    """Seed of the finetuning; None takes the stage's."""


@dataclass(frozen=True)
class LmSize:
    """One level of x_N."""

    lm_params: float
    llm: str
    """A key of `variants.LLAMA`."""
    init: tuple[tuple[str, str], ...] = ()
    """(part, folder): weights that this size starts from, such as ("llm", "weights/llama-1b")."""


@dataclass(frozen=True)
class Evaluation:
    """A question file for every finished run."""

    name: str
    questions: str
    """JSON lines as `vvlm evaluate` reads them; tasks become metrics of the table of runs."""
    media_root: str
    max_new_tokens: int = 16


@dataclass(frozen=True)
class SweepConfig:
    """A sweep."""

    name: str
    points: tuple[SweepPoint, ...]
    """The runs. Any objects with a SweepPoint's attributes are accepted, such as those that the
    generators of `fitting.sweeps` return."""
    sizes: tuple[LmSize, ...]
    finetune: TrainConfig
    """The stage of every run; the sweep sets x, n, seed, init and out_dir."""
    pretrain: TrainConfig | None = None
    """Stage 1, which trains the projector alone: once for each language-model size, shared by its
    runs. The sweep sets init and out_dir, but not frames and tokens (stage 1 pools no features)."""
    init: tuple[tuple[str, str], ...] = ()
    """(part, folder): weights that all sizes start from, such as the encoder's."""
    evaluations: tuple[Evaluation, ...] = ()
    exports: tuple[str, ...] = ()
    """Formats to export finished models to, some of `EXPORTS`."""
    data_size: int | None = None
    """Number of examples to finetune on; None counts those in `finetune.data.annotations`."""
    text_tokens: int = 128
    """Text tokens of an example, for estimates of training FLOPs."""
    vision_params: float | None = None
    """x_M of equation 1; None counts the encoder's parameters."""
    features_per_frame: int | None = None
    """x_W of equation 1; None counts its patches."""

    def __post_init__(self):
        points = tuple(p if isinstance(p, SweepPoint | dict) else _point(p) for p in self.points)
        object.__setattr__(self, "points", points)

    def size(self, point: SweepPoint) -> LmSize:
        """Return the language model of a run. Raises ConfigError when no size has its x_N."""
        for size in self.sizes:
            if size.lm_params == point.lm_params:
                return size
        known = ", ".join(f"{size.lm_params:g}" for size in self.sizes)
        raise ConfigError(f"{point.run_id}: lm_params = {point.lm_params:g}: sizes has {known}")


def _point(value) -> SweepPoint:
    names = [field.name for field in fields(SweepPoint)]
    return SweepPoint(**{name: getattr(value, name) for name in names})


def finetune_config(config: SweepConfig, point: SweepPoint) -> TrainConfig:
    """Return the finetuning stage of a run, without `init` and `out_dir`: the store sets them."""
    x = dict(num_frames=point.num_frames, tokens_per_frame=point.tokens_per_frame)
    return replace(
        config.finetune,
        model=replace(config.finetune.model, llm=config.size(point).llm, **x),
        data=replace(config.finetune.data, num_examples=point.num_examples),
        seed=seed(config, point),
    )


def seed(config: SweepConfig, point: SweepPoint) -> int:
    """Return the seed of a run's finetuning: its own, or the stage's."""
    return config.finetune.seed if point.seed is None else point.seed


def row(config: SweepConfig, point: SweepPoint) -> dict:
    """Return the columns of the table of runs that describe a run, all but its scores."""
    return dict(
        run_id=point.run_id,
        sweep=point.sweep,
        lm_params=point.lm_params,
        num_frames=point.num_frames,
        tokens_per_frame=point.tokens_per_frame,
        num_examples=point.num_examples,
        seed=seed(config, point),
    )


def configurations(config: SweepConfig) -> dict[tuple[float, int, int], TrainConfig]:
    """Return {(x_N, x_T, x_V): the finetuning stage of its first run}, in the order of the runs."""
    found = {}
    for p in config.points:
        x = p.lm_params, p.num_frames, p.tokens_per_frame
        if x not in found:
            found[x] = finetune_config(config, p)
    return found


def pretrain_config(config: SweepConfig, size: LmSize) -> TrainConfig:
    """Return stage 1 of a language-model size, without `init` and `out_dir`."""
    return replace(config.pretrain, model=replace(config.pretrain.model, llm=size.llm))


def used_sizes(config: SweepConfig) -> list[LmSize]:
    """Return the sizes that at least one run has, in the config's order."""
    used = {point.lm_params for point in config.points}
    return [size for size in config.sizes if size.lm_params in used]


def check(config: SweepConfig, data_size: int | None = None) -> None:
    """Raise ConfigError, one line that names the run or field, for a sweep that cannot be run.

    Args:
      data_size: number of examples, the upper limit of every n; None where unknown.
    """
    from vvlm_jax.models.variants import LLAMA, VISION

    named = [("name", config.name), *(("run_id", p.run_id) for p in config.points)]
    named += [("evaluations", e.name) for e in config.evaluations]
    for field, name in named:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{field} = {name!r}: must be letters, digits and . _ + -, at most 120 of them"
            )
    if not config.points:
        raise ConfigError("points: none; a sweep needs at least one run")
    _check_distinct(config)
    _check_values(config)
    for kind in config.exports:
        if kind not in EXPORTS:
            raise ConfigError(f"exports: {kind!r}: unknown; {nearest(kind, EXPORTS)}")
    vision = choose(VISION, config.finetune.model.vision, "model.vision")
    for size in used_sizes(config):
        choose(LLAMA, size.llm, "sizes: llm")
        if config.pretrain is not None:
            _checked("pretrain", pretrain_config(config, size), vision)
    if (stage := config.pretrain) is not None and stage.data.num_examples is not None:
        _check_batch("pretrain", stage.data.num_examples, stage)
    for point in config.points:
        config.size(point)
        if data_size is not None and point.num_examples > data_size:
            raise ConfigError(
                f"{point.run_id}: num_examples = {point.num_examples}: above the {data_size} "
                "examples of the data"
            )
        _check_batch(point.run_id, point.num_examples, config.finetune)
    # Each configuration once, since a sweep may have thousands of points: n does not matter here.
    for point in {
        (p.lm_params, p.num_frames, p.tokens_per_frame): p for p in config.points
    }.values():
        _checked(point.run_id, finetune_config(config, point), vision)


def _checked(name: str, config: TrainConfig, vision) -> None:
    try:
        validate(config, vision)
    except ConfigError as e:
        raise ConfigError(f"{name}: {e}") from None


def _check_values(config: SweepConfig) -> None:
    values = [("text_tokens", config.text_tokens), ("data_size", config.data_size)]
    values += [(name, getattr(config, name)) for name in ("vision_params", "features_per_frame")]
    values += [("sizes: lm_params", size.lm_params) for size in config.sizes]
    values += [
        (f"evaluations: {e.name}: max_new_tokens", e.max_new_tokens) for e in config.evaluations
    ]
    for p in config.points:
        if p.seed is not None:
            check_seed(f"{p.run_id}: seed", p.seed)
    for name, value in values:
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} = {value}: must be above 0")
    inits = [("init", config.init), *((f"sizes: {s.llm}: init", s.init) for s in config.sizes)]
    for name, init in inits:
        for part, _ in init:
            choose(dict.fromkeys(PARTS), part, name)
    stage_1 = {stage_1_run(size) for size in config.sizes} if config.pretrain else ()
    for point in config.points:
        if point.run_id in stage_1:
            raise ConfigError(
                f"run_id = {point.run_id!r}: is the name of a stage 1; choose another"
            )


def stage_1_run(size: LmSize) -> str:
    """Return the name of the run that does stage 1 of a language-model size."""
    return f"stage1-{size.llm}"


def _check_batch(name: str, n: int, stage: TrainConfig) -> None:
    if n < (batch := stage.batch_size):
        raise ConfigError(f"{name}: num_examples = {n}: must be at least one batch, {batch}")


def _check_distinct(config: SweepConfig) -> None:
    seen = {}
    for p in config.points:
        key = p.lm_params, p.num_frames, p.tokens_per_frame, p.num_examples, seed(config, p)
        if key in seen:
            x = ", ".join(f"{value:g}" for value in key[:3])
            raise ConfigError(
                f"points: {seen[key]} and {p.run_id} are the same run, x = ({x}) with "
                f"n = {key[3]} and seed {key[4]}; leave one out"
            )
        seen[key] = p.run_id
    for field, names in (
        ("points: run_id", [p.run_id for p in config.points]),
        ("sizes: lm_params", [f"{size.lm_params:g}" for size in config.sizes]),
        ("evaluations", [e.name for e in config.evaluations]),
        ("exports", list(config.exports)),
    ):
        name, count = Counter(names).most_common(1)[0] if names else ("", 1)
        if count > 1:
            raise ConfigError(f"{field}: {name!r} appears {count} times; names must differ")


def num_steps(config: TrainConfig, num_examples: int) -> int:
    """Return the number of optimiser steps of a stage; a last, incomplete batch is left out."""
    return num_examples // config.batch_size * config.epochs


def milestones(config: TrainConfig, steps: int) -> list[int]:
    """Return the steps before the last whose checkpoints are kept."""
    every = config.keep_every if config.checkpoint_every else 0
    return list(range(every, steps, every)) if every else []


def trained_towers(config: TrainConfig) -> set[str]:
    """Return the towers whose learning rate is above 0 (the first pattern that matches counts)."""
    towers = set()
    for tower in ("vision", "projector", "llm"):
        rates = (
            r for pattern, r in config.optim.learning_rates if re.fullmatch(pattern, f"{tower}/x")
        )
        if next(rates, 0.0) > 0:
            towers.add(tower)
    return towers
