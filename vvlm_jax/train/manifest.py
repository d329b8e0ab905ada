"""The manifest of a checkpoint: what it holds, and the size and checksum of each of its files.

It is written last, so that a folder with a manifest is whole, and read first, so that a folder
whose files have changed since is found out before any of them is used.
"""

import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vvlm_jax import atomic

NAME = "manifest.json"
_PIECE = 2**22
"""Bytes that a thread holds of a file."""
_THREADS = 4


class Incomplete(ValueError):
    """A checkpoint whose manifest was never written: its save did not end."""


class Damaged(ValueError):
    """A checkpoint that is not what was written; the message names the first file that differs."""


def write(folder: Path, about: dict) -> None:
    """Reads every file under `folder` once and writes `about` (JSON) with their sizes and
    checksums, all of it or nothing. OSError when the disk refuses.
    """
    names = sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != NAME
    )
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = list(threads.map(lambda name: _size_and_checksum(folder / name), names))
    body = {"about": about, "files": dict(zip(names, sums, strict=True))}
    text = json.dumps({"sha256": _digest(body), **body})
    atomic.write_text(folder / NAME, text, sync=True)


def read(folder: Path) -> dict:
    """The manifest's {"about", "files"}. Raises Incomplete when there is none, Damaged when it is
    not the one that was written.
    """
    try:
        text = (folder / NAME).read_bytes()
    except FileNotFoundError:
        raise Incomplete(f"{folder}: has no {NAME}, so its save did not end") from None
    try:
        body = json.loads(text)
        if body.pop("sha256") == _digest(body):
            return body
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise Damaged(f"{folder / NAME}: is damaged")


def verify(folder: Path, files: dict, share: int = 0, num_shares: int = 1) -> None:
    """Raises Damaged when a file is missing, shorter, longer or other than it was.

    Several hosts can each check a share of the files.
    """
    mine = sorted(files)[share::num_shares]
    with ThreadPoolExecutor(_THREADS) as threads:
        for name, there in zip(mine, threads.map(lambda n: _look(folder / n), mine), strict=True):
            size, checksum = files[name]
            if there is None:
                raise Damaged(f"{folder / name}: is missing")
            if isinstance(there, OSError):
                raise Damaged(f"{folder / name}: cannot be read: {there.strerror}")
            if there[0] != size:
                raise Damaged(f"{folder / name}: has {there[0]} bytes, not {size}")
            if there[1] != checksum:
                raise Damaged(f"{folder / name}: its bytes have changed since it was written")


def _look(file: Path):
    """[size, checksum]; None when the file is not there, or the error of reading it."""
    try:
        return _size_and_checksum(file)
    except FileNotFoundError:
        return None
    except OSError as e:
        return e


def _size_and_checksum(file: Path) -> list[int]:
    """crc32 finds every flipped bit and every burst of up to 32; it is twice to five times as fast
    as the cryptographic ones, and nobody is kept from forging.
    """
    size, checksum, buffer = 0, 0, memoryview(bytearray(_PIECE))
    with file.open("rb", buffering=0) as f:
        while count := f.readinto(buffer):
            size, checksum = size + count, zlib.crc32(buffer[:count], checksum)
    return [size, checksum]


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
