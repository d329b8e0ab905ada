"""Write files in one step: readers never see an incomplete one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file at, and rename it to `path` at the end.

    When the block raises, what it wrote is removed and `path` stays as it was; an OSError about the
    unfinished file then names `path`.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as e:
        with suppress(OSError):  # the block's error is the one to report
            partial.unlink(missing_ok=True)
        if isinstance(e, OSError) and str(e.filename) == str(partial):
            e.filename, e.filename2 = str(path), None
        raise
