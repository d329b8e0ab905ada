"""Convert models between our folders, Hugging Face directories and big_vision files.

Between reading and writing it is a `Model`: flat parameters, and the config and files that go with
them. The caller reads and writes the parameters of our own folders (`vvlm_jax.train.model_dir`),
since this package may not import `train`.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from vvlm_jax.config import ConfigError, DataConfig, ModelConfig, TrainConfig
from vvlm_jax.config_check import choose
from vvlm_jax.override import to_json
from vvlm_jax.progress import Progress

CAME = "came_from.json"
"""In a converted folder: config.json and prefixes of the Hugging Face directory it came from."""
BESIDE = ("tokenizer.json", "generation_config.json")
"""Files that go with a language model, byte for byte."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a conversion."""

    to: str = "model"
    """`model`, one of our folders; `hf`, a Hugging Face directory; `npz`, a big_vision file."""
    dtype: str | None = None
    """Dtype of all tensors, and of what a folder of ours computes; None keeps it."""
    image_size: int | None = None
    """Pixels a side to which position embeddings are resized; None keeps them."""
    part: str | None = None
    """The only tower to write, `vision` or `llm`."""
    source: Path | None = None
    """With `hf`: the directory the model came from, whose other tensors and files are copied."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model between reading and writing."""

    params: dict
    """{path: array}, such as "llm/embed/embedding"."""
    config: TrainConfig
    came: tuple | None
    """An `export.Came`, if it came from a Hugging Face directory."""
    beside: dict[str, Path]
    """Those of `BESIDE` that there are."""


def check(options: Options, dst: Path) -> None:
    """Raise ConfigError for options that cannot work, or a `dst` that exists."""
    if (dst.is_dir() and any(dst.iterdir())) or dst.is_file():
        raise ConfigError(f"{dst}: already there; remove it or choose another DST")
    if options.to == "npz" and dst.suffix != ".npz":
        raise ConfigError(f"{dst}: with --to npz, DST must end in .npz")
    if options.image_size is not None and options.image_size < 1:
        raise ConfigError(f"--image-size {options.image_size}: must be at least one patch")
    if options.source is not None and options.to != "hf":
        raise ConfigError(f"--source {options.source}: needs --to hf")


def is_ours(src: str) -> bool:
    """Return whether `src` is a model folder of ours, and not another library's model."""
    from vvlm_jax.weights import sources

    return not sources.is_foreign(src) and (Path(src) / "params").is_dir()


def read_foreign(src: str, options: Options) -> Model:
    """Read a model of another library.

    Raises ConfigError for options that do not fit it, WeightsError when its tensors are not those
    of a model that we know, ValueError when the tokenizer beside it cannot serve it.
    """
    from vvlm_jax.weights import export, sources

    source = sources.open_source(src, options.image_size)
    if source.left_out:
        print(f"left out: {names(source.left_out)}")
    files = {name: Path(src) / name for name in BESIDE if "llm" in source.parts}
    files = {name: file for name, file in files.items() if file.is_file()}
    config = _config_of(source, files, options)
    like = sources.like(source, options.dtype)
    if options.to == "model" and (others := _rounded(like, config.model.dtype)):
        print(
            f"stored in {others} and run in {config.model.dtype}, since training and kernels "
            "support no other narrow dtype; --dtype float32 runs them without rounding"
        )
    num = len([e for e in source.entries if not e.rule.copy])
    progress = Progress(f"reading {src}", num, "tensors")
    params = sources.load(source, like, progress.update)
    progress.close()
    came = None
    if source.config is not None:
        infos = source.reader.infos
        copies = [e.theirs for e in source.entries if e.rule.copy and e.theirs in infos]
        came = export.Came(source.config, source.prefixes, copies)
    return Model(params, config, came, files)


def read_ours(
    folder: Path, config: TrainConfig, load: Callable[[], dict], options: Options
) -> Model:
    """Read what a model folder of ours holds beside its parameters, which `load` returns flat.

    Raises ConfigError for options that do not fit it, ValueError for a tokenizer that does not.
    """
    from vvlm_jax.models import variants
    from vvlm_jax.weights import export

    if options.image_size is not None:
        raise ConfigError(
            f"--image-size {options.image_size}: only models of other libraries are resized"
        )
    vision = choose(variants.VISION, config.model.vision, "model.vision")
    llm = choose(variants.LLAMA, config.model.llm, "model.llm")
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vision=vision, llm=llm)
    )
    came = export.read_origin(folder / CAME) if (folder / CAME).is_file() else None
    named = Path(config.data.tokenizer)
    files = [(name, folder / name) for name in BESIDE]
    files += [("tokenizer.json", file) for file in (named / "tokenizer.json", named)]
    beside: dict[str, Path] = {}
    for name, file in files:
        if file.is_file():
            beside.setdefault(name, file)
    params = load()
    speaks = options.part != "vision" and any(path.startswith("llm/") for path in params)
    if options.to == "model" and speaks and (file := beside.get("tokenizer.json")):
        _tokenizer(file, config.data.prompt, config.model, options)
    if options.to == "model" and options.dtype is not None:
        params = {path: x.astype(options.dtype) for path, x in params.items()}
        model = dataclasses.replace(config.model, dtype=options.dtype)
        config = dataclasses.replace(config, model=model)
    return Model(params, config, came, beside)


