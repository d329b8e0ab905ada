"""A sweep with real trainings, on worker processes: killed, continued, collected."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fitting.runs import read_runs
from vvlm_jax.sweep.store import Store

ROOT = Path(__file__).parents[2]
SWEEP = """
import dataclasses
from configs.sweeps import mini


def sweep():
    config = mini.sweep()
    points = [p for p in config.points if p.num_frames == 1]
    return dataclasses.replace(config, points=points, exports=("hf-vision",))
"""
pytestmark = pytest.mark.slow(reason="trains and evaluates in processes of their own")


def start(folder, *argv):
    environ = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    command = [sys.executable, "-m", *map(str, argv)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, code=0):
    out, _ = process.communicate(timeout=600)
    assert process.returncode == code, out
    return out


def test_a_sweep_goes_from_its_file_to_its_table(tmp_path):
    (tmp_path / "mine.py").write_text(SWEEP)
    finish(start(tmp_path, "configs.sweeps.mini"))
    launch = ("tools.sweep", "launch", "mine.py", "--workers", "1", "--store", "s")
    driver = start(tmp_path, *launch)
    while not list(tmp_path.glob("s/runs/star*/checkpoints/*")):
        assert driver.poll() is None, driver.communicate()[0]
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    out = finish(start(tmp_path, *launch))
    assert "2/2" in out
    states = Store.open(tmp_path / "s").states()
    assert {state.phase for state in states.values()} == {"done"}
    assert len(states) == 1 + 3
    finish(start(tmp_path, "tools.sweep", "collect", "s"))
    table = read_runs(tmp_path / "s" / "runs.csv", scale=100)
    assert set(table.n) == {12}
    assert set(table.metric) == {"avg", "cell", "flash", "most"}
    folder = next(tmp_path.glob("s/runs/star*/export-s3-hf-vision"))
    assert (folder / "config.json").is_file()
    before = (tmp_path / "s" / "runs.csv").read_bytes()
    assert "1 runs, 4 jobs" in finish(start(tmp_path, *launch)), "nothing is left to do"
    assert (tmp_path / "s" / "runs.csv").read_bytes() == before
