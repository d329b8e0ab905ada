"""The subcommands `status`, `retry`, `cancel` and `collect`, which read or change a store."""

import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from vvlm_jax.config import ConfigError
from vvlm_jax.progress import printable

from .common import check_is_here

STORE = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="STORE")]
_NAMES = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME ...")]


@dataclasses.dataclass(frozen=True)
class Status:
    """Show progress, failures and the time left, and of a store launched on Slurm its states."""

    store: STORE
    """Folder of a sweep."""
    all: bool = False
    """Show every run of a large sweep, also those that are done or waiting."""
    jobs: bool = False
    """List jobs, one a line: phase and name."""
    watch: bool = False
    """Show it again every few seconds, until everything has ended."""


@dataclasses.dataclass(frozen=True)
class Retry:
    """Make failed and cancelled jobs ready again; a launch then does them."""

    store: STORE
    """Folder of a sweep."""
    names: _NAMES = ()
    """Runs or jobs, * for any text; without names all that failed or were cancelled."""


@dataclasses.dataclass(frozen=True)
class Cancel:
    """Cancel jobs; workers that are running them stop."""

    store: STORE
    """Folder of a sweep."""
    names: _NAMES = ()
    """Runs or jobs, at least one, * for any text: '*' is everything that is not done."""


@dataclasses.dataclass(frozen=True)
class Collect:
    """Write the table of runs, as CSV and Parquet, and list the scores that are missing."""

    store: STORE
    """Folder of a sweep."""
    out: Path | None = None
    """A .csv or .parquet file; by default runs.csv and, where pyarrow is installed, runs.parquet
    in the store."""


def status(args: Status) -> None:
    """Print a table of runs, again and again with --watch."""
    from vvlm_jax.sweep import clusters, text
    from vvlm_jax.sweep.status import overview
    from vvlm_jax.sweep.store.store import Store

    store = Store.open(args.store)
    while True:
        start, states = time.monotonic(), store.states()
        if args.jobs:
            lines = text.job_lines(states)
        else:
            found, slurm = overview(store, states), clusters.slurm_states(store)
            lines = text.status(store.name, found, args.all, slurm)
        if args.watch and not args.jobs and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")
        print("\n".join(map(printable, lines)), flush=True)
        if not args.watch or all(state.is_final for state in states.values()):
            return
        least = 10.0 if clusters.is_on_slurm(store) else 2.0  # many users share a controller
        time.sleep(max(least, 10 * (time.monotonic() - start)))


def retry(args: Retry) -> None:
    """Make jobs ready again."""
    from vvlm_jax.sweep.store.store import Store

    print(f"{Store.open(args.store).change(args.names or ('*',), 'retry')} jobs ready again")


def cancel(args: Cancel) -> None:
    """Cancel jobs that are not done."""
    from vvlm_jax.sweep import clusters
    from vvlm_jax.sweep.store.store import Store

    if not args.names:
        raise ConfigError("cancel: name runs or jobs; '*' is everything that is not done")
    store = Store.open(args.store)
    count = store.change(args.names, "cancel")
    clusters.cancel_queued(store)
    print(f"{count} jobs cancelled")


def collect(args: Collect) -> None:
    """Write the table and list what is missing."""
    from fitting.runs import write_runs
    from vvlm_jax.sweep import table
    from vvlm_jax.sweep.store.store import Store

    out, has_parquet = args.out, importlib.util.find_spec("pyarrow") is not None
    if out:
        check_is_here("--out", out)
        if out.suffix not in (".csv", ".parquet"):
            raise ConfigError(f"--out {out}: must end with .csv or .parquet")
        if out.suffix == ".parquet" and not has_parquet:
            raise ConfigError(f"--out {out}: needs pyarrow: pip install pyarrow; or use .csv")
    store = Store.open(args.store)
    found = table.gather(store)
    for line in found.missing_lines():
        print(printable(line), file=sys.stderr)
    names = [out.name] if out else ["runs.csv", *["runs.parquet"] * has_parquet]
    for line in table.write(found, out.parent if out else store.path, names, write_runs):
        print(line)
    if not (out or has_parquet):
        print("no runs.parquet: pip install pyarrow to have one too", file=sys.stderr)
