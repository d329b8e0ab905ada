"""The folder of a study: its name, and a lock on it."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from pathlib import Path

import fitting
import vvlm_jax
from vvlm_jax.config import ConfigError

from ..common import shipped

study_lib = shipped("study")
StudyConfig = study_lib.StudyConfig

LATER = {
    *("num_frames_levels", "tokens_levels", "num_examples", "isoflop_examples", "budgets"),
    *("domain_frames", "domain_tokens", "tolerance", "max_per_curve", "resamples", "starts"),
    "decision",
}
"""Options that choose the runs, or how they are fitted; no run's own result depends on them."""


def content_hash(study: StudyConfig, parts=None) -> str:
    """Return a hash of all that models and runs depend on: the study's options and the code.

    Studies that differ only in options of `LATER` share a hash, and so their finished runs.

    Args:
      parts: the pretrained `Parts` that the study starts from; None if it trains them.
    """
    values = {k: v for k, v in dataclasses.asdict(study).items() if k not in LATER}
    values |= {k: getattr(study.decision, k) for k in ("questions", "own_projectors")}
    values |= {} if parts is None else {"parts": parts.digest}
    digest = hashlib.sha256(json.dumps(values).encode())
    files = [Path(study_lib.__file__), *sorted(Path(__file__).parent.glob("*jobs.py"))]
    files += [Path(fitting.__file__).parent / name for name in ("sweeps.py", "cost.py")]
    for path in [*sorted(Path(vvlm_jax.__file__).parent.rglob("*.py")), *files]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def locked(work: Path):
    """Hold the lock on a study's folder; raise ConfigError while another process holds it."""
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{work}: another study is running there; wait, or choose another --out"
            ) from None
        yield
