"""Seconds of phases, across interruptions."""

import json
import subprocess
import sys
from types import SimpleNamespace

from vvlm_jax.sweep import phases
from vvlm_jax.sweep.phases import Clock


def test_a_phase_taken_whole_is_not_added_up(tmp_path, monkeypatch):
    clock = Clock(tmp_path / "phases.json")
    now = [7.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(2):
        clock.phases |= {"sweep": 5.0, "fits": 5.0}
        for phase in ("sweep", "fits"):
            with clock(phase, whole=phase == "fits"):
                now[0] += 2.0
    assert clock.phases == {"sweep": 7.0, "fits": 2.0}


def test_time_belongs_to_the_first_phase_that_is_not_over(tmp_path):
    clock = Clock(tmp_path / "phases.json")
    for phase in ("data", "data", "sweep", None, None):
        clock.switch(phase)
    kept = json.loads((tmp_path / "phases.json").read_text())
    assert list(kept["seconds"]) == ["data", "sweep"]
    assert kept["peak_memory_mib"].keys() == {"driver", "largest worker"}
    assert list(kept["cpu_seconds"]) == ["data", "sweep"]


def test_cpu_seconds_count_children_that_run_and_that_have_ended():
    busy = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    before = phases.cpu_seconds()
    child = subprocess.Popen(
        [sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.stdout.readline()
    alive = phases.cpu_seconds()
    child.communicate(b"\n")
    assert alive - before >= 0.35
    assert phases.cpu_seconds() - before >= 0.35


def test_a_phase_under_way_is_kept_from_time_to_time(tmp_path, monkeypatch):
    clock, now = Clock(tmp_path / "phases.json"), [0.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock.switch("sweep")
    now[0] = 11.0
    clock.switch("sweep")
    assert Clock(tmp_path / "phases.json").phases == {"sweep": 11.0}
    now[0] = 30.0
    clock.switch(None)
    assert Clock(tmp_path / "phases.json").phases == {"sweep": 30.0}
