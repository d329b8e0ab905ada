"""Checkpoints of a running stage: the train state and the position in the data.

Orbax writes the arrays from a background thread while training continues. A manifest is written
last, with a checksum of every file; a checkpoint without a manifest is one whose save was
interrupted, and is never read.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding

from vvlm_jax import distributed
from vvlm_jax.train import manifest
from vvlm_jax.train.model_dir import CheckpointError, reader


class Found(NamedTuple):
    """An intact checkpoint."""

    step: int
    about: dict
    """The `about` that was passed to `save`, plus `leaves`: {path: [shape, dtype]} of the state."""


class Checkpoints:
    """Numbered checkpoints of a running stage: `folder/STEP`, each with a manifest.

    The newest `keep` are kept, and every one whose step is a multiple of `keep_every` (0: none).
    The list of checkpoints is read from the disk each time, so that a failed save is never offered.
    No older checkpoint is removed before a newer one has its manifest.

    Args:
      report: called with one line for each damaged checkpoint that `latest` skips.
    """

    def __init__(self, folder: str | Path, keep: int, keep_every: int = 0, report=print):
        self.folder, self.keep, self.keep_every = Path(folder).absolute(), keep, keep_every
        self._report, self._orbax = report, _arrays_checkpointer()
        self._finisher: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def latest(self) -> Found | None:
        """Return the newest intact checkpoint, or None when there are none.

        Every byte is checked. Newer checkpoints that are damaged or incomplete are reported and
        skipped. Raises CheckpointError when all are damaged: the user, not the trainer, decides to
        restart from step 0.
        """
        damaged = None
        for step in sorted(_steps(self.folder), reverse=True):
            problem, found = self._check(step)
            # Each host checks a share of the files; all of them must resume from the same step.
            if all(distributed.gather(problem is None)):
                return Found(step, found)
            problem = problem or manifest.Damaged(
                f"{self.folder / str(step)}: another host found it damaged"
            )
            self._report(f"checkpoint {step} is skipped: {problem}")
            damaged = problem if isinstance(problem, manifest.Damaged) else damaged
        if damaged is not None:
            raise CheckpointError(
                f"{damaged}; no intact checkpoint is left; remove {self.folder} to start again"
            )
        return None

    def _check(self, step: int):
        """Return (None, the checkpoint's `about`), or (the problem, None)."""
        try:
            body = manifest.read(self.folder / str(step))
            manifest.verify(
                self.folder / str(step), body["files"], jax.process_index(), jax.process_count()
            )
        except (manifest.Damaged, manifest.Incomplete) as e:
            return e, None
        return None, body["about"]

    def save(self, step: int, state, about: dict) -> None:
        """Copy the state to host memory, start writing it in the background, and return.

        The caller may then donate or change the state. A save still running is waited for first.

        Args:
          about: further values to store, as JSON.

        Raises CheckpointError, on every host, when the previous save failed or this one cannot
        start.
        """
        self.wait()
        target = self.folder / str(step)
        if jax.process_index() == 0:
            self._try(step, lambda: self._prepare(target))
        # Without this exchange, an error on host 0 would leave the others waiting inside orbax.
        self._raise_on_all()
        self._try(step, lambda: self._orbax.save(target, args=ocp.args.PyTreeSave(state)))
        self._raise_on_all()
        about = {**about, "leaves": _leaves(state)}
        self._finisher = threading.Thread(target=self._finish, args=(step, about), daemon=True)
        self._finisher.start()

    def _prepare(self, target: Path) -> None:
        """Remove what interrupted saves left behind, and check that the folder is writable."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in [target, *self.folder.glob(f"*{_TEMPORARY}*")]:
            _remove(old)
        # orbax creates its folder in a background thread, where an error would surface late.
        probe = self.folder / f"{target.name}{_TEMPORARY}"
        probe.mkdir()
        probe.rmdir()

    def _finish(self, step: int, about: dict) -> None:
        """Wait for the files, write the manifest, then remove old checkpoints (in a thread)."""

        def finish():
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(self.folder / str(step), about)
                self._clean(step)

        self._try(step, finish)

    def _clean(self, newest: int) -> None:
        """Remove all checkpoints but those to keep.

        Folders without a manifest do not count towards `keep`. Steps after `newest` are removed:
        they are damaged, or were written before the run resumed from an earlier step.
        """
        steps = _steps(self.folder)
        whole = [s for s in sorted(steps) if (self.folder / str(s) / manifest.NAME).is_file()]
        keep = set([s for s in whole if s <= newest][-self.keep :])
        if self.keep_every:
            keep |= {s for s in whole if s <= newest and s % self.keep_every == 0}
        for step in steps - keep:
            _remove(self.folder / str(step))

    def _try(self, step: int, work: Callable[[], None]) -> None:
        """Run a part of a save and keep its error for `_raise_on_all`."""
        try:
            work()
        except Exception as e:
            self._error = self._failed(step, e)
            self._error.__cause__ = e

    def _raise_on_all(self) -> None:
        """Raise the error of this host or of another one. A collective call of all hosts."""
        error, self._error = self._error, None
        for text in distributed.gather(error and str(error)):
            if text is not None:
                raise error or CheckpointError(text)

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        reason = reason.rsplit('": ', 1)[-1]  # tensorstore names the path twice, then the reason
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} could not be written: {reason}"
        )

    def wait(self) -> None:
        """Wait for the running save. A collective call: every host makes it at the same step.

        Raises CheckpointError when the save failed on any host.
        """
        if self._join():
            self._raise_on_all()

    def _join(self) -> bool:
        """Wait for the running save of this host; return whether there was one."""
        finisher, self._finisher = self._finisher, None
        if finisher is not None:
            finisher.join()
        return finisher is not None

    def restore(self, found: Found, like):
        """Read the state with the shardings of `like` (arrays or ShapeDtypeStructs).

        Raises CheckpointError naming the first leaf that is missing, unexpected, or of another
        shape or dtype.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        target = self.folder / str(found.step)
        stored, needed = found.about["leaves"], _leaves(abstract)
        for path in [*needed, *stored]:
            if stored.get(path) != needed.get(path):
                has, needs = (_describe(x.get(path)) for x in (stored, needed))
                raise CheckpointError(f"{target}: {path} is {has}; this run needs {needs}")
        return self._orbax.restore(
            target,
            args=ocp.args.PyTreeRestore(
                item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
            ),
        )

    def close(self) -> CheckpointError | None:
        """Wait for the running save of this host and return its error, if it failed.

        Unlike `wait` this does not communicate: after an exception other hosts may be elsewhere.
        """
        self._join()
        error, self._error = self._error, None
        return error


def load_params(folder: str | Path, step: int, like: dict) -> dict:
    """Read the parameters of a milestone, a checkpoint that `keep_every` kept.

    Args:
      folder: the run's folder.
      like: nested {name: ShapeDtypeStruct}; parameters are cast to these dtypes.

    Raises CheckpointError when the checkpoint is missing or damaged, or does not fit `like`.
    """
    source = Path(folder).absolute() / "checkpoints" / str(step)
    try:
        body = manifest.read(source)
        manifest.verify(source, body["files"], 0, 1)
    except (manifest.Damaged, manifest.Incomplete) as e:
        raise CheckpointError(f"{e}; milestones are every keep_every steps") from None
    leaves, here = body["about"]["leaves"], SingleDeviceSharding(jax.local_devices()[0])
    wanted: dict[str, dict] = {"trainable": {}, "frozen": {}}
    for path, x in flatten_dict(like, sep="/").items():
        part = next((part for part in wanted if f"{part}/{path}" in leaves), None)
        if part is None or leaves[f"{part}/{path}"][0] != list(x.shape):
            has = leaves.get(f"{part}/{path}")
            raise CheckpointError(
                f"{source}: {path} is {_describe(has)}; this model needs {list(x.shape)}"
            )
        wanted[part][path] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    with reader(wanted) as checkpointer:
        found = checkpointer.restore(
            source,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    return unflatten_dict(found["trainable"] | found["frozen"], sep="/")


_TEMPORARY = ".orbax-checkpoint-tmp"


def _arrays_checkpointer() -> ocp.AsyncCheckpointer:
    """Return orbax's asynchronous checkpointer as configured here."""
    # orbax logs a failed save as a traceback; `_failed` makes one line of it.
    logging.getLogger("absl").addFilter(_is_not_a_failed_save)
    return ocp.AsyncCheckpointer(
        # Without compression: zstd shrinks float32 by 8% and takes longer than the write it saves.
        ocp.PyTreeCheckpointHandler(use_compression=False),
        # If a background thread fails to create the folder, the other threads wait for minutes.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )


def _is_not_a_failed_save(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def _steps(folder: Path) -> set[int]:
    return {int(p.name) for p in folder.glob("*") if p.name.isdigit()}


def _remove(folder: Path) -> None:
    """Remove a checkpoint, manifest first: a half-removed one must not be taken as intact."""
    (folder / manifest.NAME).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _leaves(tree) -> dict[str, list]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(x.shape), str(x.dtype)]
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _describe(leaf: list | None) -> str:
    return f"{leaf[1]} {leaf[0]}" if leaf else "absent"
