"""What a sweep will take, from its config alone: a row a run, stage 1, totals. Imports no jax.

A step's FLOPs are `flops.train_flops` of a batch of whole videos with `text_tokens` of text each;
device-hours follow from a device's peak rate and a stated MFU (the share of it that is reached).
"""

from collections.abc import Callable

from vvlm_jax import flops
from vvlm_jax.config import LlamaConfig, TrainConfig, VisionConfig, choose, visual_length
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import LmSize, SweepConfig

COLUMNS = (
    *("run_id", "sweep", "lm_params", "num_frames", "tokens_per_frame", "num_examples", "seed"),
    *("inference_flops", "parameters", "train_flops", "steps", "device_hours", "cost", "fits"),
)
"""Of a plan's row; `cost` is None without a price, `fits` where nobody has compiled it."""


def rows(
    config: SweepConfig,
    inference_flops: Callable[[list[tuple]], list[float]],
    *,
    peak: float,
    mfu: float,
    price: float | None = None,
    fits: dict[tuple, bool] | None = None,
) -> list[dict]:
    """One row a run, in the sweep's order, with the keys `COLUMNS`.

    Args:
      inference_flops: configurations [(x_N, x_T, x_V)] → c(x) of each, equation 1.
      peak, mfu: FLOP/s of a device, and the share of it that training reaches.
      price: of one device for an hour, in any currency.
      fits: x → whether the train step fits its devices.
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
    """Stage 1 of each language-model size that the sweep uses; empty without one, or where the
    size of its data is not known (`pretrain.data.num_examples`).
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
    """Runs, and FLOPs, device-hours and cost of them with stage 1."""
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
    """x_M and x_W of equation 1 for this sweep, its own or those it names: `vision_params` and
    `features_per_frame`.
    """
    vision, _ = sizes(config.finetune)
    x_M, x_W = config.vision_params, config.features_per_frame
    return dict(
        vision_params=flops.vision_params(vision) if x_M is None else x_M,
        features_per_frame=vision.num_patches if x_W is None else x_W,
    )


def sizes(stage: TrainConfig) -> tuple[VisionConfig, LlamaConfig]:
    """The encoder and the language model of a stage."""
    model = stage.model
    return choose(VISION, model.vision, "model.vision"), choose(LLAMA, model.llm, "model.llm")


def num_parameters(vision: VisionConfig, llm: LlamaConfig) -> int:
    """All parameters of a model: encoder, projector, language model with its embedding."""
    projector = llm.width * (vision.width + 1 + llm.width + 1)
    return flops.vision_params(vision) + projector + flops.llm_params(llm) + llm.vocab * llm.width


def step_flops(stage: TrainConfig, text_tokens: int) -> int:
    """FLOPs of one training step: whole videos, `text_tokens` of text an example, logits at
    each of these.
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
    """FLOPs of stage 1; of one step where the size of its data is not known."""
    stage = sweep_config.pretrain_config(config, size)
    n = config.pretrain.data.num_examples
    steps = 1 if n is None else sweep_config.num_steps(stage, n)
    return float(steps * step_flops(stage, config.text_tokens))
