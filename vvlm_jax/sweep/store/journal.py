"""The journal of a job: numbered files, each created once, by one process.

    NAME.0001.json   {"event": "claim", …}
    NAME.0002.json   {"event": "done", "result": …}

The entry with the highest number is the job's state. A process changes the state by creating the
next number, which the store lets only one process do (`backends.Backend.create`). So of a worker
that finishes, another that takes over its stale claim and a user who cancels, exactly one wins, and
the others see that they lost. This needs exclusive creation of one file and no lock.

Entries are never changed or removed, but a worker touches its claim while it lives. A claim's age
is the difference of two times set by the store's own clock, its last touch and a file touched now:
hosts' clocks may be wrong. A truncated entry, which a crash can leave on filesystems without hard
links, counts as an abandoned claim.
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
    """Seconds, by the store's clock: when a claim was last touched, another entry written."""


NO_ENTRY = Entry(0, NOTHING, {}, 0.0)


def entry_file(folder: Path | Key, name: str, number: int) -> Path | Key:
    """Return the path of a job's entry."""
    return folder / f"{name}.{number:04d}.json"


def create(path: Path | Key, event: str, **values) -> bool:
    """Write an entry unless its number is taken; return whether it was written.

    Raises OSError when the disk is full or a bucket does not answer.
    """
    return backends.of(path).create(path, json.dumps({"event": event, **values}) + "\n")


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, says that a disk is full.

    Libraries put the error number into the message of an exception of their own, so the text counts
    too.
    """
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
    """Read an entry; a truncated one is returned as a claim of an unknown worker."""
    text, touched = backends.of(path).read(path)
    try:
        body = json.loads(text)
        event = body.pop("event")
    except (ValueError, KeyError, AttributeError, TypeError):
        return Entry(number, CLAIM, {"worker": "?"}, touched)
    return Entry(number, event, body, touched)


def newest(folder: str | Path | Key) -> dict[str, tuple[int, os.DirEntry | Listed]]:
    """Return {job's name: (number, file)} of the newest entries in a folder, by one listing.

    A listing of a bucket includes the folders below, with names RUN/NAME.
    """
    found = {}
    for file in backends.of(folder).listing(folder):
        match = _FILE.fullmatch(file.name)
        if match and int(match[2]) > found.get(match[1], (0, None))[0]:
            found[match[1]] = int(match[2]), file
    return found


def touch(path: Path | Key) -> None:
    """Set a claim's time to the store's present time."""
    backends.of(path).touch(path)


def now(folder: Path | Key) -> float:
    """Return the time by the store's clock."""
    return backends.of(folder).now(folder)


def identity() -> list | None:
    """Return what tells this process from any other: boot, process namespace, id, start time.

    A process id alone is used again after a while. None where the system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return [boot, os.readlink("/proc/self/ns/pid"), os.getpid(), _start(os.getpid())]
    except OSError:
        return None


def is_dead(other: list | None) -> bool:
    """Return whether a process, by its `identity`, is known to have ended.

    False for processes that cannot be seen from here, such as those of other machines.
    """
    mine = identity()
    if not other or mine is None or other[:2] != mine[:2]:
        return False
    try:
        return _start(other[2]) != other[3]
    except OSError:
        return True


def _start(pid: int) -> str:
    """Return when a process started, in clock ticks since boot. A zombie counts as ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]
