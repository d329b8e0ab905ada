"""`vvlm sweep plan`: what a sweep costs before it runs."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated

import tyro

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import choose
from vvlm_jax.override import override
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import SweepConfig

from .common import load_config

SWEEP = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SWEEP")]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Show x, n, inference cost, parameters, training FLOPs and device-hours of every run."""

    sweep: SWEEP
    """A Python file that defines `sweep() -> SweepConfig`, or a shipped one: sweeps/star."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Overrides, such as finetune.batch_size=128 text_tokens=200."""
    device: str = "NVIDIA H100"
    """The device whose peak bfloat16 rate counts."""
    mfu: float = 0.4
    """Share of the peak that training reaches."""
    price: float | None = None
    """Price of one device for an hour, in any currency; adds a column `cost`."""
    topology: str | None = None
    """Such as v5p:2x2x4: a column `fits` says whether the train step fits these chips, as
    `vvlm compile --sweep` found; ? where it was not compiled."""
    compiled: Path = Path("runs/compile")
    """Where vvlm compile kept its results."""
    csv: bool = False
    """Print a header and one row a run, nothing else."""
    json: bool = False
    """Print rows, stage 1, totals and assumptions as JSON."""


def plan(args: Plan) -> None:
    """Print the cost of a sweep."""
    from fitting.cost import CostConstants
    from vvlm_jax import devices
    from vvlm_jax.sweep import plan, text

    if args.csv and args.json:
        raise ConfigError("--csv and --json: choose one")
    config = plan.with_counts(load(args.sweep, args.set))
    known = {name: devices.peak_flops(name) for name in devices.known_devices()}
    peak = devices.peak_flops(args.device) or choose(known, args.device, "--device")
    if not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu {args.mfu:g}: must be a share above 0, at most 1")
    if args.price is not None and not 0 < args.price < math.inf:
        raise ConfigError(f"--price {args.price:g}: must be above 0")
    fits = {}
    if args.topology:
        from vvlm_jax.compile.table import known_fits

        fits = known_fits(sweep_config.configurations(config), args.topology, args.compiled)
    rate = dict(peak=peak, mfu=args.mfu, price=args.price)
    rows = plan.rows(config, CostConstants(**plan.encoder(config)), fits=fits, **rate)
    stage_1 = plan.stage_1_rows(config, **rate)
    if config.pretrain is not None and not stage_1:
        print(
            "warning: stage 1 is not counted: pretrain.data.num_examples is not set, and "
            f"{config.pretrain.data.annotations} is not here",
            file=sys.stderr,
        )
    if args.csv:
        print(text.plan_csv(rows), end="")
        return
    write = text.plan_json if args.json else text.plan_text
    assumed = {"device": args.device, **rate, "topology": args.topology}
    print(write(rows, stage_1, plan.totals(rows, stage_1), assumed), end="")


def load(path: Path, overrides=()) -> SweepConfig:
    """Read a sweep's file, with overrides, and check it. Raises ConfigError in one line."""
    from vvlm_jax.sweep.plan import data_size

    config = override(load_config(path, SweepConfig, "sweep", ""), overrides)
    sweep_config.check(config, data_size(config))
    return config
