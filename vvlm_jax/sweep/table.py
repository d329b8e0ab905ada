"""The table of runs that a store has, as rows and as files."""

import contextlib
import csv
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError
from vvlm_jax.storage.bucket import Key
from vvlm_jax.sweep.store.store import Job, State, Store

QUESTIONS = "questions"
"""Protocol of the scores of question files."""
MILESTONE_COLUMNS = ("run_id", "step", "seed", "protocol", "metric", "score", "score_se")


@dataclass(frozen=True)
class Collected:
    """The rows of the table of runs that a store can give, and what is missing."""

    rows: list[dict]
    """Keys: run_id, sweep, lm_params, num_frames, tokens_per_frame, num_examples, seed, protocol,
    metric, score, score_se; the last is None where the evaluation gave none. Sorted by run and
    metric, scores to four decimals, so that files and reports are made of equal numbers."""
    missing: list[tuple[str, str]]
    """(run, or run and metric; why there is no score)."""
    milestones: list[dict]
    """Scores of checkpoints before the last, with the keys `MILESTONE_COLUMNS`."""

    def missing_lines(self) -> list[str]:
        """Return a line for each missing score."""
        return [f"missing: {what}: {why}" for what, why in self.missing]


def collect(store: Store, states: dict[str, State]) -> Collected:
    """Return every score that the jobs have given, and for each run whose scores are complete
    `avg`, the mean over its metrics.

    A run with a missing score has no `avg`.

    Raises ConfigError when two evaluations have a task of the same name.
    """
    asked: dict[str, list[Job]] = {run["run_id"]: [] for run in store.runs}
    for job in store.jobs.values():
        if job.kind == "evaluate" and job.run in asked:
            asked[job.run].append(job)
    found = Collected([], [], [])
    for run in store.runs:
        _collect_run({**run, "seed": _seed(store, run)}, asked[run["run_id"]], states, found)
    found.rows.sort(key=lambda row: (row["run_id"], row["metric"]))
    return found


def _collect_run(run: dict, asked: list[Job], states: dict[str, State], found: Collected) -> None:
    """Add the scores of one run to `found`."""
    scores, complete = {}, True
    for job in asked:
        state, early = states[job.id], job.argument.get("milestone")
        if state.phase != "done":
            complete = complete and bool(early)
            found.missing.append((job.id, state.entry.body.get("error") or state.phase))
            continue
        measured = _measured(state.entry.body["result"])
        if early:
            run_at = {**run, "step": job.argument["step"]}
            found.milestones.extend(
                {key: (run_at | row)[key] for key in MILESTONE_COLUMNS} for row in measured
            )
            continue
        for row in measured:
            if (metric := row["metric"]) in scores:
                raise ConfigError(f"{job.id}: {metric!r} is a task of another evaluation too")
            scores[metric] = row
    for metric, row in scores.items():
        if row["score"] is None:
            complete = False
            found.missing.append((f"{run['run_id']} {metric}", "no question could be scored"))
        else:
            found.rows.append(run | row | _rounded(row["score"], row["score_se"]))
    protocols = {row["protocol"] for row in scores.values()}
    if len(protocols) == 1 and complete and "avg" not in scores:
        from vvlm_jax.eval.scores import average  # loads NumPy, which a status can do without

        values = [(row["score"], row["score_se"]) for row in scores.values()]
        mean = _rounded(*average(*map(list, zip(*values, strict=True))))
        found.rows.append(run | {"protocol": protocols.pop(), "metric": "avg"} | mean)


def _measured(result: dict) -> list[dict]:
    """Return an evaluation's result as rows: protocol, metric, score, score_se."""
    protocol, errors = result.get("protocol", QUESTIONS), result.get("stderr", {})
    return [
        dict(protocol=protocol, metric=metric, score=score, score_se=errors.get(metric))
        for metric, score in result["scores"].items()
    ]


def _rounded(score: float, error: float | None) -> dict:
    return {"score": round(score, 4), "score_se": None if error is None else round(error, 4)}


def _seed(store: Store, run: dict) -> int | None:
    """Return the seed of a run. A store of an older version has it in its training stage alone."""
    return run["seed"] if "seed" in run else store.shared.get("finetune", {}).get("seed")


def gather(store: Store) -> Collected:
    """Collect a store's scores. Raises ConfigError when there are none."""
    found = collect(store, store.states())
    if not found.rows:
        raise ConfigError(f"{store.path}: no run has a score yet")
    return found


def write(
    found: Collected,
    folder: Path | Key,
    names: Sequence[str],
    write_runs: Callable[[Path, list[dict]], None],
) -> list[str]:
    """Write the table into a folder, and milestones, if there are any, into milestones.csv.

    Args:
      names: of the files to write.
      write_runs: writes rows to a file, as `fitting.runs.write_runs` does.

    Return a line about each file.
    """
    lines = []
    with _uploaded_to(folder) as here:
        for name in names:
            write_runs(here / name, found.rows)
            count = f"{len(found.rows)} scores, {len(found.missing)} missing"
            lines.append(f"{folder / name}: {count}")
        if found.milestones:
            _write_milestones(here / "milestones.csv", found.milestones)
            count = f"{len(found.milestones)} scores before the end of a run"
            lines.append(f"{folder / 'milestones.csv'}: {count}")
    return lines


@contextlib.contextmanager
def _uploaded_to(folder: Path | Key) -> Iterator[Path]:
    """Yield the folder itself or, for a bucket's, a local one whose files are uploaded."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as here:
        yield Path(here)
        for file in Path(here).iterdir():
            folder.bucket.upload(file, folder / file.name)


def _write_milestones(file: Path, rows: list[dict]) -> None:
    with atomic.replacing(file) as partial, partial.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, MILESTONE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)  # None, of a task that could not be scored, as an empty cell
