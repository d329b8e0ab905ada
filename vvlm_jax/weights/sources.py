"""Read parameters from checkpoints of other libraries.

`open_source` reads only headers and configs, and accounts for every tensor; `load` and `load_part`
then stream tensors into device memory.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from vvlm_jax.config import ModelConfig
from vvlm_jax.weights import big_vision, hf_config, huggingface
from vvlm_jax.weights.files import Npz, Safetensors
from vvlm_jax.weights.mapping import (
    Entry,
    WeightsError,
    account,
    describe,
    param_dtypes,
    tree_shapes,
)
from vvlm_jax.weights.stream import fill

POSITIONS = "vision/pos_embedding"
_COMPARED = 2**22
"""Elements of a duplicate tensor that are compared at a time."""


class Source(NamedTuple):
    """An open checkpoint, every tensor of which is accounted for."""

    where: str
    reader: Npz | Safetensors
    entries: list[Entry]
    model: ModelConfig
    """Config of the model, with towers as sizes; defaults for parts that the checkpoint lacks."""
    parts: tuple[str, ...]
    left_out: list[str]
    """Tensors that we do not use (a text tower)."""
    config: dict | None
    """config.json of a Hugging Face directory; None for a big_vision file."""
    prefixes: huggingface.Prefixes | None
    """Prefixes of its tensor names."""


def is_foreign(path: str | Path) -> bool:
    """Return whether this is a big_vision `.npz` or a Hugging Face directory."""
    file, _ = big_vision.split_path(path)
    config = file / "config.json"
    if config.is_file():
        return '"model_type"' in config.read_text(errors="replace")  # ours has none
    return file.suffix == ".npz" or any(file.glob("*.safetensors*"))


def open_source(path: str | Path, image_size: int | None = None) -> Source:
    """Open a checkpoint, reading only its headers.

    Args:
      image_size: pixels a side of future images; position embeddings are resized to it.

    Raises WeightsError: one line on what is missing or damaged, or a list of all tensors that do
    not fit.
    """
    file, subtree = big_vision.split_path(path)
    if file.suffix == ".npz":
        return _open_big_vision(Npz(file), subtree, image_size)
    if not file.is_dir():
        raise WeightsError(f"{file}: is neither a directory with a model nor an .npz file")
    return _open_huggingface(file, image_size)


def _open_big_vision(reader: Npz, subtree, image_size) -> Source:
    config, prefix, scan, norm, head = big_vision.inspect(reader, subtree)
    if image_size is not None:
        _check_image_size(image_size, config.patch_size)
        config = dataclasses.replace(config, image_size=image_size)
    entries = big_vision.entries(config, prefix, scan, norm, head)
    beside = rf"(?!{prefix}).*" if prefix else r"(t|b|txt/.*)"
    left_out = account(
        entries, reader.infos, beside, where=reader.file, duplicates=reader.duplicates,
        resized=(POSITIONS,),
    )  # fmt: skip
    model = ModelConfig(vision=config, dtype="float32")
    where = str(reader.file)
    return Source(where, reader, entries, model, ("vision",), left_out, None, None)


def _open_huggingface(folder: Path, image_size) -> Source:
    values = hf_config.read_config(folder)
    reader = Safetensors(folder)
    model, parts = hf_config.to_model_config(values, str(folder / "config.json"))
    _check_depths(model, parts, reader, folder)
    resized: tuple[str, ...] = ()
    if image_size is not None:
        if "vision" not in parts:
            raise WeightsError(f"--image-size {image_size}: {folder} holds no vision tower")
        _check_image_size(image_size, model.vision.patch_size)
        values = hf_config.with_image_size(values, image_size)
        model, parts = hf_config.to_model_config(values, str(folder / "config.json"))
        resized = (POSITIONS,)
    whole = len(parts) > 1
    prefixes = huggingface.find_prefixes(reader.infos, whole)
    norm = "vision" in parts and not whole
    head = norm and model.vision.head == "map"
    entries = huggingface.entries(model, parts, prefixes, norm, head)
    skip = huggingface.SKIP[values["model_type"]]
    if whole:  # blocks after the features that the language model reads
        later = range(model.vision.blocks_run, model.vision.depth)
        skip += "".join(rf"|{prefixes.vision}encoder\.layers\.{i}\..*" for i in later)
    left_out = account(
        entries, reader.infos, skip, where=folder, resized=resized, duplicates=reader.duplicates
    )
    _check_copies(entries, reader, folder)
    return Source(str(folder), reader, entries, model, parts, left_out, values, prefixes)


def _check_image_size(pixels: int, patch: int) -> None:
    if not patch <= pixels <= hf_config.MOST_PIXELS:
        raise WeightsError(
            f"--image-size {pixels}: must be from {patch}, one patch, to {hf_config.MOST_PIXELS}"
        )


def _check_depths(model: ModelConfig, parts, reader, folder) -> None:
    """Check numbers of layers against the number of tensors, before entries are made for each."""
    for part, name in (("vision", "vision_config"), ("llm", "text_config")):
        depth = getattr(model, part).depth if part in parts else 0
        if depth > len(reader.infos):
            where = f"{name}: " * (len(parts) > 1)
            raise WeightsError(
                f"{folder / 'config.json'}: {where}num_hidden_layers = {depth}: there are only "
                f"{len(reader.infos)} tensors; copy or download it again"
            )


def _check_copies(entries, reader, folder) -> None:
    """Check that a stored copy of a tied head equals the embedding."""
    of = {e.ours: e.theirs for e in entries if not e.rule.copy}
    for e in entries:
        if not e.rule.copy or e.theirs not in reader.infos:
            continue
        a, b = reader.infos[e.theirs], reader.infos[of[e.ours]]
        same = a == b
        size = jnp.dtype(a.dtype).itemsize
        for start in range(0, e.their_shape[0] * e.their_shape[1], _COMPARED) if same else ():
            count = min(_COMPARED, e.their_shape[0] * e.their_shape[1] - start)
            x, y = (reader.read(n, start, count) for n in (e.theirs, of[e.ours]))
            same = same and (x.view(f"u{size}") == y.view(f"u{size}")).all()
        if not same:
            raise WeightsError(
                f"{folder}: {e.theirs} differs from {of[e.ours]}, though config.json ties them; "
                "set tie_word_embeddings to false there"
            )


def like(source: Source, dtype: str | None = None) -> dict:
    """Return {path: ShapeDtypeStruct} of all parameters in the source, in its dtypes or `dtype`."""
    dtypes = param_dtypes(source.entries, source.reader.infos)
    return {
        path: jax.ShapeDtypeStruct(shape, dtype or dtypes[path])
        for path, shape in tree_shapes(source.entries).items()
    }


def load(source: Source, like: dict, on_tensor=None) -> dict:
    """Return {path: array} for the paths in `like`, {path: ShapeDtypeStruct}, with its shardings.

    A target with fewer layers than the source gets the first ones; position embeddings of another
    grid are resampled.
    """
    entries = [
        e
        for e in source.entries
        if e.ours in like and (e.layer is None or e.layer < like[e.ours].shape[0])
    ]
    replaced = {}
    for i, e in enumerate(entries):
        if e.ours == POSITIONS:
            there, here = source.reader.infos[e.theirs].shape, like[POSITIONS].shape
            if there[-2] != here[-2]:
                old_PD = source.reader.read(e.theirs).reshape(there)
                replaced[e.theirs] = big_vision.resample_posemb(old_PD, round(here[-2] ** 0.5))
                sizes = tuple((k, here[-2] if k == "P" else n) for k, n in e.sizes)
                entries[i] = dataclasses.replace(e, sizes=sizes)
    return fill(entries, like, source.reader, replaced, on_tensor)


def load_part(path: str | Path, part: str, like) -> dict:
    """Return one part (`vision`, `projector`, `llm`, `newline`) of a checkpoint as a tree like
    `like`, whose arrays or ShapeDtypeStructs give its dtypes and shardings.

    Raises WeightsError listing the parameters that are missing or have another shape.
    """
    source = open_source(path)
    flat = flatten_dict({part: like}, sep="/")
    if part not in source.parts:
        raise WeightsError(f"{path}: holds {', '.join(source.parts)}, and no {part}")
    there, problems = tree_shapes(source.entries), []
    for name, x in flat.items():
        if name not in there:
            problems.append(("missing", name))
        elif not fits(name, there[name], tuple(x.shape)) and name != POSITIONS:
            problems.append(
                ("wrong shape", f"{name} is {list(there[name])}, this model needs {list(x.shape)}")
            )
    if problems:
        raise WeightsError(describe(path, problems, "this model"))
    return unflatten_dict(load(source, flat), sep="/")[part]


def fits(path: str, there: tuple[int, ...], here: tuple[int, ...]) -> bool:
    """Return whether a stored shape fits: it is equal, or has more blocks of a vision tower."""
    if path.startswith(f"vision/{big_vision.BLOCK}/") and there[1:] == here[1:]:
        return there[0] >= here[0]
    return there == here
