"""Checkpoints: the whole train state with the data position."""

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
    """A checkpoint that can be resumed from."""

    step: int
    about: dict
    """What was passed to `save`, and `leaves`: {path: [shape, dtype]} of the state."""


class Checkpoints:
    """Numbered checkpoints of a running stage: `folder/STEP`, each with a manifest.

    The newest `keep` stay, and every one whose step is a multiple of `keep_every` (0: none). What
    there is is read from the disk each time, so that a save that failed is never offered. Nothing
    older is removed before a newer one has its manifest.

    Args:
      report: called with one line for each checkpoint that is passed over.
    """

    def __init__(self, folder: str | Path, keep: int, keep_every: int = 0, report=print):
        self.folder, self.keep, self.keep_every = Path(folder).absolute(), keep, keep_every
        self._report, self._orbax = report, _arrays_checkpointer()
        self._finisher: threading.Thread | None = None
        self._error: CheckpointError | None = None

    def latest(self) -> Found | None:
        """The newest checkpoint that is whole, every byte of it checked; newer ones are reported.

        Raises CheckpointError when there are only damaged ones: to start again from nothing is for
        a person to decide.
        """
        damaged = None
        for step in sorted(_steps(self.folder), reverse=True):
            problem, found = self._check(step)
            # Hosts read a share each, and must all take the same one.
            if all(distributed.gather(problem is None)):
                return Found(step, found)
            problem = problem or manifest.Damaged(f"{self.folder / str(step)}: another host says")
            self._report(f"checkpoint {step} is passed over: {problem}")
            damaged = problem if isinstance(problem, manifest.Damaged) else damaged
        if damaged is not None:
            raise CheckpointError(
                f"{damaged}; no whole checkpoint is left; remove {self.folder} to start again"
            )
        return None

    def _check(self, step: int):
        """(None, what it holds) or (what is wrong, None)."""
        try:
            body = manifest.read(self.folder / str(step))
            manifest.verify(
                self.folder / str(step), body["files"], jax.process_index(), jax.process_count()
            )
        except (manifest.Damaged, manifest.Incomplete) as e:
            return e, None
        return None, body["about"]

    def save(self, step: int, state, about: dict) -> None:
        """Copies the state to the host and returns; writing goes on meanwhile.

        Args:
          about: what else to keep, as JSON.

        Raises CheckpointError, on every host, when the save before this one failed or this one
        cannot begin.
        """
        self.wait()
        target = self.folder / str(step)
        if jax.process_index() == 0:
            self._try(step, lambda: self._make_room(target))
        self._raise_on_all()  # else the others would wait for the first within orbax
        self._try(step, lambda: self._orbax.save(target, args=ocp.args.PyTreeSave(state)))
        self._raise_on_all()
        about = {**about, "leaves": _leaves(state)}
        self._finisher = threading.Thread(target=self._finish, args=(step, about), daemon=True)
        self._finisher.start()

    def _make_room(self, target: Path) -> None:
        """An empty place in a folder that can be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in [target, *self.folder.glob(f"*{_TEMPORARY}*")]:
            _remove(old)  # left by a save that was killed, or failed
        probe = self.folder / f"{target.name}{_TEMPORARY}"
        probe.mkdir()
        probe.rmdir()

    def _finish(self, step: int, about: dict) -> None:
        """Waits for the files, then writes the manifest, then removes what is too old."""

        def finish():
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(self.folder / str(step), about)
                self._clean(step)

        self._try(step, finish)

    def _clean(self, newest: int) -> None:
        """Removes all but the ones to keep. Steps after `newest` are damaged, or of another past;
        what lacks a manifest does not count.
        """
        steps = _steps(self.folder)
        whole = [s for s in sorted(steps) if (self.folder / str(s) / manifest.NAME).is_file()]
        keep = set([s for s in whole if s <= newest][-self.keep :])
        if self.keep_every:
            keep |= {s for s in whole if s <= newest and s % self.keep_every == 0}
        for step in steps - keep:
            _remove(self.folder / str(step))

    def _try(self, step: int, work: Callable[[], None]) -> None:
        """Does a part of a save; its error is raised later, where all hosts hear of it."""
        try:
            work()
        except Exception as e:
            self._error = self._failed(step, e)
            self._error.__cause__ = e

    def _raise_on_all(self) -> None:
        """Raises the error of this host, or the first that another has."""
        error, self._error = self._error, None
        for text in distributed.gather(error and str(error)):
            if text is not None:
                raise error or CheckpointError(text)

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        reason = reason.rsplit('": ', 1)[-1]  # tensorstore says where, twice, and then why
        return CheckpointError(
            f"{self.folder}: the checkpoint of step {step} could not be written: {reason}"
        )

    def wait(self) -> None:
        """Waits for the save under way. Raises CheckpointError when it failed on any host; all of
        them have to call this at the same step.
        """
        if self._join():
            self._raise_on_all()

    def _join(self) -> bool:
        """Whether a save was under way; it no longer is."""
        finisher, self._finisher = self._finisher, None
        if finisher is not None:
            finisher.join()
        return finisher is not None

    def restore(self, found: Found, like):
        """The state, in the shapes and shardings of `like` (arrays or ShapeDtypeStructs).

        Raises CheckpointError that names the first leaf that the checkpoint lacks, has beside, or
        has in another shape or dtype.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        where = self.folder / str(found.step)
        there, here = found.about["leaves"], _leaves(abstract)
        for path in [*here, *there]:
            if there.get(path) != here.get(path):
                has, needs = (_spell(x.get(path)) for x in (there, here))
                raise CheckpointError(f"{where}: {path} is {has}; this run needs {needs}")
        return self._orbax.restore(
            where,
            args=ocp.args.PyTreeRestore(
                item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
            ),
        )

    def close(self) -> CheckpointError | None:
        """Waits for the save under way; gives back its error, if it failed on this host. Others may
        have stopped elsewhere, and are not waited for.
        """
        self._join()
        error, self._error = self._error, None
        return error


