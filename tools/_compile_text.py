"""What `tools.compile` prints of one program."""

import math

from fitting.formatting import aligned
from vvlm_jax.compile.programs import GIB, Measured, parse_topology
from vvlm_jax.config import TrainConfig


def report(config: TrainConfig, args, measured: Measured) -> str:
    """A few lines and two small tables."""
    m, model = measured, config.model
    chips = math.prod(parse_topology(args.topology)[1])
    llm = model.llm if isinstance(model.llm, str) else f"a model of width {model.llm.width}"
    what = f"{args.program} of {llm}, {model.num_frames} frames x {model.tokens_per_frame} tokens"
    if args.program == "train":
        rows = config.batch_size // config.microbatches
        what += (
            f", batch {config.batch_size} in {config.microbatches} microbatches of {rows}, "
            f"remat {model.remat}"
        )
    lines = [f"{what}; {args.topology}, {chips} chips"]
    run = {"decode": "token", "train": "step"}.get(args.program, "run")
    if m.refusal:
        lines += ["", *_of_refusal(m.refusal), ""]
    else:
        rows = [(kind, f"{size / GIB:,.2f}") for kind, size in m.memory.items()]
        rows += [("needed", f"{m.needed / GIB:,.2f}"), ("HBM", f"{m.hbm / GIB:,.2f}")]
        lines += ["", aligned(("memory of a chip", "GiB"), rows)]
        rows = [
            (kind, f"{count:,}", f"{size / GIB:,.2f}")
            for kind, (count, size) in m.collectives.items()
        ]
        lines += [
            "",
            aligned((f"between chips, a {run}", "times", "GiB"), rows or [("none", "", "")]),
        ]
        kernels = f"{m.kernels} Pallas kernels in the program"
        scores = f"attention scores written out: {', '.join(m.scores)}" if m.scores else ""
        lines += ["", "; ".join(filter(None, (kernels, scores)))]
        lines += [f"XLA counts {m.xla_flops:.3g} FLOPs a chip: bodies of loops once, kernels not"]
    lines += [
        f"{m.flops:.4g} FLOPs a {run}, {m.flops / chips:.4g} a chip: exact, by vvlm_jax.flops "
        "(causal attention half, no recomputation)"
    ]
    lines += [f"lowered in {m.lower_s:.0f} s, compiled in {m.compile_s:.0f} s", verdict(m)]
    return "\n".join(lines)


def verdict(measured: Measured) -> str:
    """The last line."""
    m = measured
    if math.isnan(m.needed):
        return f"does not fit: more than {m.hbm / GIB:,.2f} GiB a chip"
    share = f"{m.needed / GIB:,.2f} of {m.hbm / GIB:,.2f} GiB a chip ({m.needed / m.hbm:.0%})"
    return f"fits: {share}" if m.fits else f"does not fit: {share}"


def _of_refusal(message: str) -> list[str]:
    """The compiler's own breakdown, without its repetitions."""
    kept = [line.rstrip() for line in message.splitlines() if line.strip()]
    return kept[:60]
