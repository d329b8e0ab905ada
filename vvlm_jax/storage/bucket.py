"""Stores in object stores: `gs://BUCKET/FOLDER` and `s3://BUCKET/FOLDER`.

A bucket offers what a journal needs: a write that is refused when there is an object already, by
the server, and times that the server sets. Google's and Amazon's own libraries make the requests
(`gcs.py`, `s3.py`), one try each; all tries are counted here, in one way for both.

A request whose answer is lost may have been carried out. So each object that is created carries a
number of its own (`nonce`): who is told "taken" looks whose it is, and it may be its own.
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
from pathlib import Path
from typing import NamedTuple, Protocol

from vvlm_jax.config import ConfigError

PATIENCE = 60.0
"""Seconds of tries at a request that fails for a reason that may pass."""
TIMEOUT = (5.0, 15.0)
"""Seconds to connect, and to wait for an answer."""
CLOCK_SECONDS = 60.0
"""The store's clock is asked so often; this process's monotonic clock counts between."""
_THREADS = 8
_LONGEST_PAUSE = 4.0


class Taken(Exception):
    """The precondition of a write does not hold: the object is there, or is another one now."""


class Passing(Exception):
    """A request failed for a reason that may pass: no answer, 429, 5xx. The message says which."""


class Unreachable(OSError):
    """A bucket gave no answer for as long as anybody waits; nobody's job has failed by that."""


class Item(NamedTuple):
    """An object, or a part of one."""

    tag: str
    """What preconditions compare: a generation, an ETag."""
    seconds: float
    """When it was written or touched, by the server's clock."""
    nonce: str = ""
    data: bytes = b""


class Listed(NamedTuple):
    """An object of a listing, as an os.DirEntry; its name may have slashes."""

    name: str
    path: "Key"
    seconds: float
    size: int

    def stat(self) -> os.stat_result:
        """Its time alone."""
        return os.stat_result((*(0,) * 6, self.size, *(self.seconds,) * 3))


class Client(Protocol):
    """One try each at the requests that are needed. Raises Taken, Passing, and OSErrors: a missing
    object (FileNotFoundError), bucket or permission.
    """

    resolution: float
    """Seconds of the steps in which the server tells times."""

    def put(self, name: str, data: bytes, nonce: str, new: bool) -> str:
        """Writes an object, if `new` only when there is none; its tag."""

    def get(self, name: str, tail: int = 0) -> Item:
        """An object, or its last `tail` bytes."""

    def touch(self, name: str, item: Item) -> str:
        """Renews the time of the object that has the tag; its new tag."""

    def list(self, prefix: str, most: int | None = None) -> Iterator[tuple[str, int, float]]:
        """(name, size, seconds) of objects whose names begin so."""

    def delete(self, name: str) -> None:
        """Removes an object; nothing when there is none."""

    def upload(self, file: Path, name: str) -> None:
        """Writes an object from a file of any size, with the library's own tries."""

    def download(self, name: str, file: Path) -> None:
        """Writes a file from an object of any size, with the library's own tries."""


