"""The journal of a job: numbered files, each created once and by one process only.

    NAME.0001.json   {"event": "claim", …}
    NAME.0002.json   {"event": "done", "result": …}

The entry with the highest number is what the job is. Whoever wants to change that makes the next
number, and a number can be made only once: of a worker that finishes, another that takes its stale
claim over and a person who cancels exactly one wins, wherever one file can be made once: on a
filesystem with exclusive creation, or in a bucket whose writes may be bound to "unless there is
one" (`places.py`).
Entries are never changed or removed; a claim is touched while its worker lives. What a crash left
cut counts as a claim of nobody's.

A claim's age is the difference of two times that the store's own clock has set: its touch, and that
of a file written now. The clocks of hosts play no part.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.storage.bucket import Key, Listed
from vvlm_jax.sweep.store import backends
from vvlm_jax.sweep.store.backends import FULL

CLAIM, DONE, FAILED, STOPPED = "claim", "done", "failed", "stopped"
CANCELLED, RETRY, NOTHING = "cancelled", "retry", ""
TERMINAL = (DONE, FAILED, CANCELLED)
_FILE = re.compile(r"(.+)\.(\d{4,})\.json")


class Entry(NamedTuple):
    """The newest entry of a job; number 0 and no event when there is none."""

    number: int
    event: str
    body: dict
    touched: float
    """Seconds, by the store's clock: when a claim was last touched, anything else written."""


NONE = Entry(0, NOTHING, {}, 0.0)


def file_of(folder: Path | Key, name: str, number: int) -> Path | Key:
    """Where an entry stands."""
    return folder / f"{name}.{number:04d}.json"


def create(path: Path | Key, event: str, **values) -> bool:
    """Writes an entry unless there is one of this number; whether it did. OSError when the disk
    takes no more, or a bucket cannot be reached.
    """
    return backends.of(path).create(path, json.dumps({"event": event, **values}) + "\n")


def is_full(error: BaseException | None) -> bool:
    """Whether a disk takes no more, said by an error or by what it came from."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(os.strerror(number) in str(error) for number in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def read(path: str | Path | Key, number: int) -> Entry:
    """An entry; one that was cut is a claim of nobody's."""
    text, touched = backends.of(path).read(path)
    try:
        body = json.loads(text)
        event = body.pop("event")
    except (ValueError, KeyError, AttributeError, TypeError):
        return Entry(number, CLAIM, {"worker": "?"}, touched)
    return Entry(number, event, body, touched)


def numbers(folder: str | Path | Key) -> dict[str, tuple[int, os.DirEntry | Listed]]:
    """{name: number and file of the newest entry} of the jobs in a folder, by one listing; in a
    bucket of the jobs in the folders below it, too, {"RUN/NAME": …}.
    """
    newest = {}
    for file in backends.of(folder).listing(folder):
        match = _FILE.fullmatch(file.name)
        if match and int(match[2]) > newest.get(match[1], (0, None))[0]:
            newest[match[1]] = int(match[2]), file
    return newest


def touch(path: Path | Key) -> None:
    """Sets a claim's time to the store's now."""
    backends.of(path).touch(path)


def now(folder: Path | Key) -> float:
    """The store's clock: the time that a file written there gets."""
    return backends.of(folder).now(folder)


def life() -> list | None:
    """What tells this process from any other: boot, process namespace, id, start. None where the
    system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [boot, os.readlink("/proc/self/ns/pid"), os.getpid(), _start(os.getpid())]
    except OSError:
        return None


def is_dead(other: list | None) -> bool:
    """Whether a process of this machine is known to have ended; False when that cannot be seen."""
    mine = life()
    if not other or mine is None or other[:2] != mine[:2]:
        return False
    try:
        return _start(other[2]) != other[3]
    except OSError:
        return True


def _start(pid: int) -> str:
    """Clock ticks from boot to the start of a process; a zombie has ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]
