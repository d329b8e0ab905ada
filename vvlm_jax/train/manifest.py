"""Manifest of a checkpoint: its description, and the size and checksum of each of its files.

The manifest is written after all other files, so that a folder with a manifest is complete. It is
read before them, so that a changed file is detected before anything is restored from it.
"""

import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vvlm_jax import atomic

NAME = "manifest.json"
_BUFFER = 2**22
"""Bytes of a file that each thread has in memory."""
_THREADS = 4


class Incomplete(ValueError):
    """A checkpoint without a manifest: its save was interrupted."""


class Damaged(ValueError):
    """A checkpoint that has changed since it was written; the message names the first such file."""


def write(folder: Path, about: dict) -> None:
    """Write `about` (JSON) with the size and checksum of every file under `folder`.

    The manifest appears atomically. Raises OSError when a file cannot be read or written.
    """
    # Files are read back: a checksum of the arrays in memory would not cover what orbax wrote.
    names = sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != NAME
    )
    with ThreadPoolExecutor(_THREADS) as threads:
        sums = list(threads.map(lambda name: _size_and_checksum(folder / name), names))
    body = {"about": about, "files": dict(zip(names, sums, strict=True))}
    text = json.dumps({"sha256": _digest(body), **body})
    atomic.write_text(folder / NAME, text, sync=True)


def read(folder: Path) -> dict:
    """Read the manifest's {"about", "files"}.

    Raises Incomplete when there is no manifest, Damaged when its own checksum does not match.
    """
    try:
        text = (folder / NAME).read_bytes()
    except FileNotFoundError:
        raise Incomplete(f"{folder}: has no {NAME}, so its save was interrupted") from None
    try:
        body = json.loads(text)
        if body.pop("sha256") == _digest(body):
            return body
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise Damaged(f"{folder / NAME}: is damaged")


def verify(folder: Path, files: dict, share: int = 0, num_shares: int = 1) -> None:
    """Check files against their sizes and checksums.

    Args:
      files: {name: [size, checksum]} of the manifest.
      share, num_shares: check every num_shares-th file only, so that hosts divide the work.

    Raises Damaged for the first file, by name, that is missing, cannot be read, or has changed.
    """
    mine = sorted(files)[share::num_shares]
    with ThreadPoolExecutor(_THREADS) as threads:
        results = threads.map(lambda name: _try_checksum(folder / name), mine)
        for name, found in zip(mine, results, strict=True):
            size, checksum = files[name]
            if found is None:
                raise Damaged(f"{folder / name}: is missing")
            if isinstance(found, OSError):
                raise Damaged(f"{folder / name}: cannot be read: {found.strerror}")
            if found[0] != size:
                raise Damaged(f"{folder / name}: has {found[0]} bytes, not {size}")
            if found[1] != checksum:
                raise Damaged(f"{folder / name}: its bytes have changed since it was written")


def _try_checksum(file: Path):
    """Return [size, checksum], None for a missing file, or the OSError of reading it."""
    try:
        return _size_and_checksum(file)
    except FileNotFoundError:
        return None
    except OSError as e:
        return e


def _size_and_checksum(file: Path) -> list[int]:
    """Return [size in bytes, crc32]."""
    # crc32 detects every single bit flip and every burst of up to 32 bits, and is two to five times
    # as fast as a cryptographic hash, which would also detect forgery; that is not a goal here.
    size, checksum, buffer = 0, 0, memoryview(bytearray(_BUFFER))
    with file.open("rb", buffering=0) as f:
        while count := f.readinto(buffer):
            size, checksum = size + count, zlib.crc32(buffer[:count], checksum)
    return [size, checksum]


def _digest(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
