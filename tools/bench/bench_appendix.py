"""Compute the paper's Tables 2, 8 and 9 on a synthetic twin, timed.

Example:
    python -m tools.bench.bench_appendix --quick

Four forms x (5-fold cross-validation, star → isoFLOP, all runs), then the ablations of Tables 8 and
9, each of 100 resamples x 500 starts on 88 synthetic runs (1% noise; what it says is not a result).
The bar: at most 4 minutes on 2 cores, under 2 GiB. The ablations are repeated with free exponents,
as the paper has them, outside the time: there the mean over members breaks and the median does not.
"""

import dataclasses
import os
import time

from fitting import formatting
from fitting.config import FitConfig
from fitting.forms import PAPER_FORMS
from tools.arguments import read_options
from tools.bench.bench_frontier import peak_gib, twin
from tools.common import die_in_one_line
from vvlm_jax.progress import live

SPLIT = dict(train="sweep=star", test="sweep=isoflop", leave_out=False)


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_appendix`."""

    quick: bool = False
    """10 resamples x 50 starts."""


def main(args: Args) -> None:
    """Print the tables and how long they took."""
    import jax

    from fitting.validation_text import bagging_text

    config = FitConfig(resamples=10, starts=50) if args.quick else FitConfig()
    size = f"{config.resamples} resamples x {config.starts} starts"
    print(
        f"a synthetic twin of 88 runs, {size}, jax {jax.__version__} on "
        f"{jax.local_devices()[0].device_kind}, {os.cpu_count()} cores; compilation included\n"
    )
    rows = appendix(config)
    rows.append(
        ("all of it", *(sum(column) for column in zip(*[r[1:] for r in rows], strict=True)))
    )
    print("\n" + formatting.aligned(("", "seconds", "CPU seconds"), as_text(rows)))
    print(f"peak memory {peak_gib():.2f} GiB")
    print("\nTable 9 with free exponents (the paper's)\n")
    found, _, _ = timed("free exponents", ablate, config.replace(exponent_cap=None))
    print(bagging_text(found))


def appendix(config: FitConfig) -> list[tuple[str, float, float]]:
    """Print Tables 2, 8 and 9; return (name, wall seconds, CPU seconds) of each part."""
    from fitting.validation_text import bagging_text, comparison_text

    table2, *first = timed("Table 2", compare, config)
    print(f"Table 2\n\n{comparison_text(table2)}\n")
    tables89, *second = timed("Tables 8 and 9", ablate, config)
    print(f"Table 8\n\n{comparison_text(tables89.variations)}\n")
    print(f"Table 9\n\n{bagging_text(tables89)}")
    return [("Table 2", *first), ("Tables 8 and 9", *second)]


def compare(config: FitConfig, say):
    """Return the comparison of Table 2."""
    from fitting import validation

    forms = {name: config.replace(form=name) for name in PAPER_FORMS}
    return validation.compare(twin(), forms, on_progress=say, **SPLIT)


def ablate(config: FitConfig, say):
    """Return the ablations of Tables 8 and 9."""
    from fitting.ablations import ablate

    return ablate(twin(), config, on_progress=say, **SPLIT)


def timed(title: str, work, config: FitConfig):
    """Return (result, wall seconds, CPU seconds); show progress on a terminal."""
    wall, cpu = time.perf_counter(), time.process_time()
    with live(title) as say:
        found = work(config, say)
    return found, time.perf_counter() - wall, time.process_time() - cpu


def as_text(rows) -> list[tuple[str, ...]]:
    """Return rows with their numbers as text."""
    return [(name, *map(formatting.number, values)) for name, *values in rows]


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
