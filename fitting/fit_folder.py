"""The output folder of a fit: checked before the work, cleaned before writing."""

import re
from pathlib import Path

from fitting.runs import RunTable

STALE = (
    "report.html",
    "compare.csv",
    "ablate.csv",
    "test.csv",
    "profile.csv",
)  # beside fit.json; made anew when asked for
FIGURES = (".png", ".svg", ".csv")


def folder_of_each(out: Path, table: RunTable, grouped: bool) -> dict[Path, RunTable]:
    """Return {folder: the runs of its fit}: `out` itself, or one folder per metric in it.

    Raises:
      ValueError: two metrics have the same name once special characters are replaced.
    """
    if not grouped:
        return {out: table}
    names = {value: re.sub(r"[^\w.-]+", "_", value).strip(".") or "_" for value in table.metrics}
    if len(set(names.values())) < len(names):
        raise ValueError(f"two of {', '.join(names)} make the same folder")
    return {out / name: table.take(table.metric == value) for value, name in names.items()}


def prepare(folder: Path) -> None:
    """Make the folder, and raise ValueError where a fit could not be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(f"--out {folder}: {e.strerror}") from None
    for path in (folder / name for name in ("fit.json", *STALE)):
        if path.is_dir():
            raise ValueError(f"--out {folder}: {path.name} is a folder there; a file goes here")
    if (folder / "figures").is_file():
        raise ValueError(f"--out {folder}: figures is a file there; a folder goes here")


def remove_stale(folder: Path) -> None:
    """Remove the page, tables and figures of an earlier fit, which describe another law."""
    for name in STALE:
        (folder / name).unlink(missing_ok=True)
    for file in [*(folder / "figures").glob("*.*"), *(folder / "tables").glob("*.csv")]:
        if file.suffix in FIGURES:
            file.unlink()
