"""Bring pretrained weights in, and take trained ones out: big_vision, Hugging Face, and back.

Examples:
    python -m tools.convert siglip-so400m-patch14-384 runs/siglip
    python -m tools.convert webli_en_so400m_384.npz:img runs/siglip --image-size 224
    python -m tools.convert runs/finetune out/my-vlm --to hf --dtype bfloat16
    python -m tools.convert runs/siglip out/siglip --to hf --source siglip-so400m-patch14-384

SRC is a big_vision .npz (FILE.npz:img names a subtree), a Hugging Face directory of SigLIP, Llama,
Qwen2 or LlavaOnevision with safetensors, or a model folder of ours. DST becomes a model folder
(config.json, params/, tokenizer.json if there is one), which training starts from with
`init=[["vision", "DST"]]`; training also starts from SRC itself. With --to hf it becomes a Hugging
Face directory, with --to npz a big_vision file of the vision tower.

Every tensor is accounted for: one that is missing, unknown, twice there, or of a wrong shape or
dtype ends the conversion with a list. Nothing in SRC is executed.
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError, DataConfig, ModelConfig, TrainConfig
from vvlm_jax.config_check import choose
from vvlm_jax.override import to_json
from vvlm_jax.progress import Progress

from .common import die_in_one_line

CAME = "came_from.json"
"""In a converted folder: config.json and prefixes of the Hugging Face directory it came from."""
BESIDE = ("tokenizer.json", "generation_config.json")
"""Files that go with a language model, byte for byte."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.convert`."""

    src: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """What to read."""
    dst: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """What to write; it must not be there yet."""
    to: Literal["model", "hf", "npz"] = "model"
    """A model folder of ours, a Hugging Face directory, or a big_vision .npz."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of all tensors, and of what a model folder computes; as in SRC by default."""
    image_size: int | None = None
    """Pixels a side that the tower will see; position embeddings are resized as in big_vision."""
    part: Literal["vision", "llm"] | None = None
    """Write this tower alone."""
    source: Path | None = None
    """With --to hf: the directory the model came from. Its shards, header, dtypes and files are
    kept, and its tensors that are not ours (a text tower) copied.
    """


@dataclasses.dataclass(frozen=True)
class _Model:
    """A model on its way: flat parameters, and what its folder says."""

    params: dict
    config: TrainConfig
    came: tuple | None
    """An `export.Came`."""
    beside: dict[str, Path]
    """Of `BESIDE`, those there are."""


