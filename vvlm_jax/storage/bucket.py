"""Objects in buckets, `gs://BUCKET/NAME` and `s3://BUCKET/NAME`, for data and for sweeps.

Google's and Amazon's own libraries make the requests (`gcs.py`, `s3.py`), small ones in one try
each; `Bucket` retries both services in the same way. A journal needs two things of a server: a
write that it refuses when the object exists, and times of its own clock.

A request may have been carried out although its answer was lost. Therefore each object that is
created carries a nonce: on "already exists", the nonces are compared, because a lost answer may
have been our own success.
"""

import errno
import functools
import os
import random
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from vvlm_jax.config import ConfigError

PATIENCE = 60.0
"""Seconds for which a request is retried."""
TIMEOUT = (5.0, 15.0)
"""Seconds to connect, and to wait for an answer."""
CLOCK_SECONDS = 60.0
"""Seconds between two readings of the server's clock; a monotonic clock counts in between."""
_THREADS = 8
_LONGEST_PAUSE = 4.0


class Taken(Exception):
    """The precondition of a write failed: the object exists, or has been replaced."""


class Retryable(Exception):
    """A request failed in a way worth a retry: no answer, 429, 5xx. The message says which."""


class Unreachable(OSError):
    """A bucket gave no answer within `PATIENCE`. The same command can be run again later."""


class Item(NamedTuple):
    """An object, or a part of one."""

    tag: str
    """Version that preconditions compare: a generation (gs), an ETag (s3)."""
    seconds: float
    """When it was written or touched, by the server's clock."""
    nonce: str = ""
    data: bytes = b""


class Found(NamedTuple):
    """A line of a service's listing; the name of a folder ends in a slash."""

    name: str
    size: int = 0
    seconds: float = 0.0
    tag: str = ""


class Listed(NamedTuple):
    """An entry of `Bucket.listing`, with the fields of an os.DirEntry that the journal uses."""

    name: str
    path: "Key"
    seconds: float
    size: int
    tag: str = ""
    """Empty for a folder."""

    def stat(self) -> os.stat_result:
        """Return size and times, other fields 0."""
        return os.stat_result((*(0,) * 6, self.size, *(self.seconds,) * 3))


class Client(Protocol):
    """The requests to one bucket of a service.

    All raise Taken, Retryable, FileNotFoundError for a missing object, PermissionError, and OSError
    for a missing bucket. Small requests are made once; `fetch`, `upload` and `download` leave
    retries to the service's library.
    """

    resolution: float
    """Resolution of the server's times, seconds."""

    def put(self, name: str, data: bytes, nonce: str, new: bool) -> str:
        """Write an object, with `new` only if there is none, and return its tag."""

    def get(self, name: str, tail: int = 0) -> Item:
        """Return an object, with `tail` only its last bytes."""

    def touch(self, name: str, item: Item) -> str:
        """Renew the time of the object that has the item's tag, and return its new tag."""

    def list(self, prefix: str, most: int | None = None, deep: bool = True) -> Iterator[Found]:
        """Yield objects whose names start with `prefix`, in order; folders unless `deep`."""

    def delete(self, name: str) -> None:
        """Remove an object, if there is one."""

    def fetch(self, name: str) -> bytes:
        """Return the bytes of an object of any size."""

    def upload(self, file: Path, name: str) -> None:
        """Write an object from a file of any size."""

    def download(self, name: str, file: Path) -> None:
        """Write a file from an object of any size."""


