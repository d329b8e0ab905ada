"""Operations on files that a sweep's store needs, for filesystems (`Disk`) and buckets.

Two of them make a store safe to share: `create` has one winner, and every time is set by the
store's own clock, never by a host's. `storage/bucket.py` has the same operations for buckets.
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
"""Error numbers of a disk that takes no more data."""


class Backend(Protocol):
    """The operations. A path is a `Path`, or a `Key` in a bucket; each may raise OSError."""

    def create(self, path, text: str) -> bool:
        """Write a file unless it exists; return whether this call did.

        Of several concurrent calls one wins. A request whose reply was lost counts as won.
        """

    def read(self, path) -> tuple[bytes, float]:
        """Return a file's content and modification time. Raises FileNotFoundError."""

    def tail(self, path, size: int) -> bytes:
        """Return at most the last `size` bytes of a file."""

    def listing(self, folder) -> Iterator[Any]:
        """List a folder as `os.scandir` does: `name`, `path` and `stat().st_mtime` of each file."""

    def touch(self, path) -> None:
        """Set a file's time to the store's present time. Raises FileNotFoundError."""

    def replace(self, path, text: str) -> None:
        """Write a file, new or not; readers see the old or the new content, never a mixture."""

    def now(self, folder) -> float:
        """Return the time by the store's clock: what a file written into `folder` now gets."""

    def each(self, function: Callable, items: Iterable) -> Iterable:
        """Map a function over items, concurrently where that is faster."""


class Disk:
    """A filesystem, local or shared, with exclusive creation of files."""

    def create(self, path: Path, text: str) -> bool:
        """Write the file under another name, then hard-link it, which fails if the name is taken.

        Without hard links O_EXCL creates the file directly; a crash may then leave it truncated.
        """
        partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(partial, os.O_TRUNC, text)
            try:
                os.link(partial, path)
                return True
            except FileExistsError:
                # NFS repeats a request whose reply was lost: the link may be our own, and then
                # our file has two names.
                return partial.stat().st_nlink == 2
            except OSError as e:
                if e.errno in FULL:
                    raise
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(path)) from e  # and not the partial file
        finally:
            partial.unlink(missing_ok=True)
        try:
            _write(path, os.O_EXCL, text)
        except FileExistsError:
            return False
        return True

    def read(self, path: str | Path) -> tuple[bytes, float]:
        """Implement `Backend.read`."""
        # NFS caches times; opening the file makes the client ask the server for the present one.
        with open(path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime

    def tail(self, path: Path, size: int) -> bytes:
        """Implement `Backend.tail`."""
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read()

    def listing(self, folder: str | Path) -> Iterator[os.DirEntry]:
        """Implement `Backend.listing`; a missing folder is empty."""
        try:
            with os.scandir(folder) as found:
                yield from found
        except FileNotFoundError:
            return

    def touch(self, path: Path) -> None:
        """Implement `Backend.touch`. Without arguments utime takes the server's clock on NFS."""
        os.utime(path)

    def replace(self, path: Path, text: str) -> None:
        """Implement `Backend.replace`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text, shared=True)

    def now(self, folder: Path) -> float:
        """Implement `Backend.now` by touching a file of this process."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{socket.gethostname()}-{os.getpid()}"
        file.touch()
        self.touch(file)
        return file.stat().st_mtime

    each = staticmethod(map)


def _write(path: Path, flag: int, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o666)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


_DISK = Disk()


def of(path) -> Backend:
    """Return the backend of a path: the bucket of a `Key`, else the disk."""
    return path.bucket if isinstance(path, Key) else _DISK