def load_params(folder: str | Path, step: int, like: dict) -> dict:
    """The parameters of a milestone, a checkpoint that stayed when its stage had finished.

    Args:
      folder: the run's.
      like: nested {name: ShapeDtypeStruct}; dtypes are what they become.

    Raises CheckpointError when there is none, it is damaged, or it does not fit.
    """
    where = Path(folder).absolute() / "checkpoints" / str(step)
    try:
        body = manifest.read(where)
        manifest.verify(where, body["files"], 0, 1)
    except (manifest.Damaged, manifest.Incomplete) as e:
        raise CheckpointError(f"{e}; milestones are every keep_every steps") from None
    leaves, here = body["about"]["leaves"], SingleDeviceSharding(jax.local_devices()[0])
    wanted: dict[str, dict] = {"trainable": {}, "frozen": {}}
    for path, x in flatten_dict(like, sep="/").items():
        part = next((part for part in wanted if f"{part}/{path}" in leaves), None)
        if part is None or leaves[f"{part}/{path}"][0] != list(x.shape):
            has = leaves.get(f"{part}/{path}")
            raise CheckpointError(
                f"{where}: {path} is {_spell(has)}; this model needs {list(x.shape)}"
            )
        wanted[part][path] = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
    with reader(wanted) as checkpointer:
        found = checkpointer.restore(
            where,
            args=ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    return unflatten_dict(found["trainable"] | found["frozen"], sep="/")


_TEMPORARY = ".orbax-checkpoint-tmp"


def _arrays_checkpointer() -> ocp.AsyncCheckpointer:
    """Uncompressed: zstd finds 8% in float32 and costs more time and memory than writing them."""
    # Its own reports of a failed save are tracebacks; ours is a line.
    logging.getLogger("absl").addFilter(_is_not_a_failed_save)
    return ocp.AsyncCheckpointer(
        ocp.PyTreeCheckpointHandler(use_compression=False),
        # When a thread of its own cannot make the folder, others wait for it for minutes.
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )


def _is_not_a_failed_save(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


def _steps(folder: Path) -> set[int]:
    return {int(p.name) for p in folder.glob("*") if p.name.isdigit()}


def _remove(folder: Path) -> None:
    """Without its manifest first: what is half removed must not look whole."""
    (folder / manifest.NAME).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _leaves(tree) -> dict[str, list]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(x.shape), str(x.dtype)]
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _spell(leaf: list | None) -> str:
    return f"{leaf[1]} {leaf[0]}" if leaf else "absent"