_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*):/{1,2}(?P<bucket>[^/]*)/*(?P<name>.*)")


def is_url(path) -> bool:
    """Return whether a path is a `Key` or a URL. `Path` turns `//` into `/`, which counts too."""
    return isinstance(path, Key) or _URL.match(str(path)) is not None


@dataclass(frozen=True)
class Key:
    """A name in a bucket, of an object or a folder, with the part of pathlib.Path that we use."""

    bucket: "Bucket"
    key: str
    """Without a slash at either end; empty for the bucket itself."""

    @classmethod
    def of(cls, url, root: bool = False) -> "Key":
        """Return the Key of a URL; the bucket itself only if `root`.

        Raises ConfigError for an unsupported scheme or a malformed URL.
        """
        if isinstance(url, Key):
            return url
        parts = _URL.match(str(url))
        name = re.sub("/+", "/", parts["name"]).strip("/")
        written = f"{parts['scheme']}://{parts['bucket']}" + (f"/{name}" if name else "")
        if parts["scheme"] not in CLIENTS:
            raise ConfigError(
                f"{written}: unknown scheme; must be a folder, gs://BUCKET/FOLDER or "
                "s3://BUCKET/FOLDER"
            )
        if not parts["bucket"] or not (name or root):
            raise ConfigError(f"{written}: must be {parts['scheme']}://BUCKET/FOLDER")
        return cls(_bucket(parts["scheme"], parts["bucket"], os.getpid()), name)

    def __reduce__(self):
        # Another process makes connections of its own.
        return Key.of, (str(self), True)

    def __truediv__(self, part) -> "Key":
        return Key(self.bucket, f"{self.prefix}{part}".strip("/"))

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.key}".rstrip("/")

    def __lt__(self, other: "Key") -> bool:
        return str(self) < str(other)

    @property
    def prefix(self) -> str:
        """Return the prefix of the names of all objects below this one."""
        return f"{self.key}/" if self.key else ""

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The end of the last part, from its last dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "Key":
        """The folder that holds it."""
        return Key(self.bucket, self.key.rpartition("/")[0])

    def is_relative_to(self, folder) -> bool:
        """Return whether it is `folder` or below it."""
        same = isinstance(folder, Key) and self.bucket == folder.bucket
        return same and f"{self.key}/".startswith(folder.prefix)

    def relative_to(self, folder: "Key") -> PurePosixPath:
        """Return its name as seen from `folder`."""
        return PurePosixPath(self.key).relative_to(folder.key)

    def exists(self) -> bool:
        """Return whether there is an object of this name."""
        return self.find() is not None

    def is_dir(self) -> bool:
        """Return whether there are objects below this name."""
        return bool(self.bucket.objects(self.prefix, 1))

    def iterdir(self) -> Iterator["Key"]:
        """Yield the objects and folders directly below."""
        return (item.path for item in self.bucket.children(self))

    def find(self) -> Listed | None:
        """Return the object's entry in a listing, None without an object of this name."""
        found = self.bucket.objects(self.key, 1) if self.key else []
        return next((item for item in found if item.path == self), None)

    def read_text(self) -> str:
        """Return a small object as text. Raises FileNotFoundError."""
        return self.bucket.read(self)[0].decode()


class Bucket:
    """A bucket whose methods retry; the `sweep.store.backends.Backend` of Keys."""

    def __init__(self, url: str, client: Client):
        self.url, self.client = url, client
        self._mine: dict[str, Item] = {}
        self._clock: tuple[float, float] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Bucket({self.url!r})"

    def create(self, key: Key, text: str) -> bool:
        """Implement `Backend.create`.

        On "already exists" compare nonces: a lost reply may have been our own success.
        """
        nonce, data = uuid.uuid4().hex, text.encode()
        try:
            tag = self.retrying(lambda: self.client.put(key.key, data, nonce, new=True))
        except Taken:
            found = self.retrying(lambda: self.client.get(key.key))
            if found.nonce != nonce:
                return False
            tag = found.tag
        self._mine[key.key] = Item(tag, 0.0, nonce, data)
        return True

    def read(self, key: Key) -> tuple[bytes, float]:
        """Implement `Backend.read`."""
        item = self.retrying(lambda: self.client.get(key.key))
        return item.data, item.seconds

    def tail(self, key: Key, size: int) -> bytes:
        """Implement `Backend.tail`."""
        return self.retrying(lambda: self.client.get(key.key, size)).data

    def listing(self, folder: Key) -> Iterator[Listed]:
        """Implement `Backend.listing`, of all objects below."""
        prefix = folder.prefix
        for item in self.objects(prefix):
            yield item._replace(name=item.path.key.removeprefix(prefix))

    def children(self, folder: Key) -> list[Listed]:
        """Return the objects and folders directly below `folder`, in the order of their names."""
        found = self.objects(folder.prefix, deep=False)
        # Some tools make an empty object as a mark of a folder, which lists itself.
        items = [item._replace(name=item.path.name) for item in found if item.path != folder]
        return sorted(items, key=lambda item: item.name)

    def objects(self, prefix: str, most: int | None = None, deep: bool = True) -> list[Listed]:
        """Return objects whose names start with `prefix`, in the order of their names.

        Unless `deep`, objects with a slash after the prefix appear as one folder.
        """
        found = self.retrying(lambda: list(self.client.list(prefix, most, deep)))
        return [
            Listed(name, Key(self, name.rstrip("/")), seconds, size, tag)
            for name, size, seconds, tag in found
        ]

    def touch(self, key: Key) -> None:
        """Implement `Backend.touch`, without retries: a heartbeat tries again soon."""
        try:
            item = self._mine.get(key.key) or self.client.get(key.key)
            try:
                tag = self.client.touch(key.key, item)
            except Taken:  # perhaps by our own touch, whose answer was lost
                found = self.client.get(key.key)
                if found.nonce != item.nonce:
                    raise FileNotFoundError(errno.ENOENT, "has been replaced", str(key)) from None
                tag = found.tag
            self._mine[key.key] = item._replace(tag=tag)
        except Retryable as e:
            raise Unreachable(errno.EIO, f"no answer ({e})", str(key)) from e

    def replace(self, key: Key, text: str) -> None:
        """Implement `Backend.replace`."""
        nonce = uuid.uuid4().hex
        self.retrying(lambda: self.client.put(key.key, text.encode(), nonce, new=False))

    def now(self, folder: Key) -> float:
        """Implement `Backend.now`, never ahead, so that no claim is taken for older than it is.

        Reads the server's clock every `CLOCK_SECONDS`.
        """
        with self._lock:
            if self._clock is None or time.monotonic() - self._clock[1] > CLOCK_SECONDS:
                key = folder / f"{socket.gethostname()}-{os.getpid()}"
                self.replace(key, "")
                seconds = self.read(key)[1]
                self._clock = seconds - self.client.resolution, time.monotonic()
            return self._clock[0] + time.monotonic() - self._clock[1]

    def each(self, function: Callable, items: Iterable) -> list:
        """Implement `Backend.each` with threads."""
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(function, items))

    def delete(self, key: Key) -> None:
        """Remove an object, if there is one."""
        self.retrying(lambda: self.client.delete(key.key))

    def fetch(self, key: Key) -> bytes:
        """Return the bytes of an object of any size. Raises FileNotFoundError."""
        return self.retrying(lambda: self.client.fetch(key.key))

    def upload(self, file: Path, key: Key) -> None:
        """Write an object from a file. FileNotFoundError when the file has gone."""
        self.retrying(lambda: self.client.upload(file, key.key))

    def download(self, key: Key, file: Path) -> None:
        """Write a file from an object."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.retrying(lambda: self.client.download(key.key, file))

    def check_exclusive(self, folder: Key) -> None:
        """Raise ConfigError when the server lets two writers create the same object.

        Some servers ignore preconditions without an error.
        """
        probe = folder / f"sweep.json.probe-{uuid.uuid4().hex}"
        try:
            if not self.create(probe, "") or self.create(probe, ""):
                raise ConfigError(
                    f"{self.url}: this server creates the same object twice (no preconditions), so "
                    "it cannot hold a sweep"
                )
        finally:
            self.delete(probe)

    def retrying(self, request: Callable):
        """Return `request()`, retried for up to `PATIENCE` seconds. Raises Unreachable."""
        start, pause = time.monotonic(), 0.1
        while True:
            try:
                return request()
            except Retryable as e:
                pause = min(_LONGEST_PAUSE, 2 * pause)
                if time.monotonic() - start + pause > PATIENCE:
                    raise Unreachable(
                        errno.EIO,
                        f"cannot be reached ({e}); run the same command again later",
                        self.url,
                    ) from e
            time.sleep(random.uniform(0, pause))  # random, or many clients would retry together


def _gcs(bucket: str) -> Client:
    try:
        from vvlm_jax.storage.gcs import Gcs
    except ImportError as e:
        raise ConfigError(
            f"gs://{bucket}: needs google-cloud-storage: pip install 'vvlm_jax[gs]'"
        ) from e
    return Gcs(bucket)


def _s3(bucket: str) -> Client:
    try:
        from vvlm_jax.storage.s3 import S3
    except ImportError as e:
        raise ConfigError(f"s3://{bucket}: needs boto3: pip install 'vvlm_jax[s3]'") from e
    return S3(bucket)


CLIENTS: dict[str, Callable[[str], Client]] = {"gs": _gcs, "s3": _s3}
"""{scheme: the client of a bucket of this name}."""


@functools.cache
def _bucket(scheme: str, name: str, pid: int) -> Bucket:
    """Return the process's one Bucket of this name; a forked child makes its own connections."""
    del pid
    return Bucket(f"{scheme}://{name}", CLIENTS[scheme](name))
