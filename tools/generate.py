"""Ask a trained or imported model about videos.

Example:
    vvlm generate --model runs/finetune --video clip.mp4 --prompt "What happens?"

Several --prompt are asked of the same video, which is encoded once; several --video (or images)
stand in every prompt together; without one the prompt is text alone. --temperature 0 takes the
likeliest tokens; above 0 tokens are drawn, and --seed repeats a draw.
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Annotated

import tyro

from .arguments import read_options
from .common import die_in_one_line


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm generate`."""

    model: Path
    """Folder of a finished training stage or of an imported model."""
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """What to ask; may be given several times."""
    video: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """A video, a folder of frames or an image; may be given several times."""
    frames: int | None = None
    """Frames a video; the model's own by default."""
    tokens_per_frame: int | None = None
    """Visual tokens a frame, a perfect square; the model's own by default."""
    max_tokens: int = 256
    """Length at which a reply is cut."""
    temperature: float = 0.0
    """0 takes the likeliest token; above 0 tokens are drawn."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that hold this share of the probability."""
    seed: int = 0
    """Seed of the draws."""
    dtype: str | None = None
    """Compute dtype, such as float32, in place of the model's own."""
    stream: bool = False
    """Print replies while they are written."""


def main(args: Args) -> None:
    """Print the replies; several are printed each below its prompt."""
    if not args.prompt:
        raise ValueError('nothing to ask: give --prompt "…"')
    try:
        _answer(args)
    except ValueError as e:
        raise ValueError(_OPTION.sub(lambda m: _FLAGS[m[1]] + " ", f"{e}")) from e


_FLAGS = {
    "num_frames": "--frames",
    "tokens_per_frame": "--tokens-per-frame",
    "max_tokens": "--max-tokens",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "seed": "--seed",
    "model.dtype": "--dtype",
}
_OPTION = re.compile(rf"(?<![\w.])({'|'.join(_FLAGS)}) = ")
"""Options as `VideoVLM.generate` names them in errors, replaced by the flags that users gave."""


def _answer(args: Args) -> None:
    from vvlm_jax import VideoVLM

    model = VideoVLM.load(args.model, dtype=args.dtype)
    options = dict(
        num_frames=args.frames,
        tokens_per_frame=args.tokens_per_frame,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    videos, several = [args.video] * len(args.prompt), len(args.prompt) > 1
    if not args.stream:
        for prompt, reply in zip(
            args.prompt, model.generate(videos, args.prompt, **options), strict=True
        ):
            print(f"> {prompt}\n{tame(reply)}\n" if several else tame(reply))
        return
    shown = -1 if several else 0
    for index, piece in model.generate(videos, args.prompt, stream=True, batch_size=1, **options):
        while shown < index:
            shown += 1
            print("\n\n" * (shown > 0) + f"> {args.prompt[shown]}")
        print(tame(piece), end="", flush=True)
    print()


def tame(text: str) -> str:
    """Replace control characters, which a terminal would obey, if the output is one."""
    if not sys.stdout.isatty():
        return text
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
