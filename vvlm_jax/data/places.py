"""Where data lies: a folder here, or a bucket, `gs://…` or `s3://…`.

etils gives a bucket's places the ways of a pathlib.Path, fsspec reads them, and gcsfs or s3fs
(extras `gs`, `s3`) know the service, its credentials and when to try again.
"""

import functools
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vvlm_jax.config import BUCKETS, Stopped


class Unreachable(Stopped):
    """A bucket did not answer. Nothing is wrong with the file: the same command can go on later."""


class Fetched(io.BytesIO):
    """A bucket's file as a whole, in memory; `name` is its place."""

    def __init__(self, name: str, data: bytes):
        super().__init__(data)
        self.name = name
        self.size = len(data)

    def __str__(self):
        return self.name


def place(text: str | os.PathLike) -> Path:
    """A folder or file: pathlib.Path here, and what reads like one in a bucket.

    Raises ValueError for another kind of address, and where the library for it is not installed.
    """
    text = os.fspath(text)
    scheme, remote, _ = text.partition("://")
    if not remote:
        return Path(text)
    if f"{scheme}://" not in BUCKETS:
        raise ValueError(f"{text}: data are read from folders, and from {' and '.join(BUCKETS)}")
    from etils import epath

    _filesystem(scheme)
    return epath.Path(text)


def is_remote(path: str | os.PathLike) -> bool:
    """Whether this lies in a bucket."""
    return "://" in os.fspath(path)


def read_text(path: Path) -> str:
    """A file's text. Raises ValueError naming the file and the byte that is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: byte {e.start} is not UTF-8 text") from None


def read_bytes(path: Path) -> bytes:
    """What a file holds. Raises FileNotFoundError, or Unreachable."""
    if not is_remote(path):
        return Path(path).read_bytes()
    with reaching(path):
        return _filesystem_of(path).cat_file(os.fspath(path))


def fetched(path: Path) -> Path | Fetched:
    """A bucket's file in memory; what lies here, is a folder or is not there, as it is."""
    if not is_remote(path):
        return path
    try:
        return Fetched(os.fspath(path), read_bytes(path))
    except (FileNotFoundError, IsADirectoryError):
        return path


def stamp(path: Path) -> str:
    """By which a change is noticed: size and time of change, or what a service has for it. Empty
    for what is not there.
    """
    try:
        if is_remote(path):
            with reaching(path):
                return str(_filesystem_of(path).ukey(os.fspath(path)))
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def local_copy(folder: Path, key: bytes) -> Path:
    """A folder of files here, or the copy of a bucket's, made where there is none of this `key`."""
    if not is_remote(folder):
        return folder
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vvlm_jax"
    copy = caches / hashlib.sha256(f"{folder}\n".encode() + key).hexdigest()[:32]
    if not copy.is_dir():
        partial = caches / f".{copy.name}.{uuid.uuid4().hex}"
        partial.mkdir(parents=True)
        try:
            with reaching(folder):
                files = sorted(os.fspath(file) for file in folder.iterdir())
                here = [str(partial / file.rpartition("/")[2]) for file in files]
                _filesystem_of(folder).get(files, here)
            os.replace(partial, copy)
        except BaseException:
            shutil.rmtree(partial)
            if not copy.is_dir():  # else another process of this host was first
                raise
    return copy


@contextmanager
def reaching(path: str | os.PathLike) -> Iterator[None]:
    """Errors of services, of many kinds, are Unreachable in here; that something is not there, or
    wrong in itself, stays as it is.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, Stopped):
        raise
    except Exception as e:
        if not is_remote(path):
            raise
        reason = f"{e}".split("\n")[0] or type(e).__name__
        raise Unreachable(f"{path}: cannot be read ({reason}); the same command goes on") from e


def _filesystem_of(path: str | os.PathLike):
    return _filesystem(os.fspath(path).partition("://")[0])


@functools.cache
def _filesystem(scheme: str):
    """One for all threads: by itself fsspec makes, and keeps, one a thread."""
    import fsspec

    try:
        return fsspec.filesystem(scheme)
    except ImportError:
        raise ValueError(
            f"{scheme}://: needs {BUCKETS[f'{scheme}://']}: pip install 'vvlm_jax[{scheme}]'"
        ) from None
