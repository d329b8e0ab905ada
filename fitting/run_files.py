"""Files of the table of runs, CSV and Parquet, as texts: `fitting/runs.py` gives them a meaning."""

import csv
from collections.abc import Iterator
from pathlib import Path

from fitting.config import FACTORS

REQUIRED = ("run_id", "sweep", *FACTORS, "num_examples", "metric", "score")
"""Columns that a table of runs with the default columns needs."""
COLUMNS = (*REQUIRED[:-2], "seed", "protocol", "metric", "score", "score_se")
"""All default columns, in the order in which they are written: `seed` of the training run, the
`protocol` of the evaluation (such as 'questions' or 'lmms-eval-0.3.0'), and `score_se`, the
standard error of the score in the score's unit. The three may be missing or empty."""
OPTIONAL = tuple(name for name in COLUMNS if name not in REQUIRED)


def read_csv(path) -> tuple[list[str], list[int], list[list[str]], list[str]]:
    """Return the header, the line number and the stripped texts of each record, and notes.

    Raises:
      ValueError: one line, for a file that is no table; names the file and the line.
      FileNotFoundError: one line.
    """
    numbers, comments, lines, records = [], [], [], []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(_content(file, numbers, comments))
            for record in reader:
                lines.append(numbers[reader.line_num - 1])
                records.append([value.strip() for value in record])
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a folder; a CSV file of runs is needed") from None
    except OSError as e:
        raise ValueError(f"{path}: cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text ({e.reason}); save it as CSV UTF-8") from None
    except csv.Error as e:
        raise ValueError(f"{path}, line {numbers[-1]}: not CSV: {e}") from None
    if not records:
        raise ValueError(f"{path}: empty; the first line must name the columns")
    header = records[0]
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path}, line {lines[0]}: column {name!r} appears twice")
    for mark, what in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise ValueError(f"{path}: columns are parted by {what}; save it with commas")
    if len(records) == 1:
        raise ValueError(f"{path}: no runs; at least one row is needed below the column names")
    for row, (line, record) in enumerate(zip(lines[1:], records[1:], strict=True), start=1):
        if len(record) != len(header):
            raise ValueError(
                f"{path}, row {row} (line {line}): {len(record)} values for {len(header)} columns"
            )
    below, notes = [number for number in comments if number > lines[0]], []
    if below:
        verb = "lines that start with # were" if len(below) > 1 else "line that starts with # was"
        notes.append(f"{path}: {len(below)} {verb} passed over, the first is line {below[0]}")
    return header, lines[1:], records[1:], notes


def read_parquet(path) -> tuple[list[str], list[int], list[list[str]], list[str]]:
    """Return the same of a Parquet file; a row's number stands for its line. Raises likewise."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path}: needs pyarrow: pip install pyarrow; or give a CSV") from None
    try:
        columns = parquet.read_table(path).to_pydict()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (pyarrow.ArrowException, OSError) as e:
        raise ValueError(f"{path}: not Parquet: {str(e).splitlines()[0]}") from None
    texts = [["" if v is None else str(v).strip() for v in values] for values in columns.values()]
    records = [list(record) for record in zip(*texts, strict=True)]
    if not records:
        raise ValueError(f"{path}: no runs; at least one row is needed below the column names")
    return list(columns), list(range(1, len(records) + 1)), records, []


def _content(file, numbers: list[int], comments: list[int]) -> Iterator[str]:
    """Yield lines that are neither comments nor blank; append their numbers, and those of
    comments, to the lists.
    """
    for number, line in enumerate(file, start=1):
        if line.lstrip().startswith("#"):
            comments.append(number)
        elif line.strip():
            numbers.append(number)
            yield line


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


def plain(value) -> str:
    """Return a number with all its digits, integers without a point."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)
