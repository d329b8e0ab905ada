"""Our train step beside transformers in torch: same model, weights, batch, dtype and threads.

Example:
    python -m tools.bench.bench_train --quick

Both sides take optimiser steps on one synthetic batch: encoder, projector, interpolation, splice,
language model, cross-entropy of the answers alone, clipping, AdamW with the config's learning
rates, float32 master weights. Losses and gradient norms of the first steps must agree, or nothing
is timed. On a CPU the sides step in turn, so that a busy machine slows all of them; on a GPU one
after the other, each alone in the memory. Every side has a process of its own.

MFU counts causal attention half and recomputation not at all, against a large matrix product
measured in the same run and against the maker's peak; projector and encoder are one figure, the
language model the other. The bars are 1.0 for a CPU; on a GPU 1.3 and 1.0 times torch, eager and
compiled, at no more memory, and an MFU of 50% against the measured product.

On a GPU at the paper's centre (32 frames x 196 tokens), in bfloat16:
    python -m tools.bench.bench_train --device gpu --llm llama3.2-1b --batch 8

Options of the train step go through --set, for our side alone where torch has no such thing. Where
tyro is not installed, `python -c` with `bench_train.main(bench_train.Args(device="gpu"))` does.
"""

import dataclasses
import os
import shutil
import time
import traceback
from typing import NamedTuple

import numpy as np

from tools.common import die_in_one_line
from vvlm_jax import devices
from vvlm_jax.config import (
    ConfigError,
    DataConfig,
    LlamaConfig,
    ModelConfig,
    OptimConfig,
    Stopped,
    TrainConfig,
    VisionConfig,
    visual_length,
)
from vvlm_jax.config_check import choose, validate
from vvlm_jax.override import override

