"""Open all media of a mixture with several processes, and keep the findings in a journal.

The journal has a JSON line for each file: `path`, `stamp` (size and time of change; a file whose
stamp differs is opened again), and either its dimensions or the problem.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vvlm_jax.data.media import TooLate, open_image, within
from vvlm_jax.data.video import VideoError, probe
from vvlm_jax.storage import files

_AT_ONCE = 8
"""Files that a worker gets at a time."""


@dataclass(frozen=True)
class Checked:
    """Findings about a media file, or a folder of frames."""

    path: str
    """Relative to the root of all sources."""
    stamp: str = ""
    """Empty for a file that must be opened again next time."""
    num_frames: int = 0
    duration_s: float = 0.0
    height: int = 0
    width: int = 0
    problem: str = ""


def check_media(
    root: Path,
    paths: Iterable[tuple[str, str]],
    journal: Path,
    *,
    workers: int = 0,
    seconds: float = 300.0,
    stamps: Callable[[str], str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Checked]:
    """Open media and return {path: Checked}.

    A file in the journal whose stamp has not changed is not opened again. A file whose reader takes
    longer than `seconds`, or crashes its process, counts as broken, but is opened again the next
    time: a busy machine may have been the reason.

    Args:
      paths: pairs (kind, path relative to the root).
      workers: processes; 0 opens the files in this one.
      stamps: returns the stamp of a path; `files.stamps_below(root)` by default.
    """
    paths, stamps = list(dict.fromkeys(paths)), stamps or files.stamps_below(root)
    known = _read(journal)
    found = {path: known[path] for _, path in paths if path in known}
    found = {p: c for p, c in found.items() if c.stamp and c.stamp == stamps(p)}
    left = [one for one in paths if one[1] not in found]
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a", encoding="utf-8") as lines:
        if not _ends_a_line(journal):
            lines.write("\n")
        progress(len(found), len(paths))
        for checked in _checked(root, left, workers, seconds):
            found[checked.path] = checked
            lines.write(json.dumps(asdict(checked)) + "\n")
            lines.flush()
            progress(len(found), len(paths))
    return {path: found[path] for _, path in paths}


def _ends_a_line(journal: Path) -> bool:
    with journal.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _read(journal: Path) -> dict[str, Checked]:
    """Return the newest line about each path; a truncated line is ignored."""
    known = {}
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8").split("\n"):
            try:
                checked = Checked(**json.loads(line))
            except (json.JSONDecodeError, TypeError):
                continue
            known[checked.path] = checked
    return known


def _checked(root: Path, left: list[tuple[str, str]], workers: int, seconds: float):
    if not workers:
        for one in left:
            yield _check(root, one, seconds)
        return
    chunks = [left[i : i + _AT_ONCE] for i in range(0, len(left), _AT_ONCE)]
    alone = []
    with _pool(workers) as pool:
        waiting = {}
        for chunk in chunks:
            if len(waiting) >= 2 * workers:
                yield from _ready(waiting, alone)
            try:
                waiting[_submit(pool, _check_all, root, chunk, seconds)] = chunk
            except BrokenProcessPool:
                alone += chunk
        while waiting:
            yield from _ready(waiting, alone)
    for one in alone:  # files of a crashed worker: each gets its own process
        with _pool(1) as pool:
            try:
                yield _submit(pool, _check, root, one, seconds).result()
            except BrokenProcessPool:
                problem = "its decoder crashes the process that reads it"
                yield Checked(one[1], problem=f"{root / one[1]}: {problem}")


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool whose processes end with the block, immediately after an error, and also when
    this process is killed.
    """
    before = {*multiprocessing.active_children()}
    # Spawned, since threads of decoders and of jax do not survive a fork.
    fresh = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=fresh, initializer=_end_with_parent)
    try:
        yield pool
    except BaseException:
        for child in {*multiprocessing.active_children()} - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this process when its parent ends: a killed parent cannot end its workers."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _submit(pool: ProcessPoolExecutor, *call) -> Future:
    """Submit a call with SIGINT blocked, which new workers inherit: on Ctrl-C only this process
    reports the interruption, and no worker prints a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(*call)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ready(waiting: dict, alone: list):
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        chunk = waiting.pop(future)
        try:
            yield from future.result()
        except BrokenProcessPool:
            alone += chunk


def _check_all(root: Path, chunk: list[tuple[str, str]], seconds: float) -> list[Checked]:
    return [_check(root, one, seconds) for one in chunk]


def _check(root: Path, one: tuple[str, str], seconds: float) -> Checked:
    kind, name = one
    path = root / name
    mark = files.stamp(path)
    if not mark:
        return Checked(name, problem=f"{path}: no such file")
    try:
        return within(seconds, str(path), look_at, path, name, mark, kind)
    except TooLate as e:
        return Checked(name, problem=str(e))
    except VideoError as e:
        return Checked(name, mark, problem=str(e))


def look_at(path: Path, name: str, mark: str, kind: str) -> Checked:
    """Return frames, seconds and size of a video or an image. Raise VideoError if unreadable."""
    if kind == "video":
        info = probe(path)
        return Checked(name, mark, info.num_frames, info.duration_s, info.height, info.width)
    with open_image(path) as image:
        return Checked(name, mark, 1, 0.0, image.height, image.width)
