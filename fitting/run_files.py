"""Default columns of a table of runs, and how such a table is written as CSV or Parquet."""

import csv
from pathlib import Path

from fitting.config import FACTORS
from fitting.readers import plain

REQUIRED = ("run_id", "sweep", *FACTORS, "num_examples", "metric", "score")
"""Columns that a table of runs with the default columns needs."""
COLUMNS = (*REQUIRED[:-2], "seed", "protocol", "metric", "score", "score_se")
"""All default columns, in the order in which they are written: `seed` of the training run, the
`protocol` of the evaluation (such as 'questions' or 'lmms-eval-0.3.0'), and `score_se`, the
standard error of the score in the score's unit. The three may be missing or empty."""
OPTIONAL = tuple(name for name in COLUMNS if name not in REQUIRED)


def write_csv(path: Path, records: list[dict]) -> None:
    """Write rows with the keys `COLUMNS` as a CSV, scores with four decimals, None as empty."""
    columns = {name: [row[name] for row in records] for name in COLUMNS}
    for name in (*FACTORS, "num_examples"):
        columns[name] = [plain(value) for value in columns[name]]
    for name in ("score", "score_se"):
        columns[name] = [None if value is None else f"{value:.4f}" for value in columns[name]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(zip(*columns.values(), strict=True))


def write_parquet(path: Path, records: list[dict]) -> None:
    """Write the same as a Parquet file with types: seed is a whole number, None is null.

    Raises ValueError when pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: needs pyarrow: pip install pyarrow; or give a CSV") from None
    kinds = dict.fromkeys(("run_id", "sweep", "protocol", "metric"), pyarrow.string())
    kinds["seed"] = pyarrow.int64()
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in COLUMNS])
    rounded = [
        row | {k: round(row[k], 4) for k in ("score", "score_se") if row[k] is not None}
        for row in records
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rounded, schema=schema), path)