VIDEO, TEXT_FROM = 5, 8
"""The placeholder's id, and the first that text may have."""
PREFIX = 4
"""Text tokens before the video."""
CHECKED = 2
"""First steps whose losses and gradient norms are compared."""
TOLERANCE = {
    "float32": {"loss": 1e-4, "grad_norm": 1e-3},
    "bfloat16": {"loss": 2e-2, "grad_norm": 1e-1},
}
"""Relative, by dtype of the products."""
OURS = "vvlm_jax"
TORCH = {
    "eager": "transformers, eager",
    "sdpa": "transformers, sdpa",
    "compiled": "transformers, compiled sdpa",
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_train`."""

    device: str = "cpu"
    """`cpu` or `gpu`, of all sides."""
    llm: str | None = None
    """A published size (`vvlm_jax/models/variants.py`), with SoViT-400m/14-384, 32 frames and 196
    tokens; without it a GPU takes llama3.2-1b and a CPU a small model of all parts.
    """
    batch: int = 0
    """Videos a step; 0 is 8 on a GPU and 4 on a CPU."""
    set: tuple[str, ...] = ()
    """Overrides KEY=VALUE of the train config, such as microbatches=2 model.num_frames=16."""
    sides: tuple[str, ...] = ()
    """Of torch: `eager`, `sdpa`, `compiled`; all that apply unless named."""
    checkpoint: bool | None = None
    """Gradient checkpointing in torch; unless said, on a GPU alone."""
    repeats: int = 5
    """The median of so many steps."""
    threads: int = 0
    """CPU threads of each side; 0 takes all."""
    quick: bool = False
    """A tiny model, 2 frames, one step."""


class Disagreement(Stopped):
    """An error: two sides do not compute the same."""


class Step(NamedTuple):
    """Results of one optimiser step, before its update."""

    loss: float
    grad_norm: float
    seconds: float
    cpu_seconds: float
    """Of all threads of the side's process."""


class Report(NamedTuple):
    """Timings of one side."""

    name: str
    seconds: float | None
    """Of a step; None when it did not fit."""
    cpu_seconds: float | None
    """Of a step, of all threads: on a busy machine, with one thread, what to compare."""
    peak: int | None
    """Bytes of device memory at most; None on a CPU."""


def main(args: Args) -> None:
    """Print what each side computes, then the table."""
    check(args)
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process, which only counts; each side has its own
    config = described(args)
    validate(config, towers(config)[0])
    check_config(config)
    if args.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    measure = one_after_another if args.device == "gpu" else in_turn
    reports = measure(args, config, (OURS, *torch_sides(args)))
    with Worker("machine", args, config) as machine:
        rate, kind, versions = machine.ask("rate")
    print(table(args, config, reports, rate, kind, versions))


def check(args: Args) -> None:
    """Raise ConfigError for options that cannot work."""
    choose({"cpu": 1, "gpu": 1}, args.device, "device")
    for side in args.sides:
        choose(TORCH, side, "sides")
    for name, least in (("batch", 0), ("repeats", 1), ("threads", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"{name} = {getattr(args, name)}: must be at least {least}")


def check_config(config: TrainConfig) -> None:
    """Raise ConfigError for options that the torch side does not have."""
    model, llm = config.model, towers(config)[1]
    for name, value, needed in (
        ("model.resampler", model.resampler, "bilinear"),
        ("model.newline", model.newline, "none"),
        ("loss_weighting", config.loss_weighting, "token"),
        ("init", config.init, ()),
        ("model.llm.qkv_bias", llm.qkv_bias, False),
    ):
        if value != needed:
            raise ConfigError(f"{name} = {value!r}: the torch side has {needed!r} alone")


def described(args: Args) -> TrainConfig:
    """Return the training stage that is timed: of published size, or small."""
    large = args.device == "gpu" or args.llm is not None
    if large and not args.quick:
        config = TrainConfig(
            model=ModelConfig(llm=args.llm or "llama3.2-1b"), data=DataConfig(max_text_tokens=128)
        )
    else:
        config = small(args.quick)
    batch = args.batch or (8 if large else 4)
    return override(dataclasses.replace(config, batch_size=batch), args.set)


def small(tiny: bool = False) -> TrainConfig:
    """Return a small model with all parts; its rates are high enough to change the second loss."""
    width = 64 if tiny else 384
    vision = VisionConfig(
        width=width, depth=3 if tiny else 6, mlp_dim=4 * width, num_heads=width // 64,
        patch_size=14, image_size=56 if tiny else 112,
    )  # fmt: skip
    llm = LlamaConfig(
        vocab=512 if tiny else 8192, width=width, depth=2 if tiny else 6, mlp_dim=4 * width,
        num_heads=width // 64, num_kv_heads=width // 192 or 1, head_dim=64, tie_embeddings=True,
    )  # fmt: skip
    return TrainConfig(
        model=ModelConfig(
            vision, llm, num_frames=2 if tiny else 8, tokens_per_frame=16 if not tiny else 4,
            dtype="float32", remat="none", unroll=6,
        ),
        data=DataConfig(max_text_tokens=32),
        optim=OptimConfig(
            learning_rates=(("vision/.*", 2e-5), ("(projector|llm)/.*", 1e-4)),
        ),
    )  # fmt: skip


def towers(config: TrainConfig) -> tuple[VisionConfig, LlamaConfig]:
    """Return the sizes of the encoder and of the language model."""
    from vvlm_jax.models.variants import LLAMA, VISION

    return (
        choose(VISION, config.model.vision, "model.vision"),
        choose(LLAMA, config.model.llm, "model.llm"),
    )


def torch_sides(args: Args) -> tuple[str, ...]:
    """Return the ways torch is run. Compiling for a CPU needs a C++ compiler."""
    if args.sides:
        return args.sides
    if args.device == "gpu":
        return "eager", "compiled"
    compiler = any(shutil.which(name) for name in ("g++", "clang++"))
    return ("eager", "sdpa", "compiled") if compiler else ("eager", "sdpa")


def synthetic_batch(config: TrainConfig):
    """Return a `Batch` like those of the pipeline: text, the video's placeholders, then text whose
    second half is the answer. Every row is full, so that no side needs a padding mask.
    """
    from vvlm_jax.types import Batch

    vision, llm = towers(config)
    rng = np.random.default_rng(0)
    B, room, T = config.batch_size, config.data.max_text_tokens, config.model.num_frames
    length = visual_length(T, config.model.tokens_per_frame)
    tokens_BL = rng.integers(TEXT_FROM, llm.vocab, (B, length + room), dtype=np.int32)
    tokens_BL[:, PREFIX : PREFIX + length] = VIDEO
    answers = max(room // 2, 1)
    position_BM = np.zeros((B, room), np.int32)
    position_BM[:, :answers] = np.arange(length + room - answers, length + room) - 1
    weight_BM = (np.arange(room) < answers).astype(np.float32)
    size = vision.image_size
    return Batch(
        tokens_BL,
        position_BM,
        np.where(weight_BM > 0, np.take_along_axis(tokens_BL, position_BM + 1, 1), 0),
        np.tile(weight_BM, (B, 1)),
        rng.integers(0, 256, (B, T, size, size, 3), dtype=np.uint8),
    )


# Sides, each in its process.


class Worker:
    """A side in a process of its own. `ask` waits for its answer and re-raises its errors here;
    MemoryError when the device's memory was not enough.
    """

    def __init__(self, side: str, args: Args, config: TrainConfig):
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.side = side
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, side, args, config), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pipe.close()  # the process then ends by itself
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def ask(self, request: str):
        """Return the answer to `step`, `peak` or `rate`."""
        try:
            self._pipe.send(request)
            failed, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(60)
            code = self._process.exitcode
            raise RuntimeError(f"{self.side}: the process ended with exit code {code}") from None
        if failed and ("out of memory" in answer.lower() or "RESOURCE_EXHAUSTED" in answer):
            raise MemoryError(f"{self.side}: {answer.splitlines()[-1]}")
        if failed:
            raise RuntimeError(f"{self.side}: {answer}")
        return answer


def _serve(pipe, side: str, args: Args, config: TrainConfig) -> None:
    """Build a side at the first request, and answer requests until the other end is closed."""
    answers = None
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            answers = answers or _built(side, args, config)
            pipe.send((False, answers[request]()))
        except Exception:
            pipe.send((True, traceback.format_exc()))


def _built(side: str, args: Args, config: TrainConfig) -> dict:
    """Return {request: function} of a side. Sets up the process before jax starts."""
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[args.device]
    devices.keep_freed_memory()  # as vvlm train does; torch gains by it, too
    if side == OURS:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")  # alone on the device
        return ours(config)
    # What jax leaves goes back to the device at once, for torch.
    os.environ["XLA_PYTHON_CLIENT_ALLOCATOR"] = "platform"
    if side == "machine":
        return {"rate": lambda: machine(config.model.dtype)}
    from tools.bench import torch_train

    checkpoint = args.device == "gpu" if args.checkpoint is None else args.checkpoint
    threads = args.threads or len(os.sched_getaffinity(0))
    return torch_train.side(config, synthetic_batch(config), side, args.device, checkpoint, threads)


def machine(dtype: str) -> tuple[float, str, str]:
    """Return (FLOP/s of a large matrix product, kind of device, versions)."""
    import importlib.metadata as metadata

    import jax

    from tools.bench.bench_model import machine_rates

    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "torch"))
    return machine_rates(dtype)[0], jax.local_devices()[0].device_kind, versions


def built_model(config: TrainConfig):
    """Return our model of a config, with the placeholder of the synthetic batch."""
    from vvlm_jax.models import vlm

    return vlm.build(config.model, VIDEO)


def step_program(config: TrainConfig, model, mesh):
    """Return our train step, as the trainer calls it."""
    from vvlm_jax.train.compiled import compiled_step

    weighting, chunk = config.loss_weighting, config.loss_chunk
    return compiled_step(model, config.optim, mesh, config.microbatches, weighting, chunk)


def ours(config: TrainConfig) -> dict:
    """Return the trainer's own program and state."""
    import jax
    from jax.sharding import NamedSharding

    from vvlm_jax.sharding import BATCH, check_batch, make_mesh
    from vvlm_jax.train.compiled import initial_state

    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, mesh)
    model, batch = built_model(config), synthetic_batch(config)
    state = initial_state(config, model, mesh)
    program, where = step_program(config, model, mesh), NamedSharding(mesh, BATCH)

    def step():
        nonlocal state
        start, cpu = time.perf_counter(), time.process_time()
        on_device = jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), batch)
        state, metrics = program(state, on_device, np.float32(1))
        jax.block_until_ready(state)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return Step(float(metrics["loss"]), float(metrics["grad_norm"]), seconds, cpu)

    def peak():
        stats = jax.local_devices()[0].memory_stats()  # None on a CPU
        return stats and stats["peak_bytes_in_use"]

    return {"step": step, "peak": peak}


# Measuring.


def in_turn(args: Args, config: TrainConfig, sides) -> list[Report]:
    """Time all sides alternately, one step each."""
    import contextlib

    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(Worker(side, args, config)) for side in sides]
        first = [first_steps(worker) for worker in workers]
        for worker, steps in zip(workers[1:], first[1:], strict=True):
            agree(config.model.dtype, first[0], steps, worker.side)
        rounds = [[w.ask("step") for w in workers] for _ in range(args.repeats)]
    return [report(side, [r[i] for r in rounds]) for i, side in enumerate(sides)]


def report(side: str, steps, peak: int | None = None) -> Report:
    """Return the medians over the timed steps of a side."""
    wall, cpu = np.median([(s.seconds, s.cpu_seconds) for s in steps], axis=0)
    return Report(side, float(wall), float(cpu), peak)


def one_after_another(args: Args, config: TrainConfig, sides) -> list[Report]:
    """Time each side alone on the device. One that does not fit has no time."""
    reports, reference = [], None
    for side in sides:
        with Worker(side, args, config) as worker:
            try:
                steps = first_steps(worker)
                if reference is not None:
                    agree(config.model.dtype, reference, steps, side)
                reference = reference or steps
                timed = [worker.ask("step") for _ in range(args.repeats)]
                reports.append(report(side, timed, worker.ask("peak")))
            except MemoryError as e:
                print(f"does not fit: {e}", flush=True)
                reports.append(Report(side, None, None, None))
    return reports


def first_steps(worker: Worker) -> list[Step]:
    """Run and print the first steps of a side, which compile and warm up."""
    steps = [worker.ask("step") for _ in range(CHECKED)]
    values = ", ".join(f"{s.loss:.6g} ({s.grad_norm:.6g})" for s in steps)
    name = TORCH.get(worker.side, worker.side)
    print(f"{name}: losses (gradient norms) {values}; first step {steps[0].seconds:.1f} s",
          flush=True)  # fmt: skip
    return steps


def agree(dtype: str, ours: list[Step], theirs: list[Step], side: str) -> None:
    """Raise Disagreement when losses or gradient norms of the first steps differ."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for name, tolerance in TOLERANCE[dtype].items():
            x, y = getattr(a, name), getattr(b, name)
            if not abs(x - y) <= tolerance * abs(y):
                raise Disagreement(
                    f"{side}: step {i + 1} has {name} {y:.6g} and ours {x:.6g}; must agree to "
                    f"{tolerance:g} before anything is timed"
                )


def step_flops(config: TrainConfig) -> dict[str, int]:
    """Return the FLOPs of a step by tower, as the trainer counts them (`flops.train_flops`)."""
    from vvlm_jax.flops import train_flops

    batch, (vision, llm) = synthetic_batch(config), towers(config)
    return train_flops(
        config.model,
        vision,
        llm,
        (batch.target_pos_BM.max(1) + 1).tolist(),
        int(batch.target_weight_BM.sum()),
        config.batch_size * config.model.num_frames,
        {part for part, rate in rates(config).items() if rate > 0},
    )


def rates(config: TrainConfig) -> dict[str, float]:
    """Return the peak learning rates of `vision`, `projector` and `llm`.

    Raises ConfigError when one has several.
    """
    from flax.traverse_util import flatten_dict

    from vvlm_jax.models import vlm
    from vvlm_jax.train import optim

    found: dict[str, set] = {}
    paths = flatten_dict(vlm.shapes(built_model(config)), sep="/")
    for path, rate in optim.peak_rates(paths, config.optim).items():
        found.setdefault(path.split("/")[0], set()).add(rate)
    for part, several in found.items():
        if len(several) > 1:
            raise ConfigError(f"optim.learning_rates: {part} has {sorted(several)}; the torch side "
                              "has one a part")  # fmt: skip
    return {part: rate for part, (rate,) in found.items()}


def table(args: Args, config: TrainConfig, reports, rate: float, kind: str, versions: str) -> str:
    """Return the results as text."""
    from fitting import formatting
    from vvlm_jax.devices import peak_flops

    os.environ["JAX_PLATFORMS"] = "cpu"  # only shapes are needed here
    flops, m = step_flops(config), config.model
    vision, llm = flops["vision"] + flops["projector"], flops["llm"]
    known = peak_flops(kind)
    name = m.llm if isinstance(m.llm, str) else "a small model"
    head = (
        f"{name}, {m.dtype}, batch {config.batch_size} in {config.microbatches}, "
        f"{m.num_frames} frames x {m.tokens_per_frame} tokens, {config.data.max_text_tokens} of "
        f"text; {versions}; {kind}, {len(os.sched_getaffinity(0))} CPU threads; median of "
        f"{args.repeats}\n{vision / 1e12:.4g} TFLOPs a step in the encoder and projector, "
        f"{llm / 1e12:.4g} in the language model; matrix product {rate / 1e12:.4g} TFLOP/s"
        + (f", maker's peak {known / 1e12:.0f}" if known else "")
    )
    first = reports[0].seconds

    def row(r: Report):
        title = TORCH.get(r.name, r.name)
        if r.seconds is None:
            return (title, "does not fit", *[""] * 5)
        own = [f"{x / r.seconds / rate:.1%}" for x in (vision + llm, vision, llm)]
        peak = f"{(vision + llm) / r.seconds / known:.1%}" if known else ""
        memory = f"{r.peak / 2**30:.1f}" if r.peak else ""
        ratio = f"{r.seconds / first:.2f}" if first else ""
        mfu = f"{own[0]} = {own[1]} + {own[2]}"
        return (title, f"{r.seconds:.3f}", ratio, f"{r.cpu_seconds:.3f}", mfu, peak, memory)

    header = (
        "",
        "s a step",
        "it / ours",
        "CPU s",
        "MFU = vision + LM",
        "of the maker's",
        "peak GiB",
    )
    return head + "\n" + formatting.aligned(header, [row(r) for r in reports])


if __name__ == "__main__":
    from tools.arguments import read_options  # a bare GPU machine has no tyro

    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
