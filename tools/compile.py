"""Find whether a train step, a prefill or a decode fits TPUs, on a machine without TPUs.

Example:
    vvlm compile --config finetune --topology v5p:2x2x4 \\
        --set model.llm=llama3.1-8b microbatches=8

Compiles the program that would run with the TPU's own compiler, and prints the memory of one chip
by kind, what is sent between chips, and exact FLOPs. It does not measure speed.
Needs libtpu: pip install 'vvlm_jax[libtpu]', in a checkout pip install '.[libtpu]'
Exit code: 0 fits, 1 does not fit, 2 bad input.

Batches have the greatest length: every row is a video and data.max_text_tokens of text.
The table of Table 6:
    vvlm compile --config finetune --topology v5p:2x2x4 --sweep star --out runs/compile
chooses for each configuration the largest microbatch, then the least remat, that fits. A row takes
minutes; after an interruption the same command continues. Rows that do not fit are results, too:
the exit code is 0 once the table is complete.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import choose, validate
from vvlm_jax.devices import GIB, Topology, parse_topology
from vvlm_jax.override import override

from .arguments import read_options
from .common import die_in_one_line, load_config, shipped

SWEEPS = ("star", "isoflop")


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm compile`."""

    config: Path
    """A Python file that defines `config() -> TrainConfig`, or a shipped config: finetune."""
    topology: str
    """TPU generation and chips along each side, such as v5p:2x2x4, v5e:8x8 or v6e:4x4."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Overrides, such as model.llm=llama3.1-8b microbatches=8 'mesh=[["fsdp",8],["tensor",2]]'."""
    program: Literal["train", "encode", "prefill", "decode"] = "train"
    """`train` is the train step; the others belong to generation, on the mesh that `VideoVLM`
    makes.
    """
    prompts: int = 8
    """Prompts at a time in prefill and decode, rounded up to a multiple of the data-parallel
    chips.
    """
    hbm: float | None = None
    """GiB that a program may use of a chip, in place of the compiler's own limit (v5p 95.74, v5e
    15.75, v6e 31.25).
    """
    effort: float = 0.0
    """The compiler's effort, from -1 to 1. At -1 it is four times as fast, and makes another
    program, which needs less memory: train with JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 to get it.
    """
    sweep: Literal["star", "isoflop"] | None = None
    """Make the table of Table 6's star (13 configurations) or isoFLOP curves (49)."""
    out: Path = Path("runs/compile")
    """Folder where --sweep keeps every compile, one line each. Those of other topologies in it
    predict where to search first, which saves compiles.
    """
    table: bool = False
    """With --sweep: print the Markdown table from --out and compile nothing."""


def main(args: Args) -> None:
    """Compile, print, and exit with 1 when a program does not fit."""
    from vvlm_jax.compile import programs, table

    config = check(args)
    target = programs.Target(parse_topology(args.topology), args.hbm, args.effort)
    if args.sweep:
        configs = configurations(config, args.sweep)
        if args.table:
            choices = table.read(configs, target, args.out)
        else:
            related = [c for sweep in SWEEPS for c in configurations(config, sweep)]
            choices = table.run(args.sweep, configs, target, args.out, related)
        print(table.markdown(choices))
        return
    programs.prepare_environment()
    measured = programs.measure(config, target, args.program, args.prompts)
    print(report(config, target.topology, args.program, measured))
    if not measured.fits:
        sys.exit(1)


def check(args: Args) -> TrainConfig:
    """Return the config with its overrides. Raise ConfigError for invalid options, before anything
    slow.
    """
    from vvlm_jax.models.variants import LLAMA, VISION

    config = override(load_config(args.config, TrainConfig), args.set)
    choose(LLAMA, config.model.llm, "model.llm")
    validate(config, choose(VISION, config.model.vision, "model.vision"))
    if args.hbm is not None and not args.hbm > 0:
        raise ConfigError(f"--hbm {args.hbm}: must be above 0, in GiB")
    if not -1 <= args.effort <= 1:
        raise ConfigError(f"--effort {args.effort}: must be between -1 and 1")
    if args.prompts < 1:
        raise ConfigError(f"--prompts {args.prompts}: must be at least 1")
    if args.table and not args.sweep:
        raise ConfigError("--table: needs --sweep star or --sweep isoflop")
    if args.sweep and args.program != "train":
        raise ConfigError(f"--program {args.program}: --sweep compiles train steps only")
    return config


def configurations(base: TrainConfig, sweep: str) -> list[TrainConfig]:
    """Return the distinct configurations of a sweep of Table 6 on the base config, in its order."""
    from vvlm_jax.sweep import config as sweep_config

    table6 = dataclasses.replace(shipped(f"sweeps.{sweep}").sweep(), finetune=base)
    return list(sweep_config.configurations(table6).values())


def report(config: TrainConfig, topology: Topology, program: str, m) -> str:
    """Return what the command prints of one program: a few lines and two small tables."""
    from fitting.formatting import aligned

    lines = [f"{_described(config, program)}; {topology}, {topology.chips} chips", ""]
    run = {"decode": "token", "train": "step"}.get(program, "run")
    if m.refusal:  # the compiler lists what takes the memory, at length
        kept = [line.rstrip() for line in m.refusal.splitlines() if line.strip()]
        lines += [*kept[:60], ""]
    else:
        rows = [(kind, f"{size / GIB:,.2f}") for kind, size in m.memory.items()]
        rows += [("needed", f"{m.needed / GIB:,.2f}"), ("HBM", f"{m.hbm / GIB:,.2f}")]
        lines += [aligned(("memory of a chip", "GiB"), rows), ""]
        rows = [
            (kind, f"{count:,}", f"{size / GIB:,.2f}")
            for kind, (count, size) in m.collectives.items()
        ]
        head = (f"between chips, a {run}", "times", "GiB")
        lines += [aligned(head, rows or [("none", "", "")]), ""]
        kernels = f"{m.kernels} Pallas kernels in the program"
        scores = f"attention scores written out: {', '.join(m.scores)}" if m.scores else ""
        lines += ["; ".join(filter(None, (kernels, scores)))]
        lines += [f"XLA counts {m.xla_flops:.3g} FLOPs a chip: bodies of loops once, no kernels"]
    lines += [
        f"{m.flops:.4g} FLOPs a {run}, {m.flops / topology.chips:.4g} a chip: exact, by "
        "vvlm_jax.flops (causal attention half, no recomputation)"
    ]
    lines += [f"lowered in {m.lower_s:.0f} s, compiled in {m.compile_s:.0f} s", verdict(m)]
    return "\n".join(lines)


def _described(config: TrainConfig, program: str) -> str:
    model = config.model
    llm = model.llm if isinstance(model.llm, str) else f"a model of width {model.llm.width}"
    text = f"{program} of {llm}, {model.num_frames} frames x {model.tokens_per_frame} tokens"
    if program != "train":
        return text
    rows = config.batch_size // config.microbatches
    return (
        f"{text}, batch {config.batch_size} in {config.microbatches} microbatches of {rows}, "
        f"remat {model.remat}"
    )


def verdict(m) -> str:
    """Return the last line: whether the measured program fits, and in how much memory."""
    if math.isnan(m.needed):
        return f"does not fit: more than {m.hbm / GIB:,.2f} GiB a chip"
    share = f"{m.needed / GIB:,.2f} of {m.hbm / GIB:,.2f} GiB a chip ({m.needed / m.hbm:.0%})"
    return f"fits: {share}" if m.fits else f"does not fit: {share}"


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
