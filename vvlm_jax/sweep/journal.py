"""The journal of a job: numbered files, each created once and by one process only.

    NAME.0001.json   {"event": "claim", …}
    NAME.0002.json   {"event": "done", "result": …}

The entry with the highest number is what the job is. Whoever wants to change that makes the next
number, and a number can be made only once: of a worker that finishes, another that takes its stale
claim over and a person who cancels exactly one wins, on any filesystem with exclusive creation.
Entries are never changed or removed; a claim is touched while its worker lives. What a crash left
cut counts as a claim of nobody's.

A claim's age is the difference of two times that the store's own clock has set: its touch, and that
of a file written now. The clocks of hosts play no part.
"""

import errno
import json
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

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


def file_of(folder: Path, name: str, number: int) -> Path:
    """Where an entry stands."""
    return folder / f"{name}.{number:04d}.json"


def create(path: Path, event: str, **values) -> bool:
    """Writes an entry unless there is one of this number; whether it did. OSError when the disk
    takes no more.

    A file that is whole gets its name by a hard link, which fails when the name is taken. Where
    there are no links, O_EXCL makes the file, and a crash may leave it cut.
    """
    text = json.dumps({"event": event, **values}) + "\n"
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(partial, os.O_TRUNC, text)
        try:
            os.link(partial, path)
            return True
        except FileExistsError:
            # The server of a network filesystem may have done it, and its answer been lost.
            return partial.stat().st_nlink == 2
        except OSError as e:
            if e.errno in _FULL:
                raise
    finally:
        partial.unlink(missing_ok=True)
    try:
        _write(path, os.O_EXCL, text)
    except FileExistsError:
        return False
    return True


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _write(path: Path, how: int, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o666)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def is_full(error: BaseException | None) -> bool:
    """Whether a disk takes no more, said by an error or by what it came from."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(os.strerror(number) in str(error) for number in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


def read(path: str | Path, number: int) -> Entry:
    """An entry; one that was cut is a claim of nobody's."""
    with open(path, "rb") as file:  # opening asks a network filesystem for today's times
        touched, text = os.fstat(file.fileno()).st_mtime, file.read()
    try:
        body = json.loads(text)
        event = body.pop("event")
    except (ValueError, KeyError, AttributeError, TypeError):
        return Entry(number, CLAIM, {"worker": "?"}, touched)
    return Entry(number, event, body, touched)


def numbers(folder: str | Path) -> dict[str, tuple[int, os.DirEntry]]:
    """{name: number and file of the newest entry} of the jobs in a folder, by one listing."""
    newest = {}
    try:
        with os.scandir(folder) as listing:
            for file in listing:
                match = _FILE.fullmatch(file.name)
                if match and int(match[2]) > newest.get(match[1], (0, None))[0]:
                    newest[match[1]] = int(match[2]), file
    except FileNotFoundError:
        return {}
    return newest


def touch(path: Path) -> None:
    """Sets a claim's time to the store's now."""
    os.utime(path)


def now(folder: Path) -> float:
    """The store's clock: the time that a file written there gets."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{socket.gethostname()}-{os.getpid()}"
    file.touch()
    touch(file)
    return file.stat().st_mtime


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
