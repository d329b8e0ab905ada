"""Write our parameters as a Hugging Face directory or a big_vision `.npz`, tensor by tensor.

With `source`, the directory that the model came from, its files are written again with our values:
names, dtypes, order, header and shards stay, and tensors that we do not use (a text tower, blocks
that we do not run) are copied. An unchanged model gives the same bytes.
"""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vvlm_jax.config import ModelConfig
from vvlm_jax.override import differences
from vvlm_jax.weights import big_vision, files, hf_config, huggingface
from vvlm_jax.weights.mapping import Entry, Info, WeightsError, describe, tree_shapes

SHARD_BYTES = 5_000_000_000
"""Largest file, where no source determines the shards."""
_PLAIN = (".json", ".txt", ".model", ".jinja")
"""Suffixes of files beside the weights that are copied from a source."""


class Came(NamedTuple):
    """Origin of a model, kept in its folder so that an export has the same names and settings."""

    config: dict
    """config.json of the Hugging Face directory."""
    prefixes: huggingface.Prefixes
    copies: list[str]
    """Duplicate tensors that it held (a tied head)."""


def read_origin(file: Path) -> Came:
    """Read a file of `write_origin`. Raise WeightsError if it is damaged."""
    values = files.read_json(file, "a file of vvlm convert")
    match values:
        case {
            "config": {"model_type": str(kind)},
            "prefixes": [*prefixes],
            "copies": [*copies],
        } if (
            kind in huggingface.SKIP
            and len(prefixes) == len(huggingface.Prefixes._fields)
            and all(isinstance(name, str) for name in prefixes + copies)
        ):
            return Came(values["config"], huggingface.Prefixes(*prefixes), copies)
    raise WeightsError(
        f"{file}: damaged; remove it, and config.json and names are written as for a new model"
    )


def write_origin(file: Path, came: Came) -> None:
    """Write the origin of a model as JSON."""
    file.write_text(json.dumps(came._asdict(), indent=1) + "\n")


class Written(NamedTuple):
    """Tensors of an export that differ from our parameters."""

    copied: list[str]
    """Tensors copied from the source, since we have no such parameters."""
    made_up: list[str]
    """Tensors that the class requires and our model lacks: a final norm, as ones and zeros."""
    rounded: list[str]
    """Tensors that the source's dtype cannot represent exactly."""


def write_huggingface(
    folder: Path,
    params: dict,
    model: ModelConfig,
    *,
    source: Path | None = None,
    came: Came | None = None,
    dtype: str | None = None,
    tokens: dict | None = None,
    on_tensor=None,
) -> Written:
    """Write config.json and safetensors into an existing folder.

    Args:
      params: {path: array} of one tower, or of a whole VLM.
      model: its config, with towers as sizes.
      dtype: of all tensors; by default the parameters' own, or the source's.
      tokens: ids `bos`, `eos`, `video` of the tokenizer, where known.

    Raises WeightsError when the class cannot express a setting, or the parameters do not fit the
    source.
    """
    parts = {path.partition("/")[0] for path in params}
    if len(parts) > 1:
        hf_config.check_onevision(model)
    norm = "vision/Transformer/encoder_norm/scale" in params
    head = "vision/MAPHead_0/probe" in params
    if source is not None:
        return _write_over(folder, params, model, parts, source, norm, head, dtype, on_tensor)
    stored = dtype or str(max((x.dtype for x in params.values()), key=lambda d: d.itemsize))
    whole = len(parts) > 1
    config = hf_config.from_model_config(model, parts, stored, head, _ids(tokens, came))
    prefixes = huggingface.ONEVISION if whole else huggingface.TOWER
    copies: list[str] = []
    if came is not None and came.config["model_type"] == config["model_type"]:
        config, prefixes, copies = _remembered(came, config, model, stored)
    entries = huggingface.entries(model, parts, prefixes, norm, head)
    _check_tree(entries, params, folder)
    arrays = _Arrays(entries, params)
    made_up = _unused_norm(model, prefixes, stored) if "vision" in parts and not norm else {}
    infos = {
        name: Info(dtype or arrays.dtype(name), arrays.shape(name))
        for name in arrays.names
        if name not in arrays.copies or name in copies
    } | {name: Info(str(x.dtype), x.shape) for name, x in made_up.items()}

    def array(name):
        return made_up[name] if name in made_up else arrays(name, infos[name].dtype)

    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    _write_shards(folder, infos, array, on_tensor)
    return Written([], sorted(made_up), [])


