"""Read a table of texts from a file or from a data frame; `fitting/runs.py` gives it a meaning.

Files: CSV (`.gz` too), Parquet with pyarrow, `.xlsx`, `.xlsm`, `.xls` and `.ods` with
python-calamine. A first line `sep=;`, as Excel writes it, names the mark between columns.

A line that starts with # is a comment. Below the header there is one exception, for tables whose
names all start with #: where no row starts otherwise, a line is a run if it has a cell for every
column and no space after the #. A name in quotes, "#12", is always a name.
"""

import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

EXCEL = (".xlsx", ".xlsm", ".xls", ".ods")
_SEPARATOR = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)


class Texts(NamedTuple):
    """A table as texts.

    Attributes:
      source: name of the file, for messages.
      header: names of the columns.
      wheres: place of each record, such as 'row 3 (line 5)'.
      records: stripped texts, as many as columns, '' where there is none.
      comments: lines that are no records.
      notes: what a user should know, such as how many comments stand between the runs.
    """

    source: str
    header: list[str]
    wheres: list[str]
    records: list[list[str]]
    comments: list[str]
    notes: list[str]

    def columns(self) -> dict[str, list[str]]:
        """Return the texts by column."""
        columns = map(list, zip(*self.records, strict=True))
        return dict(zip(self.header, columns, strict=True))


class _Line(NamedTuple):
    """A line of a file: its number, its cells, and its text if it starts with #."""

    number: int
    cells: list[str]
    remark: str | None = None


def read(source) -> Texts:
    """Return the table in a file, or of a data frame (pandas, polars, pyarrow or a mapping).

    Raises:
      ValueError: one line, for what is no table or for a reader that is not installed.
      FileNotFoundError: one line.
    """
    if not isinstance(source, (str, Path)) and not hasattr(source, "__fspath__"):
        return _of_frame(source)
    path = Path(source)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    lines = _read_excel(path) if path.suffix.lower() in EXCEL else (_read_csv(path), [])
    return _table(str(path), *lines)


def comments(path) -> list[str]:
    """Return the comments of a file; of a table that cannot be read there are none."""
    try:
        return read(path).comments
    except (ValueError, OSError):
        return []


# --- CSV ---


def _read_csv(path: Path) -> list[_Line]:
    """Return the lines of a CSV that are not blank; Raises as `read`."""
    texts = _lines_of(path)
    first = _SEPARATOR.fullmatch(texts[0].rstrip("\r\n")) if texts else None
    mark = first[1] if first else ","
    try:
        found = list(_records(texts, mark, start=1 if first else 0))
    except csv.Error as e:
        raise ValueError(f"{path}, {e}") from None
    head = next((line.cells for line in found if line.remark is None), [])
    for other, what in ((";", "semicolons"), ("\t", "tabs")):
        if len(head) == 1 and other in head[0]:
            raise ValueError(
                f"{path}: columns are parted by {what}; save it with commas, or write "
                "sep= and that mark into its first line"
            )
    return found


def _lines_of(path: Path) -> list[str]:
    open_it = gzip.open if path.suffix == ".gz" else open
    try:
        with open_it(path, "rt", newline="", encoding="utf-8-sig") as file:
            return file.readlines()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a folder; a CSV file of runs is needed") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ValueError(f"{path}: not a whole gzip file: {e}") from None
    except OSError as e:
        raise ValueError(f"{path}: cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text ({e.reason}); save it as CSV UTF-8") from None


def _records(texts: list[str], mark: str, start: int) -> Iterator[_Line]:
    """Yield what stands in the lines from `start` on; a quoted cell may span several.

    Raises:
      csv.Error: with the number of the line.
    """
    at = start

    def following() -> Iterator[str]:
        nonlocal at
        while at < len(texts):
            at += 1
            yield texts[at - 1]

    reader = csv.reader(following(), delimiter=mark)
    while at < len(texts):
        text, number = texts[at], at + 1
        if not text.strip():
            at += 1
            continue
        try:
            if text.lstrip().startswith("#"):  # by itself: a remark may hold a single quote
                at += 1
                cells, remark = next(csv.reader([text], delimiter=mark)), text.strip()
            else:
                cells, remark = next(reader), None
        except csv.Error as e:
            raise csv.Error(f"line {at}: not CSV: {e}") from None
        yield _Line(number, [cell.strip() for cell in cells], remark)


# --- other files ---


