"""Checkpoints: the whole train state with the data position, and finished parts to start others
from.
"""

import dataclasses
import json
import logging
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from vvlm_jax.config import ConfigError, TrainConfig, choose, from_dict, validate
from vvlm_jax.data import tokenizer
from vvlm_jax.data.pipeline import newline_id, video_id
from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.models import variants, vlm
from vvlm_jax.models.vlm import VLM
from vvlm_jax.train import manifest
from vvlm_jax.weights.files import read_json
from vvlm_jax.weights.sources import fits

PARAMS = "params"
_AGAIN = "copy the folder again, or make it again"


class CheckpointError(ValueError):
    """A checkpoint is missing or does not fit; the message names the folder and what differs."""


class Found(NamedTuple):
    """A checkpoint that can be resumed from."""

    step: int
    about: dict
    """What was passed to `save`, and `leaves`: {path: [shape, dtype]} of the state."""


class Checkpoints:
    """Numbered checkpoints of a running stage: `folder/STEP`, each with a manifest.

    The newest `keep` stay, and every one whose step is a multiple of `keep_every` (0: none). What
    there is is read from the disk each time, so that a save that failed is never offered. Nothing
    older is removed before a newer one has its manifest.

    Args:
      report: called with one line for each checkpoint that is passed over.
    """

    def __init__(self, folder: str | Path, keep: int, keep_every: int = 0, report=print):
        self.folder, self.keep, self.keep_every = Path(folder).absolute(), keep, keep_every
        self._report, self._orbax = report, _arrays_checkpointer()
        self._finisher: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def latest(self) -> Found | None:
        """The newest checkpoint that is whole, every byte of it checked; newer ones are reported.

        Raises CheckpointError when there are only damaged ones: to start again from nothing is for
        a person to decide.
        """
        damaged = None
        for step in sorted(_steps(self.folder), reverse=True):
            problem, found = self._check(step)
            # Hosts read a share each, and must all take the same one.
            if _all_agree(problem is None):
                return Found(step, found)
            problem = problem or manifest.Damaged(f"{self.folder / str(step)}: another host says")
            self._report(f"checkpoint {step} is passed over: {problem}")
            damaged = problem if isinstance(problem, manifest.Damaged) else damaged
        if damaged is not None:
            raise CheckpointError(
                f"{damaged}; no whole checkpoint is left; remove {self.folder} to start again"
            )
        return None

    def _check(self, step: int):
        """(None, what it holds) or (what is wrong, None)."""
        try:
            body = manifest.read(self.folder / str(step))
            manifest.verify(
                self.folder / str(step), body["files"], jax.process_index(), jax.process_count()
            )
        except (manifest.Damaged, manifest.Incomplete) as e:
            return e, None
        return None, body["about"]

    def save(self, step: int, state, about: dict) -> None:
        """Copies the state to the host and returns; writing goes on meanwhile.

        Args:
          about: what else to keep, as JSON.

        Raises CheckpointError when the save before this one failed.
        """
        self.wait()
        target = self.folder / str(step)
        try:
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                for old in [target, *self.folder.glob(f"*{_TEMPORARY}*")]:
                    _remove(old)  # left by a save that was killed, or failed
            self._orbax.save(target, args=ocp.args.PyTreeSave(state))
        except Exception as e:
            raise self._failed(step, e) from e
        about = {**about, "leaves": _leaves(state)}
        self._finisher = threading.Thread(target=self._finish, args=(step, about), daemon=True)
        self._finisher.start()

    def _finish(self, step: int, about: dict) -> None:
        """Waits for the files, then writes the manifest, then removes what is too old."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(self.folder / str(step), about)
                self._clean(step)
        except Exception as e:
            self._error = self._failed(step, e)

    def _clean(self, newest: int) -> None:
        """Removes all but the ones to keep. Steps after `newest` are damaged, or of another past;
        what lacks a manifest does not count.
        """
        steps = _steps(self.folder)
        whole = [s for s in sorted(steps) if (self.folder / str(s) / manifest.NAME).is_file()]
        keep = set([s for s in whole if s <= newest][-self.keep :])
        if self.keep_every:
            keep |= {s for s in whole if s <= newest and s % self.keep_every == 0}
        for step in steps - keep:
            _remove(self.folder / str(step))

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        reason = reason.rsplit('": ', 1)[-1]  # tensorstore says where, twice, and then why
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} could not be written: {reason}"
        )

    def wait(self) -> None:
        """Waits for the save under way. Raises CheckpointError when it failed."""
        if self._finisher is not None:
            self._finisher.join()
            self._finisher = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def restore(self, found: Found, like):
        """The state, in the shapes and shardings of `like` (arrays or ShapeDtypeStructs).

        Raises CheckpointError that names the first leaf that the checkpoint lacks, has beside, or
        has in another shape or dtype.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        where = self.folder / str(found.step)
        there, here = found.about["leaves"], _leaves(abstract)
        for path in [*here, *there]:
            if there.get(path) != here.get(path):
                has, needs = (_spell(x.get(path)) for x in (there, here))
                raise CheckpointError(f"{where}: {path} is {has}; this run needs {needs}")
        return self._orbax.restore(
            where,
            args=ocp.args.PyTreeRestore(
                item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
            ),
        )

    def close(self) -> CheckpointError | None:
        """Waits for the save under way; gives back its error, if it failed."""
        try:
            self.wait()
        except CheckpointError as e:
            return e
        return None


