"""Run folders of a store in a bucket: a worker keeps a local copy while its job runs.

    STORE/runs/RUN/…            the run's files, under the same names as in the folder
    STORE/runs/RUN/files.json   {name: size} of the files that count

An object store cannot change several files in one step, so `files.json` does: files are uploaded
first, then the list, then files that are gone locally are deleted. What an interrupted upload left
is not in the list and is ignored. Checkpoints and other folders are uploaded only when complete.
The next worker of the run downloads what is listed.
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
"""The file of a checkpoint that the trainer writes last (`train/manifest.py`)."""
_PREFIX = "vvlm_jax-sweep-"
_UNFINISHED = (".orbax-checkpoint-tmp", atomic.PREFIX)


class RunSync:
    """The local folders of one job: its run's, and read-only copies of others'.

    A context manager: on entry the run's folder is downloaded; inside, a thread uploads changes.

    Args:
      folder: from a run's name to its folder in the bucket.
      is_held: whether this worker still holds the job; if not, nothing is uploaded.
      seconds: between uploads.
    """

    def __init__(self, folder: Callable[[str], Key], run: str, is_held, seconds: float):
        self._folder, self._run, self._is_held, self._seconds = folder, run, is_held, seconds
        self._known: dict[str, tuple[int, int]] = {}
        self._sent: set[str] = set()
        self._over, self._thread = threading.Event(), None

    def __enter__(self):
        remove_left_behind()
        self._here = Path(tempfile.mkdtemp(prefix=local_prefix()))
        try:
            self._known = _download(self._folder(self._run), self._here / self._run)
            self._remove_unlisted_checkpoints()
        except BaseException:
            shutil.rmtree(self._here, ignore_errors=True)
            raise
        self._thread = threading.Thread(target=self._upload_repeatedly, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop()
        shutil.rmtree(self._here, ignore_errors=True)

    def _stop(self) -> None:
        self._over.set()
        self._thread.join()

    def folder(self, run: str) -> Path:
        """Return a run's local folder. Another run's is downloaded at the first call."""
        here = self._here / run
        if not here.exists() and run != self._run:
            _download(self._folder(run), here)
        here.mkdir(parents=True, exist_ok=True)
        return here

    def _remove_unlisted_checkpoints(self) -> None:
        """Delete parts of checkpoints that dead workers uploaded: they are large."""
        folder = self._folder(self._run) / "checkpoints"
        for item in folder.bucket.listing(folder):
            if f"checkpoints/{item.name}" not in self._known:
                folder.bucket.delete(item.path)

    def finish(self) -> None:
        """Upload everything that is left, before the job's end is recorded. Raises OSError."""
        self._stop()
        self._upload()

    def _upload_repeatedly(self) -> None:
        while not self._over.wait(self._seconds):
            try:
                self._upload()
            except OSError as e:  # the next upload, or `finish`, tries again
                print(f"{self._folder(self._run)}: {e.strerror}", file=sys.stderr, flush=True)

    def _upload(self) -> None:
        """Sync once: upload new or changed files, then files.json, then delete remote files that
        are gone locally.
        """
        here, there = self._here / self._run, self._folder(self._run)
        found = snapshot(here)
        if found == self._known or not self._is_held():
            return
        torn = set()
        # The manifest goes last, so that a checkpoint with a manifest is complete even for a
        # reader that does not know files.json.
        for name in sorted(found, key=_manifest_last):
            if self._known.get(name) == found[name] or _unit(name) in torn:
                continue
            self._sent.add(name)
            try:
                there.bucket.upload(here / name, there / name)
            except FileNotFoundError:  # the trainer removed this checkpoint meanwhile
                torn.add(_unit(name))
        found = {name: stat for name, stat in found.items() if _unit(name) not in torn}
        sizes = {name: size for name, (size, _) in found.items()}
        there.bucket.replace(there / FILES, json.dumps(sizes, indent=1, sort_keys=True) + "\n")
        # `_sent` has files of earlier syncs that failed before they wrote the list.
        gone = (self._known.keys() | self._sent) - found.keys()
        self._known, self._sent = found, set()
        for name in sorted(gone, key=lambda name: not name.endswith(f"/{MANIFEST}")):
            there.bucket.delete(there / name)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return {name: (size, time)} of the complete files below a folder."""
    found = {}
    for path, folders, files in os.walk(folder):
        relative = Path(path).relative_to(folder)
        folders[:] = [name for name in folders if not any(word in name for word in _UNFINISHED)]
        parts = relative.parts
        if parts[:1] == ("checkpoints",) and len(parts) == 2 and MANIFEST not in files:
            folders[:] = []  # the trainer writes the manifest last: this one is not complete
            continue
        for name in files:
            if not any(word in name for word in _UNFINISHED):
                try:
                    stat = os.stat(os.path.join(path, name))
                except FileNotFoundError:
                    continue
                found[str(relative / name)] = stat.st_size, stat.st_mtime_ns
    return found


def _manifest_last(name: str) -> tuple:
    return _unit(name), name.endswith(f"/{MANIFEST}"), name


def _unit(name: str) -> str:
    """Return the part of a name that is complete or absent as a whole: a checkpoint, another
    folder, or a file.
    """
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "checkpoints" else parts[0]


def _download(there: Key, here: Path) -> dict[str, tuple[int, int]]:
    """Download a run's listed files and return their snapshot; empty for a run without files."""
    try:
        names = json.loads((there / FILES).read_text())
    except FileNotFoundError:
        return {}
    there.bucket.each(lambda name: there.bucket.download(there / name, here / name), names)
    return snapshot(here)


def remove_left_behind() -> None:
    """Remove local copies of workers of this machine that died; the folders' names tell whose."""
    machine = _machine()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        where, pid, start, *_ = (*folder.name.removeprefix(_PREFIX).split("-"), "", "")
        identity = journal.identity()
        if identity and where == machine and pid.isdigit():
            identity[2:] = [int(pid), start]
            if journal.is_dead(identity):
                shutil.rmtree(folder, ignore_errors=True)


def local_prefix() -> str:
    """Return the start of the names of this process's local folders: its machine, id and start."""
    identity = journal.identity() or ["", "", os.getpid(), ""]
    return f"{_PREFIX}{_machine()}-{identity[2]}-{identity[3]}-"


def _machine() -> str:
    """Return a short hash of this boot and process namespace."""
    identity = journal.identity()
    return hashlib.sha256(repr(identity and identity[:2]).encode()).hexdigest()[:8]
