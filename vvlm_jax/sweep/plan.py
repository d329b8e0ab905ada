"""The cost of a sweep before it runs, from its config alone. Imports no jax.

The FLOPs of a step are `flops.train_flops` of a batch of videos with `text_tokens` of text each.
Device-hours follow from a device's peak rate and an assumed MFU, the share of the peak that
training reaches.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from vvlm_jax import flops
from vvlm_jax.config import LlamaConfig, TrainConfig, VisionConfig, visual_length
from vvlm_jax.config_check import choose
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import LmSize, SweepConfig

COLUMNS = (
    *("run_id", "sweep", "lm_params", "num_frames", "tokens_per_frame", "num_examples", "seed"),
    *("inference_flops", "parameters", "train_flops", "steps", "device_hours", "cost", "fits"),
)
"""Keys of a plan's row; `cost` is None without a price, `fits` where it is not known."""


def rows(
    config: SweepConfig,
    inference_flops: Callable[[list[tuple]], list[float]],
    *,
    peak: float,
    mfu: float,
    price: float | None = None,
    fits: dict[tuple, bool] | None = None,
) -> list[dict]:
    """Return one row a run, in the sweep's order, with the keys `COLUMNS`.

    Args:
      inference_flops: configurations [(x_N, x_T, x_V)] → c(x) of each, equation 1.
      peak, mfu: FLOP/s of a device, and the share of it that training reaches.
      price: of one device for an hour, in any currency.
      fits: (x_N, x_T, x_V) → whether the train step fits the memory of its devices.
    """
    xs = [(p.lm_params, p.num_frames, p.tokens_per_frame) for p in config.points]
    cost = dict(zip(xs, inference_flops(xs), strict=True))
    found = []
    for x, point in zip(xs, config.points, strict=True):
        stage = sweep_config.finetune_config(config, point)
        vision, llm = sizes(stage)
        steps = sweep_config.num_steps(stage, point.num_examples)
        found.append(
            dict(
                **sweep_config.row(config, point),
                inference_flops=float(cost[x]),
                parameters=num_parameters(vision, llm),
                **_work(stage, steps, config.text_tokens, peak, mfu, price),
                fits=(fits or {}).get(x),
            )
        )
    return found


def stage_1_rows(
    config: SweepConfig, *, peak: float, mfu: float, price: float | None = None
) -> list[dict]:
    """Return a row for stage 1 of each language-model size that the sweep uses.

    Empty without stage 1, or when the size of its data is unknown (`pretrain.data.num_examples`).
    """
    if config.pretrain is None or config.pretrain.data.num_examples is None:
        return []
    found = []
    for size in sweep_config.used_sizes(config):
        stage = sweep_config.pretrain_config(config, size)
        n = config.pretrain.data.num_examples
        steps = sweep_config.num_steps(stage, n)
        work = _work(stage, steps, config.text_tokens, peak, mfu, price)
        found.append(dict(lm_params=size.lm_params, llm=size.llm, num_examples=n, **work))
    return found


def totals(rows: list[dict], stage_1: list[dict]) -> dict:
    """Return the number of runs, and the sums of FLOPs, device-hours and cost with stage 1."""
    names = ("train_flops", "device_hours", "cost")
    everything = [*rows, *stage_1]
    sums = {
        name: None
        if any(row[name] is None for row in everything)
        else sum(row[name] for row in everything)
        for name in names
    }
    return dict(
        runs=len(rows), stage_1=len(stage_1), unfit=sum(r["fits"] is False for r in rows), **sums
    )


def encoder(config: SweepConfig) -> dict:
    """Return x_M and x_W of equation 1, `vision_params` and `features_per_frame`: those that the
    sweep sets, else its encoder's own.
    """
    vision, _ = sizes(config.finetune)
    x_M, x_W = config.vision_params, config.features_per_frame
    return dict(
        vision_params=flops.vision_params(vision) if x_M is None else x_M,
        features_per_frame=vision.num_patches if x_W is None else x_W,
    )


def sizes(stage: TrainConfig) -> tuple[VisionConfig, LlamaConfig]:
    """Return the configs of a stage's encoder and language model."""
    model = stage.model
    return choose(VISION, model.vision, "model.vision"), choose(LLAMA, model.llm, "model.llm")


def num_parameters(vision: VisionConfig, llm: LlamaConfig) -> int:
    """Count a model's parameters: encoder, projector, language model with its embedding."""
    projector = llm.width * (vision.width + 1 + llm.width + 1)
    return flops.vision_params(vision) + projector + flops.llm_params(llm) + llm.vocab * llm.width


def step_flops(stage: TrainConfig, text_tokens: int) -> int:
    """Return the FLOPs of one training step on videos of full length with `text_tokens` of text
    each, logits at each text token.
    """
    vision, llm = sizes(stage)
    model = stage.model
    length = visual_length(model.num_frames, model.tokens_per_frame, model.newline) + text_tokens
    one = flops.train_flops(
        model, vision, llm, [length], text_tokens, model.num_frames,
        sweep_config.trained_towers(stage),
    )  # fmt: skip
    return stage.batch_size * sum(one.values())


def _work(stage, steps: int, text_tokens: int, peak: float, mfu: float, price) -> dict:
    train = steps * step_flops(stage, text_tokens)
    hours = train / (peak * mfu) / 3600
    cost = None if price is None else hours * price
    return dict(train_flops=train, steps=steps, device_hours=hours, cost=cost)


def stage_1_cost(config: SweepConfig, size: LmSize) -> float:
    """Return the FLOPs of stage 1, or of one step when the size of its data is unknown."""
    stage = sweep_config.pretrain_config(config, size)
    n = config.pretrain.data.num_examples
    steps = 1 if n is None else sweep_config.num_steps(stage, n)
    return float(steps * step_flops(stage, config.text_tokens))


def data_size(config: SweepConfig) -> int | None:
    """Return how many examples there are to finetune on; None when the data are not here."""
    if config.data_size is not None:
        return config.data_size
    return _count_examples(config.finetune.data.annotations)


def with_counts(config: SweepConfig) -> SweepConfig:
    """Set the number of stage 1's examples, if all are used and the data are here."""
    stage = config.pretrain
    if stage is None or stage.data.num_examples is not None:
        return config
    count = _count_examples(stage.data.annotations)
    data = dataclasses.replace(stage.data, num_examples=count)
    return dataclasses.replace(config, pretrain=dataclasses.replace(stage, data=data))


def _count_examples(annotations: str) -> int | None:
    if not Path(annotations).exists():
        return None
    from vvlm_jax.data.rows import count_rows

    return count_rows(annotations)