_TEMPORARY = ".orbax-checkpoint-tmp"


def _arrays_checkpointer() -> ocp.AsyncCheckpointer:
    """Uncompressed: zstd finds 8% in float32 and costs more time and memory than writing them."""
    # Its own reports of a failed save are tracebacks; ours is a line.
    logging.getLogger("absl").addFilter(_is_not_a_failed_save)
    return ocp.AsyncCheckpointer(
        ocp.PyTreeCheckpointHandler(use_compression=False),
        # When a thread of its own cannot make the folder, others wait for it for minutes.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )


def _is_not_a_failed_save(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def _steps(folder: Path) -> set[int]:
    return {int(p.name) for p in folder.glob("*") if p.name.isdigit()}


def _remove(folder: Path) -> None:
    """Without its manifest first: what is half removed must not look whole."""
    (folder / manifest.NAME).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _leaves(tree) -> dict[str, list]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(x.shape), str(x.dtype)]
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _spell(leaf: list | None) -> str:
    return f"{leaf[1]} {leaf[0]}" if leaf else "absent"


def _all_agree(ok: bool) -> bool:
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.process_allgather(np.asarray(ok)).all())


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
    there = _stored(folder)
    # Unlike StandardCheckpointer, this one reads no more than it is asked for.
    with ocp.PyTreeCheckpointer() as checkpointer:
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
        try:
            restored = checkpointer.restore(
                folder / PARAMS,
                args=ocp.args.PyTreeRestore(
                    item=item,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                    partial_restore=True,
                ),
            )
        except Exception as e:  # orbax raises nothing narrower, from what tensorstore says
            if not isinstance(e.__cause__ or e, ValueError):
                raise
            raise CheckpointError(f"{folder / PARAMS}: cannot be read; {_AGAIN}") from e
    flat = flatten_dict(restored, sep="/")
    return unflatten_dict({path: _first(flat[path], x.shape) for path, x in want.items()}, sep="/")


def _stored(folder: Path) -> dict:
    """What a folder's params/ holds, as ShapeDtypeStructs."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(folder / PARAMS).item_metadata
        except (ValueError, KeyError, OSError):
            metadata = None
    if metadata is None:
        raise CheckpointError(f"{folder / PARAMS}: empty or damaged; {_AGAIN}")
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), metadata.tree)


def read_config(folder: str | Path) -> TrainConfig:
    """The config.json of a finished stage or converted model.

    Raises CheckpointError when it is missing, damaged or a Hugging Face model's, ConfigError for an
    option that does not exist.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json, so not a finished model")
    try:
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{file}: not JSON: {e}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: not a config; {_AGAIN}")
    if "model_type" in values:
        raise CheckpointError(
            f"{folder}: a Hugging Face directory; make it a model: python -m tools.convert "
            f"{folder} DST"
        )
    try:
        return from_dict(TrainConfig, values)
    except ConfigError as e:
        raise ConfigError(f"{file}: {e}") from None


def load_model(folder: str | Path, place=None) -> tuple[VLM, dict, Tokenizer, TrainConfig]:
    """A finished stage's or converted model, its parameters, tokenizer and config, ready for
    generation. A `tokenizer.json` in the folder goes before `config.data.tokenizer`.

    `place(model, shapes)` may give the parameters' shapes other dtypes, and shardings.
    """
    folder = Path(folder).absolute()
    config, own = read_config(folder), folder / "tokenizer.json"
    if not is_finished(folder):
        raise CheckpointError(f"{folder}: no finished model here (no {PARAMS}/ folder)")
    parts = _stored(folder).keys()
    if missing := [part for part in ("vision", "projector", "llm") if part not in parts]:
        init = f'--set \'init=[["{next(iter(parts))}","{folder}"]]\''
        raise CheckpointError(
            f"{folder}: holds {', '.join(parts)}, and no {' or '.join(missing)}: a part of a "
            f"model; tools.train makes one of it: {init}"
        )
    validate(config, choose(variants.VISION, config.model.vision, "model.vision"))
    file = own if own.is_file() else Path(config.data.tokenizer)
    if not file.exists():
        raise CheckpointError(
            f"{folder}: no tokenizer: put the language model's tokenizer.json into this folder "
            f"(data.tokenizer = {str(file)!r} is not there)"
        )
    tok = tokenizer.load(file)
    tok = dataclasses.replace(tok, more_ends=_ends(folder / "generation_config.json", tok))
    model = vlm.build(config.model, video_id(tok), tok.vocab, newline_id(tok))
    shapes = vlm.shapes(model)
    return model, load_params(folder, place(model, shapes) if place else shapes), tok, config


def _ends(file: Path, tok: Tokenizer) -> tuple[int, ...]:
    """Ids that end a reply as a Hugging Face generation_config.json says, where there is one.

    Special tokens alone: a file of class defaults names ids that are letters to this tokenizer.
    """
    if not file.is_file():
        return ()
    ends = read_json(file, "a generation config").get("eos_token_id")
    added = tok.backend.get_added_tokens_decoder()
    special = [id for id, token in added.items() if token.special]
    return tuple(id for id in (ends if isinstance(ends, list) else [ends]) if id in special)


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