def _read_excel(path: Path) -> tuple[list[_Line], list[str]]:
    """Return the rows of the first sheet that are not blank, and notes. Raises as `read`."""
    try:
        import python_calamine
    except ImportError:
        raise ValueError(
            f"{path}: needs python-calamine: pip install python-calamine; or save it as CSV"
        ) from None
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with python_calamine.CalamineWorkbook.from_path(path) as book:
            names = book.sheet_names
            rows = book.get_sheet_by_index(0).to_python(skip_empty_area=False)
    except (python_calamine.CalamineError, OSError, IndexError) as e:
        raise ValueError(f"{path}: not a workbook: {str(e).splitlines()[0]}") from None
    lines = []
    for number, row in enumerate(rows, start=1):
        cells = [text_of(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            remark = cells[0] if cells[0].startswith("#") else None
            lines.append(_Line(number, cells, remark))
    width = len(next((line.cells for line in lines if line.remark is None), ()))
    lines = [line._replace(cells=line.cells + [""] * (width - len(line.cells))) for line in lines]
    more = f"{path}: sheet {names[0]!r} is read, of {len(names)}: {', '.join(names)}"
    return lines, [more] * (len(names) > 1)


def _read_parquet(path: Path) -> Texts:
    """Return the table; a row's number stands for its line. Raises as `read`."""
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
    return _of_columns(str(path), columns)


def _of_frame(frame) -> Texts:
    """Return the table of a data frame; its name in messages is that of its type."""
    name = type(frame).__name__
    if isinstance(frame, Mapping):
        columns = dict(frame)
    elif hasattr(frame, "to_pydict"):  # pyarrow
        columns = frame.to_pydict()
    elif hasattr(frame, "columns") and hasattr(frame, "__getitem__"):  # pandas, polars
        columns = {column: frame[column] for column in frame.columns}
    else:
        raise ValueError(
            f"a table of runs is a path, a data frame or a mapping of columns; got {name}"
        )
    try:
        columns = {str(key): list(values) for key, values in columns.items()}
    except TypeError:
        raise ValueError(f"{name}: every column must be a list of values") from None
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"{name}: columns have different lengths")
    return _of_columns(name, columns)


def _of_columns(source: str, columns: Mapping) -> Texts:
    texts = [[text_of(value) for value in values] for values in columns.values()]
    records = [list(record) for record in zip(*texts, strict=True)]
    if not records:
        raise ValueError(f"{source}: no runs; at least one row is needed below the column names")
    wheres = [f"row {row}" for row in range(1, len(records) + 1)]
    return Texts(source, list(columns), wheres, records, [], [])


def text_of(value) -> str:
    """Return a cell as text: '' for None, NaN and pandas' NA, whole numbers without a point."""
    if value is None or str(value) in ("nan", "<NA>", "NaT"):
        return ""
    return plain(value).strip()


def plain(value) -> str:
    """Return a number with all its digits, integers without a point."""
    if isinstance(value, float):
        whole = math.isfinite(value) and value.is_integer()
        return str(int(value)) if whole else repr(float(value))
    return str(value)


# --- lines into a table ---


def _table(source: str, lines: list[_Line], notes: list[str]) -> Texts:
    """Return the table that the lines hold. Raises as `read`."""
    head = next((i for i, line in enumerate(lines) if line.remark is None), None)
    if head is None:
        raise ValueError(f"{source}: empty; the first line must name the columns")
    header, below = lines[head].cells, lines[head + 1 :]
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{source}, line {lines[head].number}: column {name!r} appears twice")
    runs, named = [line for line in below if line.remark is None], []
    if not runs:
        runs = named = [line for line in below if _could_be_a_run(line, len(header))]
    if not runs:
        raise ValueError(f"{source}: no runs; at least one row is needed below the column names")
    wheres = [f"row {row} (line {line.number})" for row, line in enumerate(runs, start=1)]
    for where, line in zip(wheres, runs, strict=True):
        if len(line.cells) != len(header):
            raise ValueError(
                f"{source}, {where}: {len(line.cells)} values for {len(header)} columns"
            )
    passed = [line for line in below if line.remark is not None and line not in named]
    if passed:
        verb = "lines that start with # were" if len(passed) > 1 else "line that starts with # was"
        note = f"{source}: {len(passed)} {verb} passed over, the first is line {passed[0].number}"
        if any(_could_be_a_run(line, len(header)) for line in passed):
            note += "; a run whose name starts with # needs quotes around the name"
        notes = [*notes, note]
    remarks = [line.remark for line in (*lines[:head], *passed) if line.remark is not None]
    return Texts(source, header, wheres, [line.cells for line in runs], remarks, notes)


def _could_be_a_run(line: _Line, width: int) -> bool:
    name, *others = line.cells
    return len(line.cells) == width > 1 and any(others) and not re.match(r"#\s|#$", name)
