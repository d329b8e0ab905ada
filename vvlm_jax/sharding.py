"""The mesh, and ordered (path regex → axes) rules that place every parameter on it."""

import math
import re

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vvlm_jax.config import ConfigError, LlamaConfig
from vvlm_jax.config_check import nearest

AXES = ("replica", "data", "fsdp", "tensor")
ROWS = AXES[:3]
BATCH = PartitionSpec(ROWS)
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
    """Return the mesh of a config: `AXES` in order, 1 for a missing one, one −1 for the rest.

    Neighbours on the mesh are neighbours in the torus of TPUs. Several slices are spread over
    `replica`, or over `data` where `replica` is 1: only one gradient sum a step crosses the network
    between them.

    Raises ConfigError when an axis is unknown or stands twice, the sizes do not multiply to the
    number of devices, or slices do not divide the axis that they are spread over.
    """
    devices = jax.devices() if devices is None else devices
    asked = dict(axes)
    for name in asked:
        if name not in AXES:
            raise ConfigError(f"mesh: no axis {name!r}; {nearest(name, AXES)}")
    if len(asked) < len(axes):
        raise ConfigError(f"mesh = {[n for n, _ in axes]}: an axis stands twice")
    shape = ", ".join(f"{n}={s}" for n, s in axes)
    sizes = [asked.get(name, 1) for name in AXES]
    known = int(np.prod([s for s in sizes if s != -1]))
    sizes = [len(devices) // max(known, 1) if s == -1 else s for s in sizes]
    if min(sizes) < 1 or int(np.prod(sizes)) != len(devices):
        raise ConfigError(f"mesh ({shape}) does not divide the {len(devices)} devices there are")
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    across = 1 if sizes[0] == 1 else 0
    if sizes[across] % slices:
        raise ConfigError(
            f"mesh ({shape}): the {slices} slices must divide replica, or data where replica is 1"
        )
    return Mesh(_arranged(devices, sizes, slices, across), AXES)


def _arranged(devices, sizes, slices: int, across: int) -> np.ndarray:
    """Return the devices as an array of shape `sizes`."""
    if slices > 1:
        between = [slices if axis == across else 1 for axis in range(len(sizes))]
        within = [size // n for size, n in zip(sizes, between, strict=True)]
        return mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    if getattr(devices[0], "platform", None) == "tpu":
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(sizes)


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raise ConfigError when a microbatch does not split evenly over the data-parallel axes."""
    shards = row_shards(mesh)
    if batch_size % (shards * microbatches):
        parts = f" / microbatches = {microbatches}" if microbatches > 1 else ""
        raise ConfigError(
            f"batch_size = {batch_size}{parts}: must be divisible by replica × data × fsdp = "
            f"{shards} of the mesh"
        )


def check_model(llm: LlamaConfig, mesh: Mesh) -> None:
    """Raise ConfigError when an axis does not divide a dimension of the language model.

    Every device would hold that dimension whole (`spec_for`), and need more memory than expected.
    """
    for axis, name, size in (
        ("tensor", "query heads", llm.num_heads),
        ("tensor", "key-value heads", llm.num_kv_heads),
        ("tensor", "feed-forward size", llm.mlp_dim),
        ("fsdp", "width", llm.width),
    ):
        if size % mesh.shape[axis]:
            raise ConfigError(
                f"mesh: {axis} = {mesh.shape[axis]} must divide the language model's {name}, {size}"
            )


def row_shards(mesh) -> int:
    """Return the number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in ROWS if axis in mesh.shape)


def split_rows(x, axis: int = 0):
    """Return `x` with the rows along `axis` sharded over the data-parallel axes.

    Without it XLA may replicate activations on every device. XLA chooses the sharding of the other
    axes. Return `x` as is without a mesh, with one shard, or where rows do not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if row_shards(mesh) == 1 or x.shape[axis] % row_shards(mesh):
        return x
    spec = [PartitionSpec.UNCONSTRAINED] * x.ndim
    spec[axis] = tuple(name for name in ROWS if name in mesh.shape)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def split_microbatches(x, count: int):
    """Reshape [B, …] to [count, B / count, …] without moving rows between devices.

    Each part takes equally many rows from every device. On one device the parts are consecutive.
    """
    rows, shards = len(x) // count, row_shards(jax.sharding.get_abstract_mesh())
    x = x.reshape(shards, count, rows // shards, *x.shape[1:]).swapaxes(0, 1)
    return split_rows(x.reshape(count, rows, *x.shape[3:]), axis=1)


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Return the axes of one parameter, without axes that do not divide their dimension."""
    axes = next(axes for pattern, axes in RULES if re.fullmatch(pattern, path))
    fits = [a if a and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(axes)]
    return PartitionSpec(*fits)


def param_shardings(params, mesh: Mesh):
    """Return a NamedSharding for every leaf of `params` (arrays or ShapeDtypeStructs)."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: NamedSharding(mesh, spec_for(path, x.shape, mesh)) for path, x in flat.items()},
        sep="/",
    )
