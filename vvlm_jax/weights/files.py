"""Read and write safetensors and `.npz` files one tensor at a time, without executing anything.

A safetensors file is a length, a JSON header and bytes
(https://github.com/huggingface/safetensors#format); an `.npz` is a zip of `.npy` files. A reader
has `infos`, {name: dtype and shape} from headers only, and `read(name, start, count)`, which
returns elements of one tensor in C order, flat.
"""

import contextlib
import json
import math
import re
import tokenize
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vvlm_jax.weights.mapping import Info, WeightsError, short

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 100_000_000
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_CODES = {name: code for code, name in _NAMES.items()}
_AGAIN = "copy or download it again"


class Place(NamedTuple):
    """Byte range of a tensor in a file."""

    file: Path
    start: int
    stop: int


class Shard(NamedTuple):
    """One file of a safetensors directory, as needed to write it again."""

    name: str
    header: bytes
    """The JSON header with its padding."""
    tensors: tuple[tuple[str, int, int], ...]
    """(name, first byte, end), in file order."""


class Safetensors:
    """The weights of a Hugging Face directory: `model.safetensors`, or shards and their index.

    Raises WeightsError when a file is missing or truncated, or index and shards disagree.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.infos: dict[str, Info] = {}
        self.metadata: dict[str, str] = {}
        self.duplicates: list[str] = []
        self.shards: list[Shard] = []
        self._places: dict[str, Place] = {}
        index = self._index()
        for name in sorted(set(index.values())) if index else [SINGLE]:
            self._add(self.folder / name)
        if index and (wrong := self._against(index)):
            listed = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
            raise WeightsError(
                f"{self.folder / INDEX}: {len(wrong)} tensors are not in the shard it names "
                f"({listed}); {_AGAIN}"
            )

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return `count` elements from `start` on, by default all, as a flat array."""
        place, dtype = self._places[name], jnp.dtype(self.infos[name].dtype)
        count = math.prod(self.infos[name].shape) - start if count is None else count
        offset = place.start + start * dtype.itemsize
        return np.fromfile(place.file, dtype, count, offset=offset)

    def raw(self, name: str) -> np.ndarray:
        """Return a tensor's bytes, of any dtype."""
        place = self._places[name]
        return np.fromfile(place.file, np.uint8, place.stop - place.start, offset=place.start)

    def _index(self) -> dict[str, str]:
        """Return {tensor: shard}; empty for a single file."""
        if (self.folder / SINGLE).is_file():
            return {}
        file = self.folder / INDEX
        if not file.is_file():
            pickled = sorted(self.folder.glob("*.bin")) + sorted(self.folder.glob("*.pt*"))
            raise WeightsError(
                f"{pickled[0]}: pickled weights can execute code and are not read; save the model "
                "again as safetensors (save_pretrained does)"
                if pickled
                else f"{self.folder}: has neither {SINGLE} nor {INDEX}; {_AGAIN}"
            )
        index = read_json(file, "an index of shards").get("weight_map")
        if not isinstance(index, dict) or not index:
            raise WeightsError(
                f"{file}: not an index of shards (weight_map = {short(index)}); {_AGAIN}"
            )
        for name, shard in index.items():
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise WeightsError(
                    f"{file}: weight_map of {short(name)}: {short(shard)} is not the name of a "
                    "file beside it"
                )
        return index

    def _add(self, file: Path) -> None:
        header, raw = read_header(file)
        self.metadata |= header.pop("__metadata__", {})
        begin, placed = 8 + len(raw), []
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            if name in self.infos:
                self.duplicates.append(name)
            code = entry["dtype"]
            self.infos[name] = Info(_NAMES.get(code, code), tuple(entry["shape"]))
            self._places[name] = Place(file, begin + start, begin + stop)
            placed.append((name, start, stop))
        self.shards.append(Shard(file.name, raw, tuple(sorted(placed, key=lambda x: x[1:]))))

    def _against(self, index: dict[str, str]) -> list[str]:
        """Return the names on which the index and the shards disagree."""
        there = {name: place.file.name for name, place in self._places.items()}
        return sorted(name for name, _ in there.items() ^ index.items())


def read_header(file: Path) -> tuple[dict, bytes]:
    """Return (header, its bytes) of a safetensors file. Raise WeightsError for a damaged file."""
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; {_AGAIN}")
    size = file.stat().st_size
    with file.open("rb") as f:
        head = f.read(8)
        length = int.from_bytes(head, "little")
        if head == b"version ":
            raise WeightsError(f"{file}: a Git LFS pointer, not the weights; run `git lfs pull`")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise WeightsError(f"{file}: not a safetensors file, or truncated; {_AGAIN}")
        raw = f.read(length)
    twice: list[str] = []

    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.extend(n for n, count in Counter(n for n, _ in pairs).items() if count > 1)
        return found

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise WeightsError(f"{file}: its header is damaged (not JSON); {_AGAIN}") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: its header is damaged (not an object); {_AGAIN}")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if twice:
        raise WeightsError(f"{file}: its header has {', '.join(map(short, twice[:3]))} twice")
    _check_metadata(header.get("__metadata__", {}), file)
    for name, entry in tensors.items():
        _check_entry(name, entry, file)
    ends = sorted(entry["data_offsets"] for entry in tensors.values())
    whole = 8 + length + max((stop for _, stop in ends), default=0)
    if size != whole:
        kind = "truncated" if size < whole else "longer than its header says"
        raise WeightsError(f"{file}: {kind}: {size} bytes, {whole} expected; {_AGAIN}")
    position = 0
    for start, stop in ends:
        if start != position:
            raise WeightsError(f"{file}: its tensors overlap or leave gaps; {_AGAIN}")
        position = stop
    return header, raw


