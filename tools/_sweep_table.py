"""`tools.sweep collect`: the table of runs as files."""

import contextlib
import csv
import dataclasses
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.storage.bucket import Key
from vvlm_jax.sweep.status import Collected, collect
from vvlm_jax.sweep.store.store import Store

from .common import check_is_here, printable


def check(out: Path | None) -> None:
    """ConfigError for a file that cannot be written here."""
    if out:
        check_is_here("--out", out)
    if out and out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out}: must end with .csv or .parquet")
    if out and out.suffix == ".parquet" and not _has_parquet():
        raise ConfigError(f"--out {out}: needs pyarrow: pip install pyarrow; or use .csv")


def gather(store: Store) -> Collected:
    """The scores there are, to four decimals, sorted by run and metric; those that are missing are
    listed. Files and reports are all made of these, and so the same.

    Raises ConfigError when there are none.
    """
    found = collect(store, store.states())
    for what, why in found.missing:
        print(printable(f"missing: {what}: {why}"), file=sys.stderr)
    if not found.rows:
        raise ConfigError(f"{store.path}: no run has a score yet")
    rows = [
        {**row, "score": _rounded(row["score"]), "score_se": _rounded(row["score_se"])}
        for row in found.rows
    ]
    rows.sort(key=lambda row: (row["run_id"], row["metric"]))
    return dataclasses.replace(found, rows=rows)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def write(store: Store, out: Path | None) -> None:
    """Writes `out`, or both kinds into the store, as `gather` finds them. Scores of milestones, if
    there are any, go into milestones.csv beside it.
    """
    from fitting.runs import write_runs

    found = gather(store)
    folder = out.parent if out else store.path
    if out:
        folder.mkdir(parents=True, exist_ok=True)
    with _written_into(folder) as here:
        for name in [out.name] if out else ["runs.csv", "runs.parquet"]:
            if name.endswith(".csv"):
                write_runs(here / name, found.rows)
            elif _has_parquet():
                _write_parquet(here / name, found.rows)
            else:
                print("no runs.parquet: pip install pyarrow to have one too", file=sys.stderr)
                continue
            print(f"{folder / name}: {len(found.rows)} scores, {len(found.missing)} missing")
        if found.milestones:
            _write_csv(here / "milestones.csv", found.milestones)
            early = len(found.milestones)
            print(f"{folder / 'milestones.csv'}: {early} scores before the end of a run")


@contextlib.contextmanager
def _written_into(folder: Path | Key) -> Iterator[Path]:
    """A folder to write in, whose files go up when the folder is a bucket's."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory() as here:
        yield Path(here)
        for file in Path(here).iterdir():
            folder.bucket.upload(file, folder / file.name)


def _write_csv(file: Path, rows: list[dict]) -> None:
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)  # of a task that could not be scored: empty
    partial.replace(file)


def _has_parquet() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def _write_parquet(file: Path, rows: list[dict]) -> None:
    """The rows of the CSV, in its order, with types."""
    import pyarrow
    from pyarrow import parquet

    from fitting.runs import COLUMNS

    kinds = dict.fromkeys(("run_id", "sweep", "protocol", "metric"), pyarrow.string())
    kinds["seed"] = pyarrow.int64()
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in COLUMNS])
    partial = file.with_name(f"{file.name}.partial")
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), partial)
    partial.replace(file)
