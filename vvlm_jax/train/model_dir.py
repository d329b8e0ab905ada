"""Finished models: folders with `config.json` and `params/`, which can be read in parts."""

import contextlib
import dataclasses
import json
import logging
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import choose, validate
from vvlm_jax.data import tokenizer
from vvlm_jax.data.pipeline import newline_id, video_id
from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.models import variants, vlm
from vvlm_jax.models.vlm import VLM
from vvlm_jax.override import from_dict
from vvlm_jax.weights.files import read_json
from vvlm_jax.weights.sources import fits

PARAMS = "params"
_AGAIN = "copy the folder again, or make it again"


class CheckpointError(ValueError):
    """A checkpoint or model is missing, damaged or does not fit; the message says which and why."""


def is_finished(folder: str | Path) -> bool:
    """Return whether the folder has a finished model; orbax renames `params/` when it is done."""
    return (Path(folder) / PARAMS).is_dir()


def save_params(folder: str | Path, params: dict) -> None:
    """Write the finished model's `params/`, which marks the stage as finished."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder).absolute() / PARAMS, params)


def load_params(folder: str | Path, like: dict | None = None, parts=None) -> dict:
    """Read the parameters of a finished model.

    If the stored vision tower has more blocks than `like`, its first ones are returned: a folder
    may hold a whole tower, with blocks, norm and head that a VLM does not run.

    Args:
      like: nested dict of arrays or ShapeDtypeStructs, optionally with shardings; None reads
        everything as it is stored, onto the default device.
      parts: top-level keys of `like` to read; None reads all of them.

    Raises CheckpointError when there is no model, or when a name or shape differs.
    """
    folder = Path(folder).absolute()
    if not (folder / PARAMS).is_dir():
        raise CheckpointError(f"{folder}: no finished model here (no {PARAMS}/ folder)")
    stored = _stored(folder)
    wanted = stored if like is None else {k: like[k] for k in (parts or like)}
    have, want = flatten_dict(stored, sep="/"), flatten_dict(wanted, sep="/")
    _check_fits(folder, have, want)
    device = SingleDeviceSharding(jax.devices()[0])
    structs = {
        path: jax.ShapeDtypeStruct(
            have[path].shape, x.dtype, sharding=getattr(x, "sharding", None) or device
        )
        for path, x in want.items()
    }
    item = unflatten_dict(structs, sep="/")
    with reader(item) as checkpointer:
        try:
            with _silence_late_readers():
                restored = checkpointer.restore(
                    folder / PARAMS,
                    args=ocp.args.PyTreeRestore(
                        item=item,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                        partial_restore=True,
                    ),
                )
        except Exception as e:  # orbax raises a plain Exception, caused by tensorstore's ValueError
            if not isinstance(e.__cause__ or e, ValueError):
                raise
            raise CheckpointError(f"{folder / PARAMS}: cannot be read; {_AGAIN}") from e
    flat = flatten_dict(restored, sep="/")
    return unflatten_dict({path: _first(flat[path], x.shape) for path, x in want.items()}, sep="/")


def reader(wanted: dict) -> ocp.Checkpointer:
    """Return a checkpointer that reads the wanted arrays (ShapeDtypeStructs with shardings).

    With several hosts, orbax synchronises all of them, unless every wanted array is on this host's
    devices: then this host reads alone, whatever the others do.
    """
    local = all(x.sharding.is_fully_addressable for x in jax.tree.leaves(wanted))
    options = ocp.options.MultiprocessingOptions()
    if local and jax.process_count() > 1:
        host = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host{host}"
        )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


_LATE = ("Event loop is closed", "Encountered error while reading array")


@contextlib.contextmanager
def _silence_late_readers():
    """Suppress the tracebacks of orbax's remaining readers after one of them has failed.

    The other readers keep running in the background, fail because the event loop is closed, and are
    reported as unraisable exceptions or by asyncio, until the process ends. So after an error the
    filters stay in place; they match these reports only.
    """
    before, log = sys.unraisablehook, logging.getLogger("asyncio")
    if getattr(before, "omits", None) is _LATE:
        yield
        return

    def report(unraisable):
        if not str(unraisable.exc_value).startswith(_LATE):
            before(unraisable)

    def is_not(record):
        return not (record.exc_info and str(record.exc_info[1]).startswith(_LATE))

    report.omits = _LATE
    sys.unraisablehook = report
    log.addFilter(is_not)
    yield
    sys.unraisablehook = before
    log.removeFilter(is_not)


@contextlib.contextmanager
def _silence_orbax():
    """Suppress orbax's warnings about conditions for which the caller raises an error."""

    def is_not(record):
        return "orbax" not in record.pathname

    log = logging.getLogger("absl")
    log.addFilter(is_not)
    try:
        yield
    finally:
        log.removeFilter(is_not)


