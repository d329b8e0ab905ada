"""Where data lies: a folder here, or a bucket, `gs://…` or `s3://…`.

etils gives a bucket's places the ways of a pathlib.Path, fsspec reads them, and gcsfs or s3fs
(extras `gs`, `s3`) know the service, its credentials and when to try again.
"""

import fnmatch
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vvlm_jax import atomic
from vvlm_jax.config import BUCKETS, Stopped

_VERSIONS = ("generation", "ETag", "mtime")
"""Of gs://, s3:// and what else fsspec reads."""
_FOLDER = "folder"
"""A bucket's folder has no version."""


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


def exists(path: Path) -> bool:
    """Whether there is such a file or folder. Raises Unreachable, where libraries may say no."""
    return bool(_kind(path)) if is_remote(path) else path.exists()


def is_dir(path: Path) -> bool:
    """Whether there is such a folder. Raises Unreachable."""
    return _kind(path) == "directory" if is_remote(path) else path.is_dir()


def glob(folder: Path, pattern: str) -> list[Path]:
    """What a pattern names below a folder, sorted. Raises Unreachable: libraries pass over folders
    that cannot be listed.
    """
    if not is_remote(folder):
        return sorted(folder.glob(pattern))
    found = [folder]
    for part in pattern.split("/"):
        if part == "**":
            found = [below for one in found for below in _folders(one)]
        elif {*"*?["} & {*part}:
            found = [one / name for one in found for name in fnmatch.filter(_listing(one), part)]
        else:
            found = [one / part for one in found]
    return sorted(one for one in found if exists(one))


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
    """By which a change is noticed: size and time of change, or the version that a service gives.
    Empty for what is not there.
    """
    try:
        if is_remote(path):
            with reaching(path):
                return _stamp(_filesystem_of(path).info(os.fspath(path)))
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def stamps_below(root: Path) -> Callable[[str], str]:
    """`stamp` of paths below a root. A bucket's folders are listed as a whole, and once: that is a
    request for a thousand files, in place of one for each.
    """
    if not is_remote(root):
        return lambda name: stamp(root / name)
    listed = functools.cache(lambda folder: _listing(root / folder))

    def look(name: str) -> str:
        folder, _, file = name.rpartition("/")
        return listed(folder).get(file, "")

    return look


def local_copy(folder: Path, key: bytes) -> Path:
    """A folder of files here, or the copy of a bucket's, made where there is none of this `key`."""
    if not is_remote(folder):
        return folder
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vvlm_jax"
    copy = caches / hashlib.sha256(f"{folder}\n".encode() + key).hexdigest()[:32]
    if not copy.is_dir():
        try:
            with atomic.replacing(copy, shared=True) as partial:
                partial.mkdir(parents=True)
                with reaching(folder):
                    files = sorted(os.fspath(file) for file in folder.iterdir())
                    here = [str(partial / file.rpartition("/")[2]) for file in files]
                    _filesystem_of(folder).get(files, here)
        except OSError:
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


def _kind(path: Path) -> str:
    """`file` or `directory`; empty for what is not there."""
    with reaching(path):
        try:
            return _filesystem_of(path).info(os.fspath(path))["type"]
        except (FileNotFoundError, NotADirectoryError):
            return ""


def _listing(folder: Path) -> dict[str, str]:
    """{name: stamp} of what a bucket's folder holds; nothing where there is none."""
    files, address = _filesystem_of(folder), os.fspath(folder)
    with reaching(folder):
        try:
            found = files.ls(address, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        files.invalidate_cache(address)  # which holds a kilobyte a file
    entries = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in found}
    entries = {name: e for name, e in entries.items() if not address.endswith(e["name"])}
    return {name: _stamp(entry) for name, entry in entries.items()}


def _folders(folder: Path) -> Iterator[Path]:
    """A bucket's folder and all below it."""
    yield folder
    for name, mark in _listing(folder).items():
        if mark == _FOLDER:
            yield from _folders(folder / name)


def _stamp(about: dict) -> str:
    """Of what a listing and a question about one file both tell."""
    if about["type"] == "directory":
        return _FOLDER
    version = next((f"{about[key]}" for key in _VERSIONS if about.get(key)), "")
    return f"{about['size']} {version}"


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