def _ids(tokens: dict | None, came: Came | None) -> dict:
    there = (came.config if came else {}).get("video_token_index")
    return ({} if there is None else {"video": there}) | (tokens or {})


def _remembered(came: Came, config: dict, model: ModelConfig, stored: str):
    """Return (config, prefixes, copies) of the origin, if its config describes the same model."""
    before, parts = hf_config.to_model_config(came.config, "came_from.json: config")
    tower = came.config.get("vision_config", {})
    all_there = len(parts) == 1 or (
        model.vision.blocks_run == model.vision.depth and not tower.get("vision_use_head", True)
    )
    towers = [name for name in ("vision", "llm") if name in parts]
    if all_there and all(getattr(before, t) == getattr(model, t) for t in towers):
        config = dict(came.config)
        config["dtype" if "dtype" in config else "torch_dtype"] = stored
    return config, came.prefixes, came.copies


def _write_over(folder, params, model, parts, source, norm, head, dtype, on_tensor) -> Written:
    """Write the source's files again, with our values."""
    values = hf_config.read_config(source)
    reader = files.Safetensors(source)
    theirs, parts_there = hf_config.to_model_config(values, str(source / "config.json"))
    if missing := parts - set(parts_there):
        raise WeightsError(f"{source}: holds {', '.join(parts_there)}, and no {missing.pop()}")
    _check_same(theirs, model, parts, source)
    whole = values["model_type"] == "llava_onevision"
    prefixes = huggingface.find_prefixes(reader.infos, whole)
    entries = huggingface.entries(model, parts, prefixes, norm, head)
    _check_tree(entries, params, folder)
    arrays = _Arrays(entries, params)
    problems = []
    for name in arrays.names:
        info = reader.infos.get(name)
        if info is None and name not in arrays.copies:
            problems.append(("missing", f"{name} {list(arrays.shape(name))}"))
        elif info is not None and info.shape != arrays.shape(name):
            wrong = f"{name} is {list(info.shape)}, ours {list(arrays.shape(name))}"
            problems.append(("wrong shape", wrong))
    if problems:
        raise WeightsError(describe(source, problems, "this model"))
    if dtype is not None and any(reader.infos[n].dtype != dtype for n in arrays.names):
        raise WeightsError(f"--dtype {dtype}: with --source, tensors keep the source's dtypes")
    done, rounded = 0, []

    def ours(name):
        exact, stored = arrays(name), arrays(name, reader.infos[name].dtype)
        back = stored.astype(exact.dtype)
        if not ((back == exact) | (exact != exact)).all():  # NaN is not equal to itself
            rounded.append(name)
        return stored

    def tensors(shard):
        nonlocal done
        for name, _, _ in shard.tensors:
            yield ours(name) if name in arrays.names else reader.raw(name)
            done += 1
            if on_tensor:
                on_tensor(done, len(reader.infos))

    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _PLAIN:
            shutil.copyfile(file, folder / file.name)
    for shard in reader.shards:
        files.write_safetensors(folder / shard.name, shard.header, tensors(shard))
    return Written(sorted(reader.infos.keys() - arrays.names), [], sorted(rounded))


def _check_same(theirs: ModelConfig, model: ModelConfig, parts, source) -> None:
    """Check that the source's config, which is kept, describes our towers."""
    for name, what in (("llm", "language model"), ("vision", "vision tower")):
        if name not in parts:
            continue
        there, here = getattr(theirs, name), getattr(model, name)
        if name == "vision":
            if len(parts) > 1 and there.blocks_run != here.blocks_run:
                raise WeightsError(
                    f"{source}: runs {there.blocks_run} blocks of its vision tower, ours "
                    f"{here.blocks_run}"
                )
            # The first blocks of a tower may replace those of the whole tower.
            same = dict(depth=0, feature_layer=0, head="")
            there, here = replace(there, **same), replace(here, **same)
        if there != here:
            field, x, y = next(differences(there, here))
            raise WeightsError(f"{source}: its {what} has {field} = {x!r}, ours {y!r}")


