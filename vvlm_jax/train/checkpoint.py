"""Checkpoints: the whole train state with the data position, and finished parts to start others
from.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp

from vvlm_jax.config import TrainConfig, from_json
from vvlm_jax.data import tokenizer
from vvlm_jax.data.pipeline import newline_id, video_id
from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.models import vlm
from vvlm_jax.models.vlm import VLM

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


def load_params(folder: str | Path, like: dict, parts=None) -> dict:
    """Reads `parts` (top-level keys; None takes all of `like`) of a finished model.

    Args:
      like: pytree of arrays or ShapeDtypeStructs, with shardings when they matter.

    Raises CheckpointError when there is none, or when a name or shape differs.
    """
    folder = Path(folder).absolute()
    if not (folder / PARAMS).is_dir():
        raise CheckpointError(f"{folder}: no finished model here (no {PARAMS}/ folder)")
    wanted = {k: like[k] for k in (parts or like)}
    with ocp.StandardCheckpointer() as checkpointer:
        there = checkpointer.metadata(folder / PARAMS).item_metadata.tree
        _check_fits(folder, there, wanted)
        full = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), there)
        abstract = {k: wanted.get(k, full[k]) for k in full}
        restored = checkpointer.restore(
            folder / PARAMS, jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract)
        )
    return {k: restored[k] for k in wanted}


def load_model(folder: str | Path, place=None) -> tuple[VLM, dict, Tokenizer, TrainConfig]:
    """A finished stage's model, parameters, tokenizer and config, ready for generation.

    `place(model, shapes)` may give the parameters' shapes other dtypes, and shardings.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json, so not a finished model")
    config = from_json(TrainConfig, file.read_text())
    tok = tokenizer.load(config.data.tokenizer)
    model = vlm.build(config.model, video_id(tok), tok.vocab, newline_id(tok))
    shapes = vlm.shapes(model)
    return model, load_params(folder, place(model, shapes) if place else shapes), tok, config


def _check_fits(folder, there, wanted):
    def flat(tree):
        return {
            jax.tree_util.keystr(k, simple=True, separator="/"): tuple(x.shape)
            for k, x in jax.tree_util.tree_leaves_with_path(tree)
        }

    have, want = flat(there), flat(wanted)
    for path, shape in want.items():
        if path not in have:
            raise CheckpointError(f"{folder}: has no parameter {path}")
        if have[path] != shape:
            raise CheckpointError(
                f"{folder}: {path} has shape {have[path]}, this model needs {shape}"
            )
