"""What a sweep needs of where it is kept: on a filesystem (`Disk`), or in a bucket (`buckets.py`).

Seven operations, and what makes a sweep safe is two of them: `create` has one winner, and every
time comes from the store's own clock.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from vvlm_jax import atomic
from vvlm_jax.storage.bucket import Key

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that takes no more."""


class Place(Protocol):
    """Where a store is. Paths are a `Path`, or in a bucket a `Key`; all may raise OSError."""

    def create(self, path, text: str) -> bool:
        """Writes a file unless there is one; whether it did. Of several that try one does, and a
        request whose answer was lost counts as done.
        """

    def read(self, path) -> tuple[bytes, float]:
        """What a file holds, and its time. FileNotFoundError."""

    def tail(self, path, size: int) -> bytes:
        """At most so many bytes of a file's end."""

    def listing(self, folder) -> Iterator[Any]:
        """What an `os.scandir` of a folder gives: `name`, `path`, `stat().st_mtime`."""

    def touch(self, path) -> None:
        """Sets a file's time to the store's now. FileNotFoundError when it was removed."""

    def replace(self, path, text: str) -> None:
        """Writes a file, new or not, so that no reader meets half of it."""

    def now(self, folder) -> float:
        """The store's clock: the time that a file written into `folder` gets."""

    def each(self, function: Callable, items: Iterable) -> Iterable:
        """`map`, with as many at the same time as the place likes."""


class Disk:
    """Any shared filesystem with exclusive creation."""

    def create(self, path: Path, text: str) -> bool:
        """A file that is whole gets its name by a hard link, which fails when the name is taken.
        Where there are no links, O_EXCL makes the file, and a crash may leave it cut.
        """
        partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(partial, os.O_TRUNC, text)
            try:
                os.link(partial, path)
                return True
            except FileExistsError:
                # The server of a network filesystem may have done it, and its answer been lost.
                return partial.stat().st_nlink == 2
            except OSError as e:
                if e.errno in FULL:
                    raise
        finally:
            partial.unlink(missing_ok=True)
        try:
            _write(path, os.O_EXCL, text)
        except FileExistsError:
            return False
        return True

    def read(self, path: str | Path) -> tuple[bytes, float]:
        """As `Place.read`."""
        with open(path, "rb") as file:  # opening asks a network filesystem for today's times
            return file.read(), os.fstat(file.fileno()).st_mtime

    def tail(self, path: Path, size: int) -> bytes:
        """As `Place.tail`."""
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read()

    def listing(self, folder: str | Path) -> Iterator[os.DirEntry]:
        """As `Place.listing`; nothing when there is no such folder."""
        try:
            with os.scandir(folder) as found:
                yield from found
        except FileNotFoundError:
            return

    def touch(self, path: Path) -> None:
        """As `Place.touch`."""
        os.utime(path)

    def replace(self, path: Path, text: str) -> None:
        """As `Place.replace`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text, shared=True)

    def now(self, folder: Path) -> float:
        """As `Place.now`."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{socket.gethostname()}-{os.getpid()}"
        file.touch()
        self.touch(file)
        return file.stat().st_mtime

    each = staticmethod(map)


def _write(path: Path, how: int, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o666)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


_DISK = Disk()


def of(path) -> Place:
    """The place of a path: a bucket's of a `Key`, else the disk."""
    return path.bucket if isinstance(path, Key) else _DISK
