"""Run folders of a bucket's store: a worker has a copy on its own disk while its job lasts.

    STORE/runs/RUN/…            the run's files, where they stand in the folder
    STORE/runs/RUN/files.json   the ones that count: {name: size}

New and changed files go up every now and then and once more before the job's end is written, then
`files.json`: what an upload that broke off has left behind does not count. Checkpoints and other
folders go up once they are whole. Who takes a job up gets what counts.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from vvlm_jax import atomic
from vvlm_jax.storage.bucket import Key
from vvlm_jax.sweep.store import journal

FILES = "files.json"
MANIFEST = "manifest.json"
"""Last file of a checkpoint, `train/manifest.py`'s."""
_PREFIX = "vvlm_jax-sweep-"
_UNFINISHED = (".orbax-checkpoint-tmp", atomic.PREFIX)


class Copies:
    """The folders of one job: that of its run, and copies to read of others. A context; within,
    the run's folder is kept up in the bucket.

    Args:
      folder: of a run, in the bucket.
      is_held: whether the job is still this worker's; else nothing goes up.
      seconds: between looks at what is new.
    """

    def __init__(self, folder: Callable[[str], Key], run: str, is_held, seconds: float):
        self._folder, self._run, self._is_held, self._seconds = folder, run, is_held, seconds
        self._known: dict[str, tuple[int, int]] = {}
        self._sent: set[str] = set()
        self._over, self._thread = threading.Event(), None

    def __enter__(self):
        remove_left_behind()
        self._here = Path(tempfile.mkdtemp(prefix=_named()))
        try:
            self._known = _down(self._folder(self._run), self._here / self._run)
            self._tidy()
        except BaseException:
            shutil.rmtree(self._here, ignore_errors=True)
            raise
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop()
        shutil.rmtree(self._here, ignore_errors=True)

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()

    def folder(self, run: str) -> Path:
        """A run's folder here. That of another run is a copy to read, as it was when asked for."""
        here = self._here / run
        if not here.exists() and run != self._run:
            _down(self._folder(run), here)
        here.mkdir(parents=True, exist_ok=True)
        return here

    def _tidy(self) -> None:
        """Removes what dead workers have left of checkpoints: they are large."""
        folder = self._folder(self._run) / "checkpoints"
        for item in folder.bucket.listing(folder):
            if f"checkpoints/{item.name}" not in self._known:
                folder.bucket.delete(item.path)

    def finish(self) -> None:
        """Brings up all there is, before the job's end is written. OSError when it cannot."""
        self._stop()
        self._up()

    def _keep_up(self) -> None:
        while not self._over.wait(self._seconds):
            try:
                self._up()
            except OSError as e:  # the next time, or at the end
                print(f"{self._folder(self._run)}: {e.strerror}", file=sys.stderr, flush=True)

    def _up(self) -> None:
        """One look: what is new or changed goes up, then the list, then what is gone goes."""
        here, there = self._here / self._run, self._folder(self._run)
        found = snapshot(here)
        if found == self._known or not self._is_held():
            return
        torn = set()
        # A checkpoint's manifest behind its files: also without the list it is whole then.
        for name in sorted(found, key=_manifest_last):
            if self._known.get(name) == found[name] or _unit(name) in torn:
                continue
            self._sent.add(name)
            try:
                there.bucket.upload(here / name, there / name)
            except FileNotFoundError:  # the trainer has removed an old checkpoint meanwhile
                torn.add(_unit(name))
        found = {name: stat for name, stat in found.items() if _unit(name) not in torn}
        sizes = {name: size for name, (size, _) in found.items()}
        there.bucket.replace(there / FILES, json.dumps(sizes, indent=1, sort_keys=True) + "\n")
        gone = (self._known.keys() | self._sent) - found.keys()
        self._known, self._sent = found, set()
        for name in sorted(gone, key=lambda name: not name.endswith(f"/{MANIFEST}")):
            there.bucket.delete(there / name)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """{name: (size, time)} of the files below a folder, without those that are not whole yet."""
    found = {}
    for path, folders, files in os.walk(folder):
        place = Path(path).relative_to(folder)
        folders[:] = [name for name in folders if not any(word in name for word in _UNFINISHED)]
        if place.parts[:1] == ("checkpoints",) and len(place.parts) == 2 and MANIFEST not in files:
            folders[:] = []  # its manifest is written last
            continue
        for name in files:
            if not any(word in name for word in _UNFINISHED):
                try:
                    stat = os.stat(os.path.join(path, name))
                except FileNotFoundError:
                    continue
                found[str(place / name)] = stat.st_size, stat.st_mtime_ns
    return found


def _manifest_last(name: str) -> tuple:
    return _unit(name), name.endswith(f"/{MANIFEST}"), name


def _unit(name: str) -> str:
    """What is whole or nothing: a checkpoint, another folder, or a file."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "checkpoints" else parts[0]


def _down(there: Key, here: Path) -> dict[str, tuple[int, int]]:
    """Copies a run's folder; its snapshot. Nothing when the run has not begun."""
    try:
        names = json.loads((there / FILES).read_text())
    except FileNotFoundError:
        return {}
    there.bucket.each(lambda name: there.bucket.download(there / name, here / name), names)
    return snapshot(here)


def remove_left_behind() -> None:
    """Removes the copies of this machine's workers that died, as their names say."""
    machine = _machine()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        where, pid, start, *_ = (*folder.name.removeprefix(_PREFIX).split("-"), "", "")
        life = journal.life()
        if life and where == machine and pid.isdigit():
            life[2:] = [int(pid), start]
            if journal.is_dead(life):
                shutil.rmtree(folder, ignore_errors=True)


def _named() -> str:
    """How this process calls its copies: which machine's it is, and which of its processes."""
    life = journal.life() or ["", "", os.getpid(), ""]
    return f"{_PREFIX}{_machine()}-{life[2]}-{life[3]}-"


def _machine() -> str:
    """A few letters for this boot and process namespace."""
    life = journal.life()
    return hashlib.sha256(repr(life and life[:2]).encode()).hexdigest()[:8]
