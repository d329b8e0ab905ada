"""Read data from a folder of this machine or from a bucket, `gs://…` or `s3://…`, alike.

A path is a pathlib.Path, or a `bucket.Key` for a bucket. Errors of a bucket are OSErrors; a file
that cannot be reached is thus never taken for a broken one.
"""

import fnmatch
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vvlm_jax import atomic
from vvlm_jax.storage.bucket import Key, Listed, is_url

AnyPath = Path | Key

_FOLDER = "folder"
"""Version of a bucket's folder, which has none."""


class Fetched(io.BytesIO):
    """A bucket's file as a whole, in memory; `name` is its URL."""

    def __init__(self, name: str, data: bytes):
        super().__init__(data)
        self.name = name
        self.size = len(data)

    def __str__(self):
        return self.name


def path_of(text: str | os.PathLike | Key) -> AnyPath:
    """Return the path of a file or folder from its name or URL.

    Raises ConfigError for an unsupported scheme, and when the library for it is not installed.
    """
    return Key.of(text, root=True) if is_url(text) else Path(text)


def exists(path: AnyPath) -> bool:
    """Return whether there is such a file or folder. Raises OSError for a bucket's refusal."""
    return path.exists() or (isinstance(path, Key) and path.is_dir())


def glob(folder: AnyPath, pattern: str) -> list[AnyPath]:
    """Return the files and folders below a folder that match a pattern, sorted."""
    if isinstance(folder, Path):
        return sorted(folder.glob(pattern))
    found = [folder]
    for part in pattern.split("/"):
        if part == "**":
            found = [below for one in found for below in _folders(one)]
        elif {*"*?["} & {*part}:
            names = [(one, [item.name for item in one.bucket.children(one)]) for one in found]
            found = [one / name for one, names in names for name in fnmatch.filter(names, part)]
        else:
            found = [one / part for one in found]
    return sorted(one for one in found if exists(one))


def read_text(path: AnyPath) -> str:
    """Return a file's text. Raises ValueError naming the file and the byte that is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: byte {e.start} is not UTF-8 text") from None


def read_bytes(path: AnyPath) -> bytes:
    """Return what a file holds. Raises OSError."""
    return path.bucket.fetch(path) if isinstance(path, Key) else path.read_bytes()


def fetched(path: AnyPath) -> AnyPath | Fetched:
    """Return a bucket's file in memory; any other path, and one without a file, as it is."""
    if isinstance(path, Path):
        return path
    try:
        return Fetched(str(path), read_bytes(path))
    except FileNotFoundError:
        return path


def stamp(path: AnyPath) -> str:
    """Return a version by which a change is noticed: size and time, or the service's version.

    Empty when there is no such file.
    """
    if isinstance(path, Key):
        if item := path.find():
            return _version(item)
        return _FOLDER if path.is_dir() else ""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def stamps_below(root: AnyPath) -> Callable[[str], str]:
    """Return a function from a name below `root` to its `stamp`.

    A bucket's folders are listed whole and once: one request for a thousand files.
    """
    if isinstance(root, Path):
        return lambda name: stamp(root / name)

    @functools.cache
    def listed(folder: str) -> dict[str, str]:
        return {item.name: _version(item) for item in root.bucket.children(root / folder)}

    def look(name: str) -> str:
        folder, _, file = name.rpartition("/")
        return listed(folder).get(file, "")

    return look


def local_copy(folder: AnyPath, key: bytes) -> Path:
    """Return a folder of this machine: `folder`, or a copy of the bucket's folder.

    The copy is kept in the cache of the user and made again for another `key`.
    """
    if isinstance(folder, Path):
        return folder
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vvlm_jax"
    copy = caches / hashlib.sha256(f"{folder}\n".encode() + key).hexdigest()[:32]
    if not copy.is_dir():
        try:
            with atomic.replacing(copy, shared=True) as partial:
                partial.mkdir(parents=True)
                items = [item for item in folder.bucket.children(folder) if item.tag]
                folder.bucket.each(
                    lambda item: folder.bucket.download(item.path, partial / item.name), items
                )
        except OSError:
            if not copy.is_dir():  # otherwise another process of this host made it meanwhile
                raise
    return copy


def _folders(folder: Key) -> Iterator[Key]:
    """Yield a bucket's folder and all folders below it."""
    yield folder
    for item in folder.bucket.children(folder):
        if not item.tag:
            yield from _folders(item.path)


def _version(item: Listed) -> str:
    return f"{item.size} {item.tag}" if item.tag else _FOLDER