def _check_metadata(metadata, file: Path) -> None:
    texts = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not texts:
        raise WeightsError(
            f"{file}: its header is damaged (__metadata__ = {short(metadata)}: must hold texts); "
            f"{_AGAIN}"
        )


def _check_entry(name: str, entry, file: Path) -> None:
    """Check one tensor of a header. Errors show its name, so it must be printable."""

    def sizes(*numbers):
        return all(type(n) is int and n >= 0 for n in numbers)

    what = f"{file}: its header is damaged (tensor {short(name)}"
    if not name.isprintable():
        raise WeightsError(f"{what} has control characters in its name); {_AGAIN}")
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [start, stop]} if sizes(
            *shape, start, stop
        ):
            itemsize = _bytes_of(code)
            if itemsize and stop - start != math.prod(shape) * itemsize:
                raise WeightsError(f"{what}: its bytes do not match its shape); {_AGAIN}")
        case _:
            raise WeightsError(
                f"{what} = {short(entry)}: needs dtype, shape, two data_offsets); {_AGAIN}"
            )


def read_json(file: Path, what: str) -> dict:
    """Return the object in a JSON file. Raise WeightsError, "not WHAT", for any other content."""
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{file}: not {what} (not JSON: {short(str(e))}); {_AGAIN}") from None
    if not isinstance(values, dict):
        raise WeightsError(f"{file}: not {what} ({short(values)}); {_AGAIN}")
    return values


def _bytes_of(code: str) -> int:
    """Return the bytes of an element; 0 for formats smaller than a byte."""
    bits = int(re.search(r"\d+", code)[0]) if re.search(r"\d", code) else 8
    return bits // 8


def header_of(infos: dict[str, Info], metadata: dict[str, str]) -> bytes:
    """Return a header in the safetensors library's own order, padded to 8 bytes: wide dtypes
    first, then by name.
    """
    header: dict = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name in sorted(infos, key=lambda n: (-jnp.dtype(infos[n].dtype).itemsize, n)):
        dtype, shape = infos[name]
        stop = position + math.prod(shape) * jnp.dtype(dtype).itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [position, stop],
        }
        position = stop
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return raw + b" " * (-len(raw) % 8)


def write_safetensors(file: Path, header: bytes, tensors) -> None:
    """Write the header, then the arrays that `tensors` yields in file order."""
    with file.open("wb") as f:
        f.write(len(header).to_bytes(8, "little"))
        f.write(header)
        for x in tensors:
            f.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


_DAMAGED = (
    zipfile.BadZipFile, zlib.error, EOFError, ValueError, SyntaxError, tokenize.TokenError,
    RuntimeError, KeyError,
)  # fmt: skip
"""Raised by zipfile and NumPy for damaged files (RuntimeError: for encrypted ones)."""


class Npz:
    """An `.npz` file; nothing in it is unpickled.

    NumPy stores bfloat16 arrays as raw pairs of bytes; they are read as bfloat16.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        self.infos: dict[str, Info] = {}
        self.duplicates: list[str] = []
        self._last: tuple[str, np.ndarray] | None = None
        if not self.file.is_file():
            raise WeightsError(f"{self.file}: no such file")
        with self._open() as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name in self.infos:
                    self.duplicates.append(name)
                if not name.isprintable():
                    raise WeightsError(f"{self.file}: {short(name)}: control characters in a name")
                with archive.open(member) as f:
                    info = self._info(name, f)
                    there = archive.getinfo(member).file_size - f.tell()
                if there != math.prod(info.shape) * jnp.dtype(info.dtype).itemsize:
                    raise WeightsError(f"{self.file}: {name}: its bytes do not match its shape")
                self.infos[name] = info

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """Return `count` elements from `start` on, by default all, as a flat array. The array last
        read is cached.
        """
        if self._last is None or self._last[0] != name:
            self._last = None  # frees memory before the next one is read
            with self._open() as archive, archive.open(f"{name}.npy") as f:
                x = np.lib.format.read_array(f, allow_pickle=False)
            x = x.view(jnp.bfloat16) if x.dtype.kind == "V" else x
            self._last = (name, np.ascontiguousarray(x).reshape(-1))
        stop = None if count is None else start + count
        return self._last[1][start:stop]

    def _info(self, name: str, f) -> Info:
        version = np.lib.format.read_magic(f)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(f)
        if dtype.hasobject:
            raise WeightsError(f"{self.file}: {name} holds Python objects, which are not read")
        is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2
        return Info("bfloat16" if is_bfloat16 else dtype.name, shape)

    @contextlib.contextmanager
    def _open(self):
        try:
            with zipfile.ZipFile(self.file) as archive:
                yield archive
        except WeightsError:
            raise
        except _DAMAGED as e:
            reason = short(str(e))
            raise WeightsError(f"{self.file}: not a whole .npz ({reason}); {_AGAIN}") from None


def write_npz(file: Path, tensors) -> None:
    """Write (name, array) pairs one after another."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, x in tensors:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as f:
                np.lib.format.write_array(f, np.ascontiguousarray(x), allow_pickle=False)
