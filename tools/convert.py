"""Bring pretrained weights in, and take trained ones out: big_vision, Hugging Face, and back.

Examples:
    vvlm convert siglip-so400m-patch14-384 runs/siglip
    vvlm convert webli_en_so400m_384.npz:img runs/siglip --image-size 224
    vvlm convert runs/finetune runs/my-vlm --to hf --dtype bfloat16
    vvlm convert runs/siglip runs/siglip-hf --to hf --source siglip-so400m-patch14-384

SRC is a big_vision .npz (FILE.npz:img names a subtree), a Hugging Face directory of SigLIP, Llama,
Qwen2 or LlavaOnevision with safetensors, or a model folder of ours. DST becomes a model folder
(config.json, params/, tokenizer.json if there is one), which training starts from with
`init=[["vision", "DST"]]`; training also starts from SRC itself. With --to hf it becomes a Hugging
Face directory, with --to npz a big_vision file of the vision tower.

Every tensor is accounted for: the conversion fails with a list of those that are missing, unknown,
duplicate, or of a wrong shape or dtype. Nothing in SRC is executed.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .arguments import read_options
from .common import die_in_one_line


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm convert`."""

    src: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """Model to read."""
    dst: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """Folder or file to write; it must not exist yet."""
    to: Literal["model", "hf", "npz"] = "model"
    """A model folder of ours, a Hugging Face directory, or a big_vision .npz."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of all tensors, and of what a model folder computes; as in SRC by default."""
    image_size: int | None = None
    """Pixels a side that the tower will see; position embeddings are resized as in big_vision."""
    part: Literal["vision", "llm"] | None = None
    """Write this tower only."""
    source: Path | None = None
    """With --to hf: the directory the model came from. Its shards, header, dtypes and files are
    kept, and its tensors that we do not use (a text tower) copied.
    """


def main(args: Args) -> None:
    """Convert, and print what was written, left out and added."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing is computed
    from flax.traverse_util import flatten_dict, unflatten_dict

    from vvlm_jax import atomic
    from vvlm_jax.train import model_dir
    from vvlm_jax.weights import convert
    from vvlm_jax.weights.mapping import WeightsError

    options = convert.Options(args.to, args.dtype, args.image_size, args.part, args.source)
    convert.check(options, args.dst)
    try:
        if convert.is_ours(args.src):
            folder = Path(args.src)
            config = model_dir.read_config(folder)
            load = lambda: flatten_dict(model_dir.load_params(folder), sep="/")  # noqa: E731
            model = convert.read_ours(folder, config, load, options)
        else:
            model = convert.read_foreign(args.src, options)
        model = convert.only(model, args.part)
        args.dst.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(args.dst) as partial:
            if args.to == "model":
                convert.write_ours(model, partial)
                model_dir.save_params(partial, unflatten_dict(model.params, sep="/"))
            else:
                convert.write_foreign(model, partial, options, f"writing {args.dst}")
    except WeightsError as e:
        if details := str(e).split("\n")[1:]:
            print(*details, sep="\n", file=sys.stderr)
        raise
    count = sum(x.size for x in model.params.values())
    print(f"{args.dst}: {len(model.params)} parameters, {count:,} numbers")


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
