"""Compile a program of a config for a TPU topology, on a machine without TPUs, and measure it."""

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

from vvlm_jax import flops
from vvlm_jax.config import ConfigError, TrainConfig, visual_length
from vvlm_jax.config_check import choose
from vvlm_jax.devices import GIB, Topology, known_topologies

NEW_TOKENS = 256
"""Length of a reply, for which prefill and decode have room in their cache."""
STOP_IDS = (128001, 128009)
"""Llama 3's end-of-text and end-of-turn; the program is the same for any ids."""
VIDEO_ID = 128002


@dataclass(frozen=True)
class Target:
    """The chips and settings that programs are compiled for."""

    topology: Topology
    hbm: float | None = None
    """GiB that a program may use of a chip; None for what the compiler allows there."""
    effort: float = 0.0
    """The compiler's effort, from -1 to 1."""

    @property
    def limit(self) -> float:
        """Return the bytes of one chip that a program may use. Raises ConfigError where `hbm` is
        not given and the generation's limit is unknown.
        """
        hbm = self.topology.generation.usable_memory if self.hbm is None else self.hbm
        if hbm is None:
            raise ConfigError(f"--topology {self.topology}: give --hbm, the GiB that a chip has")
        return hbm * GIB


@dataclass(frozen=True)
class Measured:
    """Memory, communication and FLOPs of one program on one topology; bytes are those of one
    chip.
    """

    fits: bool
    hbm: float
    needed: float
    """Arguments + outputs − aliased + temporaries + code; if the compiler refused the program, what
    it stated, or NaN.
    """
    memory: dict[str, float]
    """Bytes by kind; empty if the compiler refused the program."""
    collectives: dict[str, list[int]]
    """{kind: [executions, bytes]} in one run of the program."""
    kernels: int
    """Pallas kernels in the program's text: one inside a loop counts once."""
    scores: list[str]
    """Shapes of arrays of L × L positions or P × P patches: attention scores that no kernel
    avoids.
    """
    flops: float
    """Of all chips together, from `vvlm_jax.flops`, without recomputation."""
    xla_flops: float
    """Of one chip, by XLA's cost analysis: it counts bodies of loops once, and kernels not at
    all.
    """
    lower_s: float
    compile_s: float
    refusal: str = ""
    """The compiler's message, if it refused the program."""
    digest: str = ""
    """Of the program before compilation, the topology, the effort and the versions."""

    def as_dict(self) -> dict:
        """Return the fields as a dict for JSON."""
        return asdict(self)


def prepare_environment() -> None:
    """Set the environment so that jax, imported afterwards, runs on the CPU and compiles for TPUs.

    Raises ConfigError when libtpu, the compiler, is missing.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            "libtpu, the compiler for TPUs, is not installed here: pip install 'vvlm_jax[libtpu]' "
            "(about 0.7 GB; it runs without a TPU)"
        )
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",  # there is no metadata server to ask
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        # libtpu complains on stderr where it finds no host of a TPU; it does not use these values.
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v6e-1",
        TF_CPP_MIN_LOG_LEVEL="3",
    )


def devices(topology: Topology) -> list:
    """Return the chips of a topology as jax devices that only the compiler can use. Raises
    ConfigError when it knows no such topology.
    """
    import jax
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(str(topology), "tpu").devices
    except jax.errors.JaxRuntimeError as e:
        reason = f"{e}".split("\n")[0].removeprefix("INVALID_ARGUMENT: ")
        known = known_topologies(topology.generation.name)
        raise ConfigError(f"--topology {topology}: {reason}; known: {known}") from None


def measure(
    config: TrainConfig,
    target: Target,
    program: str,
    prompts: int = 8,
    known: Mapping[str, Measured] = MappingProxyType({}),
) -> Measured:
    """Compile one program and measure it.

    Args:
      program: `train`, one step; `encode`, one video to visual tokens; `prefill`, which reads
        `prompts` of the greatest length and writes their first tokens; `decode`, the loop that
        writes the rest, whose collectives and FLOPs are given for one token a prompt, the last one
        that the cache has room for.
      known: measured programs by digest; a program that is among them is not compiled again.

    Raises ConfigError for a config that cannot work on that topology.
    """
    import jax

    limit, chips = target.limit, devices(target.topology)
    start, cost, arguments, digest = time.monotonic(), 0, 0, ""
    try:
        if program == "train":
            lowered, arguments, cost = _train(config, chips)
        else:
            lowered, arguments, cost = _generation(config, chips, program, prompts)
        digest = _digest(lowered, target)
        if digest in known:
            return known[digest]
        lower_s, start = time.monotonic() - start, time.monotonic()
        effort = target.effort
        compiled = lowered.compile({"exec_time_optimization_effort": effort} if effort else None)
    except jax.errors.JaxRuntimeError as e:
        if "RESOURCE_EXHAUSTED" not in f"{e}":
            raise
        compile_s = time.monotonic() - start
        return refused(f"{e}", limit, arguments, cost, compile_s, digest)
    compile_s = time.monotonic() - start
    measured = _measured(compiled, config, limit, cost, lower_s, compile_s)
    return replace(measured, digest=digest)


def _digest(lowered, target: Target) -> str:
    versions = [metadata.version(p) for p in ("jax", "libtpu")]
    given = (lowered.as_text(), f"{target.topology}", f"{target.effort}", *versions)
    return hashlib.sha256("\n".join(given).encode()).hexdigest()[:16]


_SIZE = r"([\d.]+)([KMGT]?)"
_SCALE = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def refused(
    message: str, limit: float, arguments: float, cost: float, compile_s: float, digest: str = ""
) -> Measured:
    """Read how much memory a program needs from the compiler's refusal.

    The message states either all that the program would use, or its temporaries, to which
    `arguments` bytes are added. `needed` is NaN when it states neither.
    """
    needed = math.nan
    if used := re.search(rf"Used {_SIZE} of {_SIZE} hbm", message):
        needed = float(used[1]) * _SCALE[used[2]]
    elif used := re.search(rf"required for HLO temporaries \({_SIZE}\)", message):
        needed = float(used[1]) * _SCALE[used[2]] + arguments
    return Measured(False, limit, needed, {}, {}, 0, [], cost, 0.0, 0.0, compile_s, message, digest)


def chip_bytes(tree) -> int:
    """Return the bytes that abstract arrays take on one chip of their mesh."""
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
    """Lower a train step: (lowered, bytes of its arguments on a chip, FLOPs)."""
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
    """Lower a program of generation: (lowered, bytes of its arguments on a chip, FLOPs)."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from vvlm_jax.generate.generate import bucket, programs
    from vvlm_jax.generate.placement import abstract_params
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
    """Return the greatest length of a prompt: its visual tokens, and all the text there may be."""
    c = config.model
    return visual_length(c.num_frames, c.tokens_per_frame, c.newline) + config.data.max_text_tokens
