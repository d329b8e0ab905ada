"""Seconds of phases, across interruptions."""

import json
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
