"""Mesh, and ordered (path regex → axes) rules that place every parameter on it."""

import re

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vvlm_jax.config import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(AXES[:2])
"""Batches are split over the data-parallel axes."""

RULES = (
    (r"llm/embed/embedding", ("tensor", "fsdp")),
    (r"llm/lm_head/kernel", ("fsdp", "tensor")),
    (r"llm/layers/attn/[qkv]/kernel", (None, "fsdp", "tensor", None)),
    (r"llm/layers/attn/o/kernel", (None, "tensor", None, "fsdp")),
    (r"llm/layers/mlp/(gate|up)/kernel", (None, "fsdp", "tensor")),
    (r"llm/layers/mlp/down/kernel", (None, "tensor", "fsdp")),
    (r"vision/MAPHead_0/.*/(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r"vision/MAPHead_0/.*/out/kernel", ("tensor", None, "fsdp")),
    (r"vision/MAPHead_0/.*/Dense_0/kernel", ("fsdp", "tensor")),
    (r"vision/MAPHead_0/.*/Dense_1/kernel", ("tensor", "fsdp")),
    (r"vision/Transformer/.*/(query|key|value)/kernel", (None, "fsdp", "tensor", None)),
    (r"vision/Transformer/.*/out/kernel", (None, "tensor", None, "fsdp")),
    (r"vision/Transformer/.*/Dense_0/kernel", (None, "fsdp", "tensor")),
    (r"vision/Transformer/.*/Dense_1/kernel", (None, "tensor", "fsdp")),
    (r"vision/embedding/kernel", (None, None, None, "fsdp")),
    (r"projector/fc1/kernel", ("fsdp", "tensor")),
    (r"projector/fc2/kernel", ("tensor", "fsdp")),
    (r"quecc/(text|(query|key|value)/fc[12])/kernel", ("fsdp", "tensor")),
    (r"quecc/compress/kernel", (None, None, None, "fsdp")),
    (r"quecc/attention/(query|key|value)/kernel", ("fsdp", "tensor", None)),
    (r"quecc/attention/out/kernel", ("tensor", None, "fsdp")),
    (r".*", ()),
)
"""First full match wins. Small tensors (norms, biases, positions) are replicated."""


def make_mesh(axes: tuple[tuple[str, int], ...], devices=None) -> Mesh:
    """The mesh of a config: axis sizes in order, one −1 taking what is left.

    Raises ConfigError when an axis is missing or unknown, or the sizes do not multiply to the
    number of devices.
    """
    devices = jax.devices() if devices is None else devices
    names, sizes = zip(*axes, strict=True) if axes else ((), ())
    if sorted(names) != sorted(AXES):
        raise ConfigError(f"mesh = {list(names)}: must name {', '.join(AXES)}, each once")
    known = int(np.prod([s for s in sizes if s != -1]))
    sizes = [len(devices) // max(known, 1) if s == -1 else s for s in sizes]
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        shape = ", ".join(f"{n}={s}" for n, s in axes)
        raise ConfigError(f"mesh ({shape}) does not divide the {len(devices)} devices there are")
    return Mesh(np.asarray(devices).reshape(sizes), names)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError when a batch cannot be split evenly over the data-parallel axes."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ConfigError(
            f"batch_size = {batch_size}: must be divisible by data × fsdp = {parts} of the mesh"
        )


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Axes of one parameter; an axis that does not divide its dimension is left out there."""
    axes = next(axes for pattern, axes in RULES if re.fullmatch(pattern, path))
    fits = [a if a and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(axes)]
    return PartitionSpec(*fits)


def param_shardings(params, mesh: Mesh):
    """A NamedSharding for every leaf of `params` (arrays or ShapeDtypeStructs)."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: NamedSharding(mesh, spec_for(path, x.shape, mesh)) for path, x in flat.items()},
        sep="/",
    )
