"""Place a model's parameters and key-value cache on devices for generation, and set their dtype."""

import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vvlm_jax.models import vlm
from vvlm_jax.models.llama import layer_name
from vvlm_jax.models.vlm import VLM
from vvlm_jax.sharding import BATCH, make_mesh, param_shardings, row_shards


def inference_mesh(model: VLM, devices) -> Mesh:
    """Return the mesh of `devices` on which a model generates.

    The `tensor` axis is as large as the key-value heads allow, since each device then holds whole
    heads of the cache; what is left of the devices is `data`.
    """
    tensor = math.gcd(len(devices), model.llm_config.num_kv_heads)
    return make_mesh((("data", len(devices) // tensor), ("tensor", tensor)), devices)


def placed_shapes(model: VLM, mesh: Mesh) -> dict:
    """Return the parameters as ShapeDtypeStructs with shardings, layers stacked as trained.

    Matrices have the compute dtype, because they are cast to it before every product anyway; norms
    and biases stay float32.
    """
    shapes = vlm.shapes(model)
    flat, places = flatten_dict(shapes), flatten_dict(param_shardings(shapes, mesh))
    matrices = ("kernel", "embedding")
    return unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(
                x.shape, model.dtype if path[-1] in matrices else x.dtype, sharding=places[path]
            )
            for path, x in flat.items()
        }
    )


def place(model: VLM, params: dict, mesh: Mesh) -> dict:
    """Return a copy of in-memory parameters, stacked as trained, as `placed_shapes` says."""
    return jax.tree.map(
        lambda x, like: jax.device_put(jnp.array(x, like.dtype), like.sharding),
        params,
        placed_shapes(model, mesh),
    )


def abstract_params(model: VLM, devices) -> tuple[dict, Mesh]:
    """Return the parameters that `VideoVLM.load` would place on `devices`, as ShapeDtypeStructs
    with shardings, and their mesh. Allocates nothing.
    """
    mesh = inference_mesh(model, list(devices))
    return laid_apart(placed_shapes(model, mesh)), mesh


def laid_apart(params: dict) -> dict:
    """Return the parameters with each layer's in arrays of its own (`llama.unstack_layers`).

    A decoding step then reads each weight in place; from stacked arrays every call would first copy
    them, and hold them twice. The stacked arrays are deleted one after another, so that the whole
    model is never in memory twice. Leaves may be ShapeDtypeStructs.
    """
    rest = dict(params["llm"])
    if "layers" not in rest:
        return params
    stacked, layers = flatten_dict(rest.pop("layers")), {}
    for path, x in stacked.items():
        on = x.sharding
        if isinstance(on, NamedSharding):
            on = NamedSharding(on.mesh, PartitionSpec(*on.spec[1:]))
        if isinstance(x, jax.ShapeDtypeStruct):
            parts = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=on)] * x.shape[0]
        else:
            parts = jax.jit(jnp.unstack, out_shardings=on)(x)
            x.delete()
        for i, part in enumerate(parts):
            layers[layer_name(i), *path] = part
    return params | {"llm": rest | unflatten_dict(layers)}


def cache_sharding(mesh: Mesh, batch: int, num_kv_heads: int) -> NamedSharding:
    """Return the sharding of a layer's cache [B, K, S, H]: rows over the data-parallel axes and
    key-value heads over `tensor`, each where it divides.
    """
    rows = BATCH[0] if batch % row_shards(mesh) == 0 else None
    heads = "tensor" if num_kv_heads % mesh.shape["tensor"] == 0 else None
    return NamedSharding(mesh, PartitionSpec(rows, heads, None, None))
