"""Write files and folders in one step: readers never see an incomplete one."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".partial-"
"""Starts the name of a file or folder that is still being written."""


@contextmanager
def replacing(path: Path, *, shared: bool = False, sync: bool = False) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder at; rename it to `path` at the end.

    When the block raises, what it wrote is removed and `path` stays as it was; an OSError about the
    unfinished file then names `path`. What a killed process left is removed by the next writer.
    The name keeps its suffix, by which some writers choose a format.

    Args:
      shared: Several processes may write `path` at the same time, so each takes a name of its own.
        What a killed one left then stays.
      sync: Flush a file to the disk before it is renamed, for a machine that may lose power.
    """
    unique = f"{uuid.uuid4().hex}-" if shared else ""
    partial = path.with_name(f"{PREFIX}{unique}{path.name}")
    try:
        remove(partial)
        yield partial
        if sync:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as e:
        with suppress(OSError):  # the block's error is the one to report
            remove(partial)
        if isinstance(e, OSError) and f"{e.filename}".startswith(f"{partial}"):
            e.filename, e.filename2 = f"{e.filename}".replace(f"{partial}", f"{path}"), None
        raise


def write_text(path: Path, text: str, *, shared: bool = False, sync: bool = False) -> None:
    """Write a UTF-8 file as `replacing` does."""
    with replacing(path, shared=shared, sync=sync) as partial:
        partial.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