def main(args: Args) -> None:
    """Converts and prints what was written, left out and added."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed
    from vvlm_jax.weights.mapping import WeightsError

    _refuse_existing(args)
    try:
        model = _only(_read(args), args.part)
        args.dst.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(args.dst) as partial:
            _write(model, partial, args)
    except WeightsError as e:
        if details := str(e).split("\n")[1:]:
            print(*details, sep="\n", file=sys.stderr)
        raise
    count = sum(x.size for x in model.params.values())
    print(f"{args.dst}: {len(model.params)} parameters, {count:,} numbers")


def _refuse_existing(args: Args) -> None:
    if (args.dst.is_dir() and any(args.dst.iterdir())) or args.dst.is_file():
        raise ConfigError(f"{args.dst}: already there; remove it or choose another DST")
    if args.to == "npz" and args.dst.suffix != ".npz":
        raise ConfigError(f"{args.dst}: with --to npz, DST must end in .npz")
    if args.image_size is not None and args.image_size < 1:
        raise ConfigError(f"--image-size {args.image_size}: must be at least one patch")
    if args.source is not None and args.to != "hf":
        raise ConfigError(f"--source {args.source}: only --to hf writes over a source")


def _read(args: Args) -> _Model:
    from vvlm_jax.weights import export, sources

    if not sources.is_foreign(args.src) and (Path(args.src) / "params").is_dir():
        return _read_ours(Path(args.src), args)
    source = sources.open_source(args.src, args.image_size)
    if source.left_out:
        print(f"left out: {_names(source.left_out)}")
    files = {name: Path(args.src) / name for name in BESIDE if "llm" in source.parts}
    files = {name: file for name, file in files.items() if file.is_file()}
    config = _as_imported(source.model, source.parts, files, args)
    like = sources.like(source, args.dtype)
    if args.to == "model" and (others := _rounded(like, config.model.dtype)):
        print(
            f"stored in {others} and run in {config.model.dtype}, as training and kernels know no "
            "other narrow dtype; --dtype float32 runs them without rounding"
        )
    num = len([e for e in source.entries if not e.rule.copy])
    progress = Progress(f"reading {args.src}", num, "tensors")
    params = sources.load(source, like, progress.update)
    progress.close()
    came = None
    if source.config is not None:
        names = source.reader.infos
        copies = [e.theirs for e in source.entries if e.rule.copy and e.theirs in names]
        came = export.Came(source.config, source.prefixes, copies)
    return _Model(params, config, came, files)


def _as_imported(model: ModelConfig, parts, files: dict[str, Path], args: Args) -> TrainConfig:
    """The config of a model of others, whose chat format is that of the tokenizer beside it."""
    prompt = "chatml" if "llm" in parts and model.llm.qkv_bias else "llama3"
    if args.to == "model" and args.part != "vision" and (file := files.get("tokenizer.json")):
        prompt = _tokenizer(file, "plain", model, args).family
    model = dataclasses.replace(model, dtype=args.dtype or model.dtype)
    return TrainConfig(model=model, data=DataConfig(prompt=prompt))


def _rounded(like: dict, dtype: str) -> str:
    """Dtypes of stored matrices that lose something where they are multiplied in `dtype`."""
    matrices = (x for path, x in like.items() if path.endswith(("/kernel", "/embedding")))
    others = {str(x.dtype) for x in matrices} - {dtype}
    return "" if dtype == "float32" else " and ".join(sorted(others))


def _tokenizer(file: Path, prompt: str, model: ModelConfig, args: Args):
    """The tokenizer that goes with a language model. ValueError when it cannot serve it."""
    from vvlm_jax.data import tokenizer

    newline = "none" if args.part else model.newline
    try:
        return tokenizer.load_for(file, prompt, newline, model.llm.vocab)
    except ValueError as e:
        raise ValueError(f"{e}; without the file, weights alone are converted") from None


def _read_ours(folder: Path, args: Args) -> _Model:
    from flax.traverse_util import flatten_dict

    from vvlm_jax.models import variants
    from vvlm_jax.train import model_dir
    from vvlm_jax.weights import export

    if args.image_size is not None:
        raise ConfigError(
            f"--image-size {args.image_size}: only what is read from other libraries is resized"
        )
    config = model_dir.read_config(folder)
    vision = choose(variants.VISION, config.model.vision, "model.vision")
    llm = choose(variants.LLAMA, config.model.llm, "model.llm")
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vision=vision, llm=llm)
    )
    came = export.read_came(folder / CAME) if (folder / CAME).is_file() else None
    named = Path(config.data.tokenizer)
    files = [(name, folder / name) for name in BESIDE]
    files += [("tokenizer.json", file) for file in (named / "tokenizer.json", named)]
    beside: dict[str, Path] = {}
    for name, file in files:
        if file.is_file():
            beside.setdefault(name, file)
    params = flatten_dict(model_dir.load_params(folder), sep="/")
    speaks = args.part != "vision" and any(path.startswith("llm/") for path in params)
    if args.to == "model" and speaks and (file := beside.get("tokenizer.json")):
        _tokenizer(file, config.data.prompt, config.model, args)
    if args.to == "model" and args.dtype is not None:
        params = {path: x.astype(args.dtype) for path, x in params.items()}
        model = dataclasses.replace(config.model, dtype=args.dtype)
        config = dataclasses.replace(config, model=model)
    return _Model(params, config, came, beside)


def _only(model: _Model, part: str | None) -> _Model:
    if part is None:
        return model
    params = {path: x for path, x in model.params.items() if path.startswith(f"{part}/")}
    if not params:
        raise ConfigError(f"--part {part}: the model has no such part")
    return dataclasses.replace(model, params=params, beside=model.beside if part == "llm" else {})


def _write(model: _Model, partial: Path, args: Args) -> None:
    if args.to == "model":
        _write_ours(model, partial)
        return
    from vvlm_jax.weights import export

    progress = None

    def on_tensor(done, total):
        nonlocal progress
        progress = progress or Progress(f"writing {args.dst}", total, "tensors")
        progress.update(done)

    sizes: ModelConfig = model.config.model
    if args.to == "npz":
        export.write_big_vision(partial, model.params, sizes, args.dtype, on_tensor)
        if "vision/Transformer/encoder_norm/scale" not in model.params:
            print(
                "without Transformer/encoder_norm, which this tower lacks; big_vision's ViT has it"
            )
    else:
        partial.mkdir()
        written = export.write_huggingface(
            partial, model.params, sizes, source=args.source, came=model.came, dtype=args.dtype,
            tokens=_ids(model.beside.get("tokenizer.json")), on_tensor=on_tensor,
        )  # fmt: skip
        for name, file in model.beside.items():
            if not (partial / name).exists():
                shutil.copyfile(file, partial / name)
        _report(written, args.source, len({path.partition("/")[0] for path in model.params}) > 1)
    if progress:
        progress.close()


def _report(written, source: Path | None, whole: bool) -> None:
    """Says what is not as it was in our parameters."""
    if written.copied:
        print(f"copied from {source}: {_names(written.copied)}")
    if written.rounded:
        print(f"rounded to the dtypes of {source}: {_names(written.rounded)}")
    if written.made_up and whole:
        print(
            f"written as ones and zeros: {_names(written.made_up)}; "
            "LlavaOnevisionForConditionalGeneration does not read them"
        )
    elif written.made_up:
        print(
            f"this tower has no final norm, written as ones and zeros: {_names(written.made_up)}; "
            "its features are SiglipVisionModel's hidden_states[-1], and last_hidden_state is not "
            "meaningful; --source DIR takes norm, last blocks and head from the tower it came from"
        )


def _write_ours(model: _Model, folder: Path) -> None:
    from flax.traverse_util import unflatten_dict

    from vvlm_jax.train import model_dir
    from vvlm_jax.weights import export

    folder.mkdir()
    (folder / "config.json").write_text(to_json(model.config))
    if model.came is not None:
        export.write_came(folder / CAME, model.came)
    for name, file in model.beside.items():
        shutil.copyfile(file, folder / name)
    if "tokenizer.json" not in model.beside and any(
        path.startswith("llm/") for path in model.params
    ):
        print("no tokenizer.json there; put one into the folder, or set data.tokenizer")
    model_dir.save_params(folder, unflatten_dict(model.params, sep="/"))


def _ids(tokenizer_file: Path | None) -> dict[str, int]:
    """Ids that a Hugging Face config names, as far as the tokenizer has them."""
    from vvlm_jax.data import tokenizer

    if tokenizer_file is None:
        return {}
    special = tokenizer.special_ids(tokenizer_file)
    names = {"bos": tokenizer.BOS, "eos": tokenizer.EOT, "video": tokenizer.VIDEO}
    return {name: special[token] for name, token in names.items() if token in special}


def _names(names: list[str]) -> str:
    return f"{len(names)} tensors ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))


if __name__ == "__main__":
    cli()
