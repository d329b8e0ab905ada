"""sweep.json: the runs and jobs of a store. Written once as a whole; jobs may be added later."""

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
    """Return a store's address as a `Path` or, for gs:// and s3://, a `Key`.

    Raises ConfigError for an unsupported scheme, a malformed URL, or a bucket whose library is not
    installed.
    """
    return Key.of(path) if bucket.is_url(path) else Path(path)


def of(name: str, rows: Iterable[list], runs, shared: dict, lease: float, encoder=None) -> dict:
    """Return the content of sweep.json, as it is when read again.

    Args:
      rows: one list a job: id, kind, argument, ids of the jobs before it, cost.
      runs, shared, lease, encoder: as `Store.create` takes them.

    Raises ConfigError when two jobs have the same name.
    """
    rows = list(rows)
    if len({row[0] for row in rows}) < len(rows):
        raise ConfigError("two jobs have the same name")
    content = dict(version=VERSION, name=name, lease=lease, encoder=encoder, shared=shared)
    content |= dict(runs=list(runs), jobs=rows)
    return json.loads(json.dumps(content))  # lists in place of tuples


def is_there(path: Path | Key) -> bool:
    """Return whether a folder holds a sweep. Raises ConfigError when it holds other files."""
    if (path / FILE).exists():
        return True
    if isinstance(path, Key):
        other_files = path.is_dir()
    else:
        other_files = path.is_dir() and any(
            not p.name.startswith(f"{FILE}.") for p in path.iterdir()
        )
    if other_files:
        raise ConfigError(f"{path}: holds something else; choose another --store")
    return False


def read(path: Path | Key) -> dict:
    """Read a store's sweep.json.

    Raises ConfigError when there is none, or one that is damaged or of another version.
    """
    file = path / FILE
    try:
        content = json.loads(file.read_text())
        version = content["version"]
    except FileNotFoundError:
        path.is_dir()  # raises OSError when the bucket itself does not exist
        raise ConfigError(f"{path}: no sweep here (no {FILE})") from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(_DAMAGED.format(file)) from None
    if version != VERSION:
        raise ConfigError(
            f"{file}: written by another version of this program (format {version}, here "
            f"{VERSION}); use that version, or choose another --store"
        )
    if not {"name", "lease", "shared", "runs", "jobs"} <= content.keys():
        raise ConfigError(_DAMAGED.format(file))
    return content


def write_first(path: Path | Key, content: dict) -> None:
    """Create a store's sweep.json. Of several processes that try, the first wins."""
    if isinstance(path, Key):
        path.bucket.check_exclusive(path)
        path.bucket.create(path / FILE, json.dumps(content) + "\n")
        return
    path.mkdir(parents=True, exist_ok=True)
    partial = path / f"{FILE}.{socket.gethostname()}-{os.getpid()}"
    try:
        partial.write_text(json.dumps(content) + "\n")
        try:
            os.link(partial, path / FILE)
        except FileExistsError:
            pass
        except OSError:  # no hard links here: processes overwrite each other with equal content
            os.replace(partial, path / FILE)
    except OSError as e:  # the error of a full disk does not name the file
        raise OSError(e.errno, e.strerror, str(path / FILE)) from e
    finally:
        partial.unlink(missing_ok=True)


def write_again(path: Path | Key, content: dict) -> None:
    """Replace a store's sweep.json."""
    write_json(path / FILE, content, indent=None)


_COST = 4
"""Index of the cost in a job's row. Costs are estimates, and may differ between launches."""


def check_same(path: Path | Key, there: dict, here: dict) -> bool:
    """Compare a store's sweep.json with the one that a launch would write.

    Return whether it must be written again: jobs were added, or the constants of equation 1
    changed, on which no job depends. Raises ConfigError naming the first other difference.
    """
    for key in ("name", "shared"):
        if difference := _first_difference(there[key], here[key], key):
            name, old, new = difference
            raise ConfigError(
                f"{path} holds a sweep with {name} = {old}, not {new}; choose another --store"
            )
    old, new = ({job[0]: job for job in content["jobs"]} for content in (there, here))
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
    """Return (name, value in a, value in b) of the first difference of two JSON values, or None."""
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
    """Write JSON in one step: neither a reader nor a crash sees an incomplete file."""
    path = path if isinstance(path, Key) else Path(path)
    text = json.dumps(value, indent=indent, sort_keys=True) + "\n"
    backends.of(path).replace(path, text)