def only(model: Model, part: str | None) -> Model:
    """Return one tower of the model; None is all of it. Raise ConfigError when it has no such
    tower.
    """
    if part is None:
        return model
    params = {path: x for path, x in model.params.items() if path.startswith(f"{part}/")}
    if not params:
        raise ConfigError(f"--part {part}: the model has no such part")
    return dataclasses.replace(model, params=params, beside=model.beside if part == "llm" else {})


def write_ours(model: Model, folder: Path) -> None:
    """Make a model folder of ours with everything but the parameters."""
    from vvlm_jax.weights import export

    folder.mkdir()
    (folder / "config.json").write_text(to_json(model.config))
    if model.came is not None:
        export.write_origin(folder / CAME, model.came)
    for name, file in model.beside.items():
        shutil.copyfile(file, folder / name)
    if "tokenizer.json" not in model.beside and any(p.startswith("llm/") for p in model.params):
        print("no tokenizer.json was found; put one into the folder, or set data.tokenizer")


def write_foreign(model: Model, path: Path, options: Options, title: str = "writing") -> None:
    """Write a Hugging Face directory or a big_vision file, as `options.to` says.

    Args:
      title: of the progress line.

    Raises WeightsError when the model has no such form.
    """
    from vvlm_jax.weights import export

    progress = None

    def on_tensor(done, total):
        nonlocal progress
        progress = progress or Progress(title, total, "tensors")
        progress.update(done)

    sizes: ModelConfig = model.config.model
    if options.to == "npz":
        export.write_big_vision(path, model.params, sizes, options.dtype, on_tensor)
        if "vision/Transformer/encoder_norm/scale" not in model.params:
            print(
                "without Transformer/encoder_norm, which this tower lacks; big_vision's ViT has it"
            )
    else:
        path.mkdir()
        written = export.write_huggingface(
            path, model.params, sizes, source=options.source, came=model.came,
            dtype=options.dtype, tokens=_ids(model.beside.get("tokenizer.json")),
            on_tensor=on_tensor,
        )  # fmt: skip
        for name, file in model.beside.items():
            if not (path / name).exists():
                shutil.copyfile(file, path / name)
        towers = {path.partition("/")[0] for path in model.params}
        _report(written, options.source, len(towers) > 1)
    if progress:
        progress.close()


def names(tensors: list[str]) -> str:
    """Return the number of tensors and the first three names."""
    more = ", …" if len(tensors) > 3 else ""
    return f"{len(tensors)} tensors ({', '.join(tensors[:3])}{more})"


def _report(written, source: Path | None, whole: bool) -> None:
    """Say which tensors differ from our parameters."""
    if written.copied:
        print(f"copied from {source}: {names(written.copied)}")
    if written.rounded:
        print(f"rounded to the dtypes of {source}: {names(written.rounded)}")
    if written.made_up and whole:
        print(
            f"written as ones and zeros: {names(written.made_up)}; "
            "LlavaOnevisionForConditionalGeneration does not read them"
        )
    elif written.made_up:
        print(
            f"this tower has no final norm, written as ones and zeros: {names(written.made_up)}; "
            "its features are SiglipVisionModel's hidden_states[-1], and last_hidden_state is not "
            "meaningful; --source DIR takes norm, last blocks and head from the tower it came from"
        )


def _config_of(source, files: dict[str, Path], options: Options) -> TrainConfig:
    """Return the config of a foreign model, with the chat format of the tokenizer beside it."""
    model = source.model
    prompt = "chatml" if "llm" in source.parts and model.llm.qkv_bias else "llama3"
    reads = options.to == "model" and options.part != "vision"
    if reads and (file := files.get("tokenizer.json")):
        prompt = _tokenizer(file, "plain", model, options).family
    model = dataclasses.replace(model, dtype=options.dtype or model.dtype)
    return TrainConfig(model=model, data=DataConfig(prompt=prompt))


def _rounded(like: dict, dtype: str) -> str:
    """Return the dtypes of stored matrices that lose precision when multiplied in `dtype`."""
    matrices = (x for path, x in like.items() if path.endswith(("/kernel", "/embedding")))
    others = {str(x.dtype) for x in matrices} - {dtype}
    return "" if dtype == "float32" else " and ".join(sorted(others))


def _tokenizer(file: Path, prompt: str, model: ModelConfig, options: Options):
    """Return the tokenizer beside a language model. Raise ValueError when it cannot serve it."""
    from vvlm_jax.data import tokenizer

    newline = "none" if options.part else model.newline
    try:
        return tokenizer.load_for(file, prompt, newline, model.llm.vocab)
    except ValueError as e:
        raise ValueError(f"{e}; without the file, weights alone are converted") from None


def _ids(tokenizer_file: Path | None) -> dict[str, int]:
    """Return those ids that a Hugging Face config names and the tokenizer has."""
    from vvlm_jax.data import tokenizer

    if tokenizer_file is None:
        return {}
    special = tokenizer.special_ids(tokenizer_file)
    tokens = {"bos": tokenizer.BOS, "eos": tokenizer.EOT, "video": tokenizer.VIDEO}
    return {name: special[token] for name, token in tokens.items() if token in special}
