"""One directory a run: `config.json`, `metrics.jsonl`, `predictions.jsonl`, `params/`,
`result.json`.

A run is finished when `result.json` is there; it is written whole or not at all.
"""

import json
import os
from pathlib import Path

RESULT = "result.json"


def write_json(path: str | Path, value) -> None:
    """Writes JSON so that a reader, or a crash, never meets half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


def read_result(run_dir: str | Path) -> dict | None:
    """The run's result, or None while it is not finished."""
    file = Path(run_dir) / RESULT
    return json.loads(file.read_text()) if file.is_file() else None


def write_result(run_dir: str | Path, result: dict) -> None:
    """Marks the run finished."""
    write_json(Path(run_dir) / RESULT, result)