_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*):/{1,2}(?P<bucket>[^/]*)/*(?P<name>.*)")


def is_url(path) -> bool:
    """Whether a path names a bucket (`Path` makes one slash of two) or something of the kind."""
    return isinstance(path, Key) or _URL.match(str(path)) is not None


@dataclass(frozen=True)
class Key:
    """A name in a bucket, of an object or of what lies below it; a `Path`'s little brother."""

    bucket: "Bucket"
    key: str

    @classmethod
    def of(cls, url) -> "Key":
        """ConfigError for what is no folder of a bucket that can be spoken to here."""
        if isinstance(url, Key):
            return url
        parts = _URL.match(str(url))
        name = re.sub("/+", "/", parts["name"]).strip("/")
        written = f"{parts['scheme']}://{parts['bucket']}" + (f"/{name}" if name else "")
        if parts["scheme"] not in _CLIENTS:
            raise ConfigError(
                f"{written}: unknown scheme; a store is a folder, gs://BUCKET/FOLDER or "
                "s3://BUCKET/FOLDER"
            )
        if not parts["bucket"] or not name:
            raise ConfigError(f"{written}: must be {parts['scheme']}://BUCKET/FOLDER")
        return cls(_bucket(parts["scheme"], parts["bucket"], os.getpid()), name)

    def __truediv__(self, part: str) -> "Key":
        return Key(self.bucket, f"{self.key}/{part}")

    def __str__(self) -> str:
        return f"{self.bucket.url}/{self.key}"

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    def exists(self) -> bool:
        """Whether there is an object of this name."""
        return any(item.path == self for item in self.bucket.objects(self.key, 1))

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        return any(True for _ in self.bucket.objects(f"{self.key}/", 1))

    def read_text(self) -> str:
        """FileNotFoundError."""
        return self.bucket.read(self)[0].decode()


class Bucket:
    """A bucket: the `backends.Backend` of paths that are `Key`s."""

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
            tag = self.patiently(lambda: self.client.put(key.key, data, nonce, new=True))
        except Taken:
            found = self.patiently(lambda: self.client.get(key.key))
            if found.nonce != nonce:
                return False
            tag = found.tag
        self._mine[key.key] = Item(tag, 0.0, nonce, data)
        return True

    def read(self, key: Key) -> tuple[bytes, float]:
        """Implement `Backend.read`."""
        item = self.patiently(lambda: self.client.get(key.key))
        return item.data, item.seconds

    def tail(self, key: Key, size: int) -> bytes:
        """Implement `Backend.tail`."""
        return self.patiently(lambda: self.client.get(key.key, size)).data

    def listing(self, folder: Key) -> Iterator[Listed]:
        """Implement `Backend.listing`, with the files of the folders below."""
        prefix = f"{folder.key}/"
        for item in self.objects(prefix):
            yield item._replace(name=item.path.key.removeprefix(prefix))

    def objects(self, prefix: str, most: int | None = None) -> list[Listed]:
        """Objects whose names begin so, in the order of their names."""
        found = self.patiently(lambda: list(self.client.list(prefix, most)))
        return [Listed(name, Key(self, name), seconds, size) for name, size, seconds in found]

    def touch(self, key: Key) -> None:
        """Implement `Backend.touch`, without retries: a heartbeat tries again soon."""
        try:
            item = self._mine.get(key.key) or self.client.get(key.key)
            try:
                tag = self.client.touch(key.key, item)
            except Taken:  # perhaps by a touch of ours whose answer was lost
                found = self.client.get(key.key)
                if found.nonce != item.nonce:
                    raise FileNotFoundError(errno.ENOENT, "is another one now", str(key)) from None
                tag = found.tag
            self._mine[key.key] = item._replace(tag=tag)
        except Passing as e:
            raise Unreachable(errno.EIO, f"no answer ({e})", str(key)) from e

    def replace(self, key: Key, text: str) -> None:
        """Implement `Backend.replace`."""
        nonce = uuid.uuid4().hex
        self.patiently(lambda: self.client.put(key.key, text.encode(), nonce, new=False))

    def now(self, folder: Key) -> float:
        """Implement `Backend.now`, never ahead of the server: no claim looks older than it is.

        The server is asked only from time to time, and its answer counted on from its arrival.
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
        """Removes an object; nothing when there is none."""
        self.patiently(lambda: self.client.delete(key.key))

    def upload(self, file: Path, key: Key) -> None:
        """Writes an object from a file. FileNotFoundError when the file has gone."""
        self.patiently(lambda: self.client.upload(file, key.key))

    def download(self, key: Key, file: Path) -> None:
        """Writes a file from an object."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.patiently(lambda: self.client.download(key.key, file))

    def check_exclusive(self, folder: Key) -> None:
        """ConfigError when the server lets two create the same object: there are ones that know no
        preconditions, and pass over them without a word.
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

    def patiently(self, request: Callable):
        """A request's answer, tried again while what fails may pass. Raises Unreachable."""
        start, pause = time.monotonic(), 0.1
        while True:
            try:
                return request()
            except Passing as e:
                pause = min(_LONGEST_PAUSE, 2 * pause)
                if time.monotonic() - start + pause > PATIENCE:
                    raise Unreachable(errno.EIO, f"cannot be reached ({e})", self.url) from e
            time.sleep(random.uniform(0, pause))  # so that many do not come back together


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


_CLIENTS = {"gs": _gcs, "s3": _s3}


@functools.cache
def _bucket(scheme: str, name: str, pid: int) -> Bucket:
    """One a process: connections are not shared with a child."""
    del pid
    return Bucket(f"{scheme}://{name}", _CLIENTS[scheme](name))
