"""Do the media of a mixture exist and open? Many processes, a journal that is taken up again.

The journal is a JSON line a file: `path`, `stamp` (size and time of change, by which a file that
has changed since is looked at again), and either what it holds or what is wrong with it.
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
"""Files that a process is given at a time."""


@dataclass(frozen=True)
class Checked:
    """What is known of a file, or of a folder of frames."""

    path: str
    """Below the root of all sources."""
    stamp: str = ""
    """Empty for what is to be opened again the next time."""
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
    """{path: what is known of it} for (kind, path)s below the root.

    What stands in the journal and has not changed, by its `stamps`, is not opened again. With
    `workers` 0 this process does all. A file whose reader takes longer than `seconds`, or ends its
    process, is broken like one that cannot be read, but only for this time: a busy machine may be
    the reason.
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
    """The last word on each path; a line that was cut short by a kill is passed over."""
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
    for one in alone:  # beside one of these a process ended: each gets one of its own
        with _pool(1) as pool:
            try:
                yield _submit(pool, _check, root, one, seconds).result()
            except BrokenProcessPool:
                problem = "its decoder ends the process that reads it"
                yield Checked(one[1], problem=f"{root / one[1]}: {problem}")


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, at once when it is left by an error, and with this one,
    however it ends.
    """
    before = {*multiprocessing.active_children()}
    # Fresh ones: decoders' threads and jax's do not survive a fork.
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
    """A process that was killed cannot end those that it started."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _submit(pool: ProcessPoolExecutor, *call) -> Future:
    """Ctrl-C is for this process alone, to end in a line: others inherit here that it is blocked,
    before they can print what it did to them.
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
        return within(seconds, str(path), _look, path, name, mark, kind)
    except TooLate as e:
        return Checked(name, problem=str(e))
    except VideoError as e:
        return Checked(name, mark, problem=str(e))


def _look(path: Path, name: str, mark: str, kind: str) -> Checked:
    if kind == "video":
        info = probe(path)
        return Checked(name, mark, info.num_frames, info.duration_s, info.height, info.width)
    with open_image(path) as image:
        return Checked(name, mark, 1, 0.0, image.height, image.width)
