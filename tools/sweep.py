"""Plan a sweep of many runs: what every run is, what it takes, and what it costs.

Example:
    python -m tools.sweep plan configs/sweeps/star.py --device "TPU v5p" --mfu 0.5 --price 4.2

A sweep is a Python file with `sweep() -> SweepConfig`; configs/sweeps/ has Table 6.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tools._shared import die_in_one_line, load_config
from vvlm_jax.config import ConfigError, choose, override
from vvlm_jax.sweep import config as sweep_config
from vvlm_jax.sweep.config import SweepConfig

_SWEEP = tyro.conf.Positional[Path]
_SET = Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")]


@dataclasses.dataclass(frozen=True)
class Plan:
    """One row a run: x, n, inference cost, parameters, training FLOPs, device-hours, totals."""

    sweep: _SWEEP
    """A Python file that defines `sweep() -> SweepConfig`, such as configs/sweeps/star.py."""
    set: _SET = ()
    """Overrides, such as finetune.batch_size=128 text_tokens=200."""
    device: str = "NVIDIA H100"
    """Whose peak bfloat16 rate counts."""
    mfu: float = 0.4
    """Share of the peak that training reaches."""
    price: float | None = None
    """Of one device for an hour, in any currency."""
    topology: str | None = None
    """Such as v5p:2x2x4: say which runs fit it, as `tools.compile --sweep` found."""
    compiled: Path = Path("runs/compile")
    """Where tools.compile kept what it found."""
    csv: bool = False
    """Print a header and one row a run, nothing else."""
    json: bool = False
    """Print rows, stage 1, totals and assumptions as JSON."""


def plan(args: Plan) -> None:
    """Prints what a sweep will take."""
    from tools import _sweep_text as text
    from vvlm_jax import devices
    from vvlm_jax.sweep import plan

    if args.csv and args.json:
        raise ConfigError("--csv and --json: choose one")
    config = load(args.sweep, args.set)
    known = {name: devices.peak_flops(name) for name in devices.known_devices()}
    peak = devices.peak_flops(args.device) or choose(known, args.device, "--device")
    if not 0 < args.mfu <= 1:
        raise ConfigError(f"--mfu {args.mfu:g}: must be a share above 0, at most 1")
    if args.price is not None and not args.price > 0:
        raise ConfigError(f"--price {args.price:g}: must be above 0")
    fits = {}
    if args.topology:
        from tools._compile_sweep import known_fits

        fits = known_fits(config, args.topology, args.compiled)
    rate = dict(peak=peak, mfu=args.mfu, price=args.price)
    rows = plan.rows(config, inference_cost(config), fits=fits, **rate)
    stage_1 = plan.stage_1_rows(config, **rate)
    totals, assumed = plan.totals(rows, stage_1), {"device": args.device, **rate}
    if args.csv:
        text.plan_csv(rows)
    else:
        (text.plan_json if args.json else text.plan_text)(rows, stage_1, totals, assumed)


def load(path: Path, overrides=()) -> SweepConfig:
    """A sweep's file with overrides, checked. ConfigError in one line."""
    config = override(load_config(path, SweepConfig, "sweep", ""), overrides)
    sweep_config.check(config, _data_size(config))
    return config


def _data_size(config: SweepConfig) -> int | None:
    """Examples there are to finetune on; None when that cannot be known here."""
    if config.data_size is not None:
        return config.data_size
    if not Path(config.finetune.data.annotations).is_file():
        return None
    from vvlm_jax.data.datasets import read_conversations

    return len(read_conversations(config.finetune.data.annotations))


def inference_cost(config: SweepConfig):
    """Equation 1 with the sweep's constants, or its encoder's own: [(x_N, x_T, x_V)] → FLOPs."""
    from fitting.cost import CostConstants
    from vvlm_jax import flops
    from vvlm_jax.sweep.plan import sizes

    vision, _ = sizes(config.finetune)
    x_M, x_W = config.vision_params, config.features_per_frame
    x_M = flops.vision_params(vision) if x_M is None else x_M
    return CostConstants(x_M, vision.num_patches if x_W is None else x_W)


COMMANDS = {Plan: plan}


def main(args: Plan) -> None:
    """Runs the command that was asked for."""
    COMMANDS[type(args)](args)


def cli() -> None:
    """Reads the command line and runs the command."""
    kinds = {kind.__name__.lower(): kind for kind in COMMANDS}
    main(tyro.extras.subcommand_cli_from_dict(kinds, description=__doc__))


if __name__ == "__main__":
    die_in_one_line(cli)
