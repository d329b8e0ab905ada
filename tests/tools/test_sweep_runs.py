"""A sweep with real trainings, on worker processes: killed, continued, collected."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.sweeps import mini
from fitting.runs import read_runs
from tests.patience import LONG, free_port, wait_until
from tests.processes import FAST_TO_COMPILE
from tools.common import load_config
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.config import SweepConfig
from vvlm_jax.sweep.store.store import Store
from vvlm_jax.sweep.table import collect

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


# As `sitecustomize`, in every process: a run of the star comes to its second checkpoint and no
# further.
HELD = """
import sys, time


def hook(event, args):
    path = str(args[0]) if event == "open" else ""
    while "/runs/star" in path and "/checkpoints/2/manifest.json" in path:
        time.sleep(1)


sys.addaudithook(hook)
"""


def start(folder, *argv):
    environ = os.environ | {
        "PYTHONPATH": f"{folder / 'held'}:{ROOT}",
        "XLA_FLAGS": FAST_TO_COMPILE,
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
    out, _ = process.communicate(timeout=LONG)
    assert process.returncode == code, out
    return out


def test_a_sweep_goes_from_its_file_to_its_table(tmp_path):
    (tmp_path / "mine.py").write_text(SWEEP)
    finish(start(tmp_path, "configs.sweeps.mini"))
    launch = ("tools.sweep", "launch", "mine.py", "--workers", "1", "--store", "s")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "sitecustomize.py").write_text(HELD)
    driver = start(tmp_path, *launch)
    saved = "s/runs/star*/checkpoints/1/manifest.json"
    wait_until(lambda: list(tmp_path.glob(saved)), lambda: driver.poll() is None)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    (tmp_path / "held" / "sitecustomize.py").unlink()
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


HOSTS = """
import dataclasses
from configs.sweeps import mini


def sweep():
    config = mini.sweep()
    points = [p for p in config.points if p.lm_params < 50_000]
    finetune = dataclasses.replace(config.finetune, keep_every=2)
    return dataclasses.replace(config, points=points, finetune=finetune, pretrain=None)
"""


def test_a_sweep_whose_runs_have_two_hosts_each(tmp_path):
    """Two processes do each job and find one another, as on a cluster."""
    (tmp_path / "mine.py").write_text(HOSTS)
    mini.write_data(tmp_path / mini.DATA)
    config = load_config(tmp_path / "mine.py", SweepConfig, "sweep")
    store = jobs.create(tmp_path / "s", config)
    run = config.points[0].run_id
    evaluations = [f"{run}/evaluate-s{step}-val" for step in (2, 3)]
    assert list(store.jobs) == [f"{run}/train", *evaluations]
    for id in store.jobs:
        where = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2")
        words = ("tools.sweep", "work", store.path, id, *where)
        both = [start(tmp_path, *words, "--process", i) for i in range(2)]
        told = [finish(process) for process in both]
        assert f"{id}: done" in told[0]
    states = store.states()
    assert {state.phase for state in states.values()} == {"done"}
    # Of a milestone each host has written its share.
    milestone = store.folder(run) / "checkpoints" / "2"
    shares = {path.name for path in milestone.rglob("ocdbt.process_*")}
    assert shares == {"ocdbt.process_0", "ocdbt.process_1"}
    found = collect(store, states)
    assert {row["metric"] for row in found.rows} == {"flash", "cell", "most", "avg"}
    early = {(row["step"], row["metric"]) for row in found.milestones}
    assert early == {(2, "flash"), (2, "cell"), (2, "most")}
