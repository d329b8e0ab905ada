"""The export of a finished run, by `tools.convert` in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from vvlm_jax.sweep.worker import Context

ROOT = Path(__file__).parents[1]


def export(context: Context) -> dict:
    """Writes a run's model, or a tower of it, as a Hugging Face directory in the run's folder."""
    out = context.folder / context.job.name
    _, _, part = context.job.argument["to"].partition("-")
    shutil.rmtree(out, ignore_errors=True)  # of a worker that died before it could say so
    command = [sys.executable, "-m", "vvlm", "convert", str(context.folder), str(out), "--to", "hf"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    with context.stop.anywhere():
        done = subprocess.run(
            [*command, *(["--part", part] if part else [])],
            env=environ,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["tools.convert failed"])[-1])
    return {"folder": out.name}