def _stored(folder: Path) -> dict:
    """Return the arrays of a folder's params/ as ShapeDtypeStructs."""
    with ocp.PyTreeCheckpointer() as checkpointer, _silence_orbax():
        try:
            metadata = checkpointer.metadata(folder / PARAMS).item_metadata
        except (ValueError, KeyError, OSError):
            metadata = None
    if metadata is None:
        raise CheckpointError(f"{folder / PARAMS}: empty or damaged; {_AGAIN}")
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), metadata.tree)


def read_config(folder: str | Path) -> TrainConfig:
    """Read the config.json of a finished stage or converted model.

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
            f"{folder}: a Hugging Face directory; make it a model: vvlm convert {folder} DST"
        )
    try:
        return from_dict(TrainConfig, values)
    except ConfigError as e:
        raise ConfigError(f"{file}: {e}") from None


def open_model(folder: str | Path, dtype: str | None = None) -> tuple[VLM, Tokenizer, TrainConfig]:
    """Return a finished stage's or converted model without its parameters (`load_params`), its
    tokenizer and its config. A `tokenizer.json` in the folder goes before `config.data.tokenizer`.

    Args:
      dtype: compute dtype in place of `config.model.dtype`.

    Raises CheckpointError for a folder without a whole model or a tokenizer, ConfigError for a
    config that cannot work, ValueError for a tokenizer that does not fit the model.
    """
    folder = Path(folder).absolute()
    config, own = read_config(folder), folder / "tokenizer.json"
    if dtype is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    if not is_finished(folder):
        raise CheckpointError(f"{folder}: no finished model here (no {PARAMS}/ folder)")
    parts = _stored(folder).keys()
    if missing := [part for part in ("vision", "projector", "llm") if part not in parts]:
        init = f'--set \'init=[["{next(iter(parts))}","{folder}"]]\''
        raise CheckpointError(
            f"{folder}: holds {', '.join(parts)}, and no {' or '.join(missing)}: a part of a "
            f"model; vvlm train makes one of it: {init}"
        )
    validate(config, choose(variants.VISION, config.model.vision, "model.vision"))
    file = own if own.is_file() else Path(config.data.tokenizer)
    if not file.exists():
        raise CheckpointError(
            f"{folder}: no tokenizer: put the language model's tokenizer.json into this folder "
            f"(data.tokenizer = {str(file)!r} is not there)"
        )
    llm = choose(variants.LLAMA, config.model.llm, "model.llm")
    tok = tokenizer.load_for(file, config.data.prompt, config.model.newline, llm.vocab)
    tok = dataclasses.replace(tok, more_ends=_ends(folder / "generation_config.json", tok))
    return build_model(config, tok), tok, config


def build_model(config: TrainConfig, tok: Tokenizer) -> VLM:
    """Return the model of a config with its tokenizer's ids. Raises as `vlm.build`."""
    return vlm.build(config.model, video_id(tok), tok.vocab, newline_id(tok))


def _ends(file: Path, tok: Tokenizer) -> tuple[int, ...]:
    """Return special tokens that a Hugging Face generation_config.json names as ends of replies.

    Other ids are ignored: a file of class defaults names ids that are ordinary tokens of this
    tokenizer. The result is empty without the file.
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
