"""sweep.json: what a sweep's folder is for. Written once and whole; jobs may be added to it."""

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.storage import bucket
from vvlm_jax.storage.bucket import Key
from vvlm_jax.sweep.store import backends

VERSION = 1
FILE = "sweep.json"
_DAMAGED = "{}: damaged; choose another --store, or remove it"


def folder(path: str | Path | Key) -> Path | Key:
    """A folder of a filesystem, or of a bucket. ConfigError for other addresses, or a bucket whose
    library is not installed.
    """
    return Key.of(path) if bucket.is_url(path) else Path(path)


def of(name: str, rows: Iterable[list], runs, shared: dict, lease: float, encoder=None) -> dict:
    """A document as it is read again.

    Args:
      rows: a job each: id, kind, argument, what it comes after, cost.
      runs, shared, lease, encoder: as `Store.create`.

    Raises ConfigError when two jobs have the same name.
    """
    rows = list(rows)
    if len({row[0] for row in rows}) < len(rows):
        raise ConfigError("two jobs have the same name")
    document = dict(version=VERSION, name=name, lease=lease, encoder=encoder, shared=shared)
    document |= dict(runs=list(runs), jobs=rows)
    return json.loads(json.dumps(document))  # lists for tuples


def is_there(path: Path | Key) -> bool:
    """Whether the folder holds a sweep. ConfigError when it holds something else."""
    if (path / FILE).exists():
        return True
    if isinstance(path, Key):
        something_else = path.is_dir()
    else:
        something_else = path.is_dir() and any(
            not p.name.startswith(f"{FILE}.") for p in path.iterdir()
        )
    if something_else:
        raise ConfigError(f"{path}: holds something else; choose another --store")
    return False


def read(path: Path | Key) -> dict:
    """ConfigError when there is no sweep, one of another version, or a damaged one."""
    file = path / FILE
    try:
        document = json.loads(file.read_text())
        version = document["version"]
    except FileNotFoundError:
        path.is_dir()  # OSError when there is no such bucket
        raise ConfigError(f"{path}: no sweep here (no {FILE})") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(_DAMAGED.format(file)) from None
    if version != VERSION:
        raise ConfigError(
            f"{file}: written by another version of this program (format {version}, here "
            f"{VERSION}); use that version, or choose another --store"
        )
    if not {"name", "lease", "shared", "runs", "jobs"} <= document.keys():
        raise ConfigError(_DAMAGED.format(file))
    return document


def write_first(path: Path | Key, document: dict) -> None:
    """Makes a folder's document; of several that try, the first wins."""
    if isinstance(path, Key):
        path.bucket.check_exclusive(path)
        path.bucket.create(path / FILE, json.dumps(document) + "\n")
        return
    path.mkdir(parents=True, exist_ok=True)
    partial = path / f"{FILE}.{socket.gethostname()}-{os.getpid()}"
    try:
        partial.write_text(json.dumps(document) + "\n")
        try:
            os.link(partial, path / FILE)
        except FileExistsError:
            pass
        except OSError:  # a filesystem without hard links: the last of equals wins
            os.replace(partial, path / FILE)
    except OSError as e:  # of a full disk, which does not say which
        raise OSError(e.errno, e.strerror, str(path / FILE)) from e
    finally:
        partial.unlink(missing_ok=True)


def write_again(path: Path | Key, document: dict) -> None:
    """Puts a document in the place of the one that is there."""
    write_json(path / FILE, document, indent=None)


_COST = 4
"""Where a job's cost stands in its row: an estimate, which may change."""


def check_same(path: Path | Key, there: dict, here: dict) -> bool:
    """Whether jobs have been added, or equation 1 is another now, which no job depends on.
    ConfigError when anything else differs.
    """
    for key in ("name", "shared"):
        if difference := _first_difference(there[key], here[key], key):
            name, old, new = difference
            raise ConfigError(
                f"{path} holds a sweep with {name} = {old}, not {new}; choose another --store"
            )
    old, new = ({job[0]: job for job in document["jobs"]} for document in (there, here))
    for id, job in old.items():
        if id not in new:
            raise ConfigError(
                f"{path} holds a sweep with {id}, which is not in this one; choose another --store"
            )
        if difference := _first_difference(job[:_COST], new[id][:_COST], id):
            _, was, now = difference
            raise ConfigError(
                f"{path} holds a sweep whose {id} has {was}, not {now}; choose another --store"
            )
    return len(new) > len(old) or there.get("encoder") != here["encoder"]


def _first_difference(a, b, name: str):
    """(name, value in a, value in b) of the first difference of two JSON values, or None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if found := _first_difference(a.get(key), b.get(key), f"{name}.{key}"):
                return found
        return None
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if found := _first_difference(x, y, f"{name}[{i}]"):
                return found
        return None
    return None if a == b else (name, *(_short(json.dumps(value)) for value in (a, b)))


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def write_json(path: str | Path | Key, value, indent: int | None = 1) -> None:
    """Writes JSON so that a reader, or a crash, never meets half of it."""
    path = path if isinstance(path, Key) else Path(path)
    text = json.dumps(value, indent=indent, sort_keys=True) + "\n"
    backends.of(path).replace(path, text)
