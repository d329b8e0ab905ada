"""Checkpoints: the whole train state with the data position, and finished parts to start others
from.
"""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from vvlm_jax.config import TrainConfig, from_dict
from vvlm_jax.data import tokenizer
from vvlm_jax.data.pipeline import newline_id, video_id
from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.models import vlm
from vvlm_jax.models.vlm import VLM
from vvlm_jax.weights.sources import fits

PARAMS = "params"


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit; the message names the folder and what differs."""


class Checkpoints:
    """Numbered checkpoints of a running stage under `folder`; the newest two are kept."""

    def __init__(self, folder: str | Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state, data_state: dict) -> None:
        """Starts an asynchronous save; an earlier failed one raises here."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_state)
            ),
        )

    def restore(self, step: int, like):
        """(state with the shapes and shardings of `like`, data position)."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.data

    def close(self) -> None:
        """Waits for pending saves."""
        self._manager.wait_until_finished()
        self._manager.close()


def is_finished(folder: str | Path) -> bool:
    """Whether a stage has written its model here; orbax puts the folder in place only when it is
    whole.
    """
    return (Path(folder) / PARAMS).is_dir()


def save_params(folder: str | Path, params: dict) -> None:
    """Writes the finished model's `params/`, which marks the stage as finished."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).absolute() / PARAMS, params)


def load_params(folder: str | Path, like: dict | None = None, parts=None) -> dict:
    """Reads `parts` (top-level keys; None takes all of `like`) of a finished model.

    A vision tower with more blocks than `like` gives its first ones: a folder may hold a whole
    tower, with blocks, norm and head that a VLM does not run.

    Args:
      like: pytree of arrays or ShapeDtypeStructs, with shardings when they matter; None takes all
        as it is stored, on the default device.

    Raises CheckpointError when there is none, or when a name or shape differs.
    """
    folder = Path(folder).absolute()
    if not (folder / PARAMS).is_dir():
        raise CheckpointError(f"{folder}: no finished model here (no {PARAMS}/ folder)")
    # Unlike StandardCheckpointer, this one reads no more than it is asked for.
    with ocp.PyTreeCheckpointer() as checkpointer:
        there = checkpointer.metadata(folder / PARAMS).item_metadata.tree
        there = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), there)
        wanted = there if like is None else {k: like[k] for k in (parts or like)}
        have, want = flatten_dict(there, sep="/"), flatten_dict(wanted, sep="/")
        _check_fits(folder, have, want)
        device = SingleDeviceSharding(jax.devices()[0])
        structs = {
            path: jax.ShapeDtypeStruct(
                have[path].shape, x.dtype, sharding=getattr(x, "sharding", None) or device
            )
            for path, x in want.items()
        }
        item = unflatten_dict(structs, sep="/")
        restored = checkpointer.restore(
            folder / PARAMS,
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )
    flat = flatten_dict(restored, sep="/")
    return unflatten_dict({path: _first(flat[path], x.shape) for path, x in want.items()}, sep="/")


def load_model(folder: str | Path, place=None) -> tuple[VLM, dict, Tokenizer, TrainConfig]:
    """A finished stage's or converted model, its parameters, tokenizer and config, ready for
    generation. A `tokenizer.json` in the folder goes before `config.data.tokenizer`.

    `place(model, shapes)` may give the parameters' shapes other dtypes, and shardings.
    """
    file, own = Path(folder) / "config.json", Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json, so not a finished model")
    try:
        values = json.loads(file.read_text())
    except ValueError as e:
        raise CheckpointError(f"{file}: not JSON: {e}") from None
    if "model_type" in values:
        raise CheckpointError(
            f"{folder}: a Hugging Face directory; make it a model: python -m tools.convert "
            f"{folder} DST"
        )
    config = from_dict(TrainConfig, values)
    tok = tokenizer.load(own if own.is_file() else config.data.tokenizer)
    model = vlm.build(config.model, video_id(tok), tok.vocab, newline_id(tok))
    shapes = vlm.shapes(model)
    return model, load_params(folder, place(model, shapes) if place else shapes), tok, config


def _first(x: jax.Array, shape) -> jax.Array:
    return x if x.shape == tuple(shape) else x[: shape[0]]


def _check_fits(folder, have, want):
    for path, x in want.items():
        if path not in have:
            raise CheckpointError(f"{folder}: has no parameter {path}")
        if not fits(path, tuple(have[path].shape), tuple(x.shape)):
            raise CheckpointError(
                f"{folder}: {path} has shape {tuple(have[path].shape)}, this model needs "
                f"{tuple(x.shape)}"
            )