def _check_tree(entries: list[Entry], params: dict, where) -> None:
    """Check that parameters and entries have the same paths and shapes."""
    wanted, problems = tree_shapes(entries), []
    for path in wanted.keys() | params.keys():
        if path not in params:
            problems.append(("missing", path))
        elif path not in wanted:
            problems.append(("unmapped", path))
        elif tuple(params[path].shape) != wanted[path]:
            problems.append(
                ("wrong shape", f"{path} is {list(params[path].shape)}, not {list(wanted[path])}")
            )
    if problems:
        raise WeightsError(describe(where, sorted(problems), "the model's config"))


class _Arrays:
    """Our parameters under the other library's tensor names."""

    def __init__(self, entries: list[Entry], params: dict):
        self.params = params
        self.names: dict[str, list[Entry]] = {}
        for e in entries:
            self.names.setdefault(e.theirs, []).append(e)
        self.copies = {e.theirs for e in entries if e.rule.copy}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.names[name][0].their_shape

    def dtype(self, name: str) -> str:
        return str(self.params[self.names[name][0].ours].dtype)

    def __call__(self, name: str, dtype: str | None = None) -> np.ndarray:
        """Return one of their tensors, by default in our dtype."""
        parts = []
        for e in sorted(self.names[name], key=lambda e: e.rule.part):
            x = np.asarray(self.params[e.ours])
            parts.append(e.to_theirs(x if e.layer is None else x[e.layer]))
        x = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return x if dtype is None else x.astype(jnp.dtype(dtype), copy=False)


def _unused_norm(model: ModelConfig, prefixes, dtype: str) -> dict[str, np.ndarray]:
    """Return a final norm of ones and zeros, which the class requires and our tower lacks.

    LlavaOnevision does not read it. SiglipVisionModel does, for `last_hidden_state`; our features
    are its `hidden_states[-1]`.
    """
    width = model.vision.width
    return {
        f"{prefixes.vision}post_layernorm.weight": np.ones(width, jnp.dtype(dtype)),
        f"{prefixes.vision}post_layernorm.bias": np.zeros(width, jnp.dtype(dtype)),
    }


def _write_shards(folder: Path, infos: dict[str, Info], array, on_tensor) -> None:
    """Write one file, or, above SHARD_BYTES, numbered shards with an index."""
    shards: list[dict[str, Info]] = [{}]
    sizes = {n: math.prod(i.shape) * jnp.dtype(i.dtype).itemsize for n, i in infos.items()}
    room = SHARD_BYTES
    for name in sorted(infos):
        if sizes[name] > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = infos[name]
        room -= sizes[name]
    index: dict = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": {}}
    done = 0
    for k, shard in enumerate(shards):
        name = f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors"
        name = name if len(shards) > 1 else files.SINGLE
        header = files.header_of(shard, {"format": "pt"})
        order = [n for n in json.loads(header) if n != "__metadata__"]

        def tensors(order=order):
            nonlocal done
            for tensor in order:
                yield array(tensor)
                done += 1
                if on_tensor:
                    on_tensor(done, len(infos))

        files.write_safetensors(folder / name, header, tensors())
        index["weight_map"] |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        index["weight_map"] = dict(sorted(index["weight_map"].items()))
        (folder / files.INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_big_vision(file: Path, params: dict, model: ModelConfig, dtype=None, on_tensor=None):
    """Write the vision tower as `.npz` in big_vision's loop layout, with names under `params/img/`.

    Raises WeightsError if the model has other parts.
    """
    others = {path.partition("/")[0] for path in params} - {"vision"}
    if others:
        raise WeightsError(
            f"a big_vision .npz holds an image tower, not {', '.join(sorted(others))}; "
            "add --part vision"
        )
    norm = "vision/Transformer/encoder_norm/scale" in params
    head = "vision/MAPHead_0/probe" in params
    entries = big_vision.entries(model.vision, "params/img/", False, norm, head)
    _check_tree(entries, params, file)
    arrays = _Arrays(entries, params)

    def tensors():
        for done, name in enumerate(arrays.names):
            yield name, arrays(name, dtype or arrays.dtype(name))
            if on_tensor:
                on_tensor(done + 1, len(arrays.names))

    files.write_npz(file, tensors())
