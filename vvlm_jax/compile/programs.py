"""Compiles a program of a config for a TPU topology on a machine without TPUs, and measures it."""

import hashlib
import importlib.util
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from types import MappingProxyType
from typing import NamedTuple

from vvlm_jax import flops
from vvlm_jax.config import ConfigError, TrainConfig, visual_length
from vvlm_jax.config_check import choose, nearest

GIB = 2**30


class Chip(NamedTuple):
    """A kind of TPU."""

    hbm: float
    """GiB that a program may use: what the compiler itself says when it refuses one (`Used … of
    95.74G hbm`; libtpu 0.0.42.1). The rest of the chip's memory is the system's.
    """
    memory: int
    """GiB on the chip, as Google's documentation of Cloud TPU has them."""
    dimensions: int
    sizes: tuple[str, ...]
    """Some of the topologies that are sold, for messages; others that the compiler takes work."""


CHIPS = {
    "v5p": Chip(95.74, 95, 3, ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")),
    "v5e": Chip(15.75, 16, 2, ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
    "v6e": Chip(31.25, 32, 2, ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
}
PROGRAMS = ("train", "encode", "prefill", "decode")
NEW_TOKENS = 256
"""Room for a reply in prefill and decode."""
STOP_IDS = (128001, 128009)
"""Llama 3's ends; any ids make the same program."""
VIDEO_ID = 128002


@dataclass(frozen=True)
class Measured:
    """One program on one topology; bytes are those of one chip."""

    fits: bool
    hbm: float
    needed: float
    """Arguments + outputs − aliased + temporaries + code; of a program that the compiler refused,
    what it said.
    """
    memory: dict[str, float]
    """By kind; empty when the compiler refused."""
    collectives: dict[str, list[int]]
    """{kind: [how often a run, bytes a run]}."""
    kernels: int
    """Pallas kernels in the program, forward and backward each once."""
    scores: list[str]
    """Arrays of L × L positions, or of P × P patches: attention without a kernel."""
    flops: float
    """Of all chips together, exact, from `vvlm_jax.flops`; recomputation is not in it."""
    xla_flops: float
    """Of one chip, XLA's: bodies of loops once, kernels not at all."""
    lower_s: float
    compile_s: float
    refusal: str = ""
    """The compiler's own words."""
    digest: str = ""
    """Of what the compiler was given, topology and versions included."""

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def prepare_environment() -> None:
    """Before jax is imported: this process compiles for TPUs and runs on the CPU. ConfigError when
    libtpu, the compiler, is missing.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu, the compiler for TPUs, is not installed here: pip install -r "
            "tests/requirements-tpu.txt (about 0.7 GB; it runs without a TPU)"
        )
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",  # there is no metadata server to ask
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        # It looks for a TPU's host and complains on stderr; what it is told here is not used.
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v6e-1",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """("v5p", (2, 2, 4)). ConfigError for a kind or a form that is not known."""
    kind, _, sides = name.partition(":")
    known = [f"{k}:{size}" for k, chip in CHIPS.items() for size in chip.sizes]
    if kind not in CHIPS:
        raise ConfigError(f"--topology {name}: unknown kind of TPU; {nearest(name, known)}")
    shape = tuple(int(s) for s in sides.split("x")) if re.fullmatch(r"\d+(x\d+)*", sides) else ()
    if len(shape) != CHIPS[kind].dimensions or not math.prod(shape):
        of_kind = ", ".join(n for n in known if n.startswith(kind))
        raise ConfigError(f"--topology {name}: known are {of_kind}")
    return kind, shape


def devices(name: str) -> list:
    """The chips of a topology, which exist for the compiler alone. ConfigError when it knows no
    such topology.
    """
    kind, _ = parse_topology(name)
    import jax
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(name, "tpu").devices
    except jax.errors.JaxRuntimeError as e:
        of_kind = ", ".join(f"{kind}:{size}" for size in CHIPS[kind].sizes)
        reason = f"{e}".split("\n")[0].removeprefix("INVALID_ARGUMENT: ")
        raise ConfigError(f"--topology {name}: {reason}; known are {of_kind}") from None


def measure(
    config: TrainConfig,
    topology: str,
    program: str,
    hbm: float | None = None,
    prompts: int = 8,
    known: Mapping[str, Measured] = MappingProxyType({}),
    effort: float = 0.0,
) -> Measured:
    """Compiles one program.

    Args:
      program: `train`: the step; `encode`: one video to visual tokens; `prefill`: reads `prompts`
        of the longest kind and writes their first tokens; `decode`: the loop that goes on, whose
        collectives and FLOPs are those of one token a prompt, the last there is room for.
      hbm: GiB a chip, in place of the chip's own.
      known: programs by digest; one that is there is not compiled again.
      effort: the compiler's, from -1 to 1.

    Raises ConfigError for a config that cannot work there.
    """
    import jax

    limit = (CHIPS[parse_topology(topology)[0]].hbm if hbm is None else hbm) * GIB
    chips, start, cost, arguments, digest = devices(topology), time.monotonic(), 0, 0, ""
    try:
        if program == "train":
            lowered, arguments, cost = _train(config, chips)
        else:
            lowered, arguments, cost = _generation(config, chips, program, prompts)
        digest = _digest(lowered, topology, effort)
        if digest in known:
            return known[digest]
        lower_s, start = time.monotonic() - start, time.monotonic()
        compiled = lowered.compile({"exec_time_optimization_effort": effort} if effort else None)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in f"{e}":
            raise
        compile_s = time.monotonic() - start
        return refused(f"{e}", limit, arguments, cost, compile_s, digest)
    compile_s = time.monotonic() - start
    measured = _measured(compiled, config, limit, cost, lower_s, compile_s)
    return replace(measured, digest=digest)


def _digest(lowered, topology: str, effort: float) -> str:
    versions = [metadata.version(p) for p in ("jax", "libtpu")]
    given = (lowered.as_text(), topology, f"{effort}", *versions)
    return hashlib.sha256("\n".join(given).encode()).hexdigest()[:16]


_SIZE = r"([\d.]+)([KMGT]?)"
_SCALE = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def refused(
    message: str, limit: float, arguments: float, cost: float, compile_s: float, digest: str = ""
) -> Measured:
    """What the compiler says of a program that does not fit: all it would use, or temporaries,
    to which `arguments` are added.
    """
    needed = math.nan
    if used := re.search(rf"Used {_SIZE} of {_SIZE} hbm", message):
        needed = float(used[1]) * _SCALE[used[2]]
    elif used := re.search(rf"required for HLO temporaries \({_SIZE}\)", message):
        needed = float(used[1]) * _SCALE[used[2]] + arguments
    return Measured(False, limit, needed, {}, {}, 0, [], cost, 0.0, 0.0, compile_s, message, digest)


def chip_bytes(tree) -> int:
    """Bytes of abstract arrays on one chip of their mesh."""
    import jax

    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def _measured(compiled, config: TrainConfig, limit, cost, lower_s, compile_s) -> Measured:
    from vvlm_jax.compile import hlo as hlo
    from vvlm_jax.models.attention import KERNELS_FROM
    from vvlm_jax.models.variants import VISION

    m, text = compiled.memory_analysis(), compiled.as_text()
    memory = {
        "arguments": m.argument_size_in_bytes,
        "outputs": m.output_size_in_bytes,
        "aliased": m.alias_size_in_bytes,
        "temporaries": m.temp_size_in_bytes,
        "code": m.generated_code_size_in_bytes,
    }
    needed = sum(memory.values()) - 2 * memory["aliased"]
    vision = choose(VISION, config.model.vision, "model.vision")
    lengths = {n for n in (vision.num_patches, _length(config)) if n >= KERNELS_FROM}
    scores = set().union(*(hlo.squares(text, n) for n in lengths))
    return Measured(
        fits=needed < limit,
        hbm=limit,
        needed=needed,
        memory=memory,
        collectives={k: [c.count, c.bytes] for k, c in hlo.collectives(text).items()},
        kernels=hlo.kernels(text),
        scores=sorted(scores),
        flops=cost,
        xla_flops=float((compiled.cost_analysis() or {}).get("flops", 0)),
        lower_s=lower_s,
        compile_s=compile_s,
    )


def _train(config: TrainConfig, chips):
    from vvlm_jax.models import variants, vlm
    from vvlm_jax.sharding import check_batch, make_mesh
    from vvlm_jax.train import optim, shapes

    mesh = make_mesh(config.mesh, chips)
    check_batch(config.batch_size // config.microbatches, mesh)
    model = vlm.build(config.model, VIDEO_ID, newline_id=VIDEO_ID + 1)
    trained = {p.split("/")[0] for p in optim.split(vlm.shapes(model), config.optim)[0]}
    rows = config.batch_size
    by_tower = flops.train_flops(
        config.model,
        choose(variants.VISION, config.model.vision, "model.vision"),
        choose(variants.LLAMA, config.model.llm, "model.llm"),
        [_length(config)] * rows,
        rows * config.data.max_text_tokens,
        rows * config.model.num_frames,
        trained,
    )
    state = shapes.abstract_state(model, config.optim, mesh)
    arguments = chip_bytes((state, shapes.abstract_batch(config, mesh)))
    return shapes.lower_step(config, model, mesh), arguments, sum(by_tower.values())


def _generation(config: TrainConfig, chips, program: str, prompts: int):
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from vvlm_jax.generate.generate import programs
    from vvlm_jax.generate.video_vlm import abstract_params, bucket
    from vvlm_jax.models import vlm
    from vvlm_jax.sharding import BATCH

    model = vlm.build(config.model, VIDEO_ID, newline_id=VIDEO_ID + 1)
    params, mesh = abstract_params(model, chips)
    run, c = programs(model, STOP_IDS, mesh), config.model
    parts = math.prod(mesh.shape[axis] for axis in BATCH[0])
    rows, length = parts * math.ceil(prompts / parts), bucket(_length(config))
    by_row = NamedSharding(mesh, BATCH)

    def struct(*shape, dtype=np.int32, sharding=by_row):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    if program == "encode":
        over = BATCH[0] if c.num_frames % parts == 0 else None
        size, place = model.vision_config.image_size, PartitionSpec(None, over)
        frames = struct(
            1, c.num_frames, size, size, 3, dtype=np.uint8, sharding=NamedSharding(mesh, place)
        )
        asked = ()
        if c.resampler == "quecc":
            everywhere = NamedSharding(mesh, PartitionSpec())
            asked = (
                struct(1, config.data.max_text_tokens, sharding=everywhere),
                struct(1, sharding=everywhere),
            )
        grid = model.vision_config.out_grid**2
        cost = flops.vision_flops(model.vision_config, c.num_frames)
        cost += flops.projector_flops(model.vision_config, model.llm_config, c.num_frames * grid)
        with jax.set_mesh(mesh):
            return run.encode.lower(params, frames, *asked), chip_bytes((params, frames)), cost
    visual = struct(
        rows, c.num_frames * c.tokens_per_frame, model.llm_config.width, dtype=model.dtype
    )
    read = (params, struct(rows, length), struct(rows), visual, NEW_TOKENS)
    with jax.set_mesh(mesh):
        begin = run.begin.lower(*read)
    if program == "prefill":
        return begin, chip_bytes(read[:-1]), rows * flops.llm_flops(model.llm_config, length)
    replies = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        begin.out_info,
        begin.compile().output_shardings,
    )
    end = length + NEW_TOKENS
    cost = flops.llm_flops(model.llm_config, end)
    cost -= flops.llm_flops(model.llm_config, end - 1, logits=0)
    until = struct(sharding=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):
        return run.go_on.lower(params, replies, until), chip_bytes((params, replies)), rows * cost


def _length(config: TrainConfig) -> int:
    c = config.model
    return visual_length(c.num_frames, c.tokens_per_frame, c.newline) + config.data.max_text_tokens
