"""What one run tells: its lines of metrics, and a profile of some of its steps."""

import itertools
import json
import time
from collections import Counter

import jax
import pytest

from tools import train as tool
from vvlm_jax import devices
from vvlm_jax.config import to_json
from vvlm_jax.data.media import FrameReader

STEPS, PEAK = 6, 1e12
CONFIG = """
from vvlm_jax.config import TrainConfig, from_json

def config():
    return from_json(TrainConfig, {text!r})
"""


@pytest.fixture(scope="module")
def run(stage, tmp_path_factory):
    """A finished run's folder: a line every 2 of 6 steps of 4, a checkpoint after 3, steps 3 and 4
    (from 0) in the profile, slow data after 4, on a "cpu" whose peak is known.
    """
    folder = tmp_path_factory.mktemp("telling")
    calls, read, there = itertools.count(), FrameReader.video, folder / "run" / "metrics.jsonl"

    def video(reader, name):
        if next(calls) >= 4 * 4:
            while not there.exists() or there.read_text().count("\n") < 2:
                time.sleep(0.01)
            time.sleep(0.1)
        return read(reader, name)

    # No other test takes this eps, so that the step compiles here. One thread reads in order.
    options = "optim.eps=3e-7", "data.read_threads=1"
    config = stage(folder / "run", *options, log_every=2, checkpoint_every=3)
    (folder / "c.py").write_text(CONFIG.format(text=to_json(config)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(devices._PEAK_BF16, jax.devices()[0].device_kind, PEAK)
        patch.setattr(FrameReader, "video", video)
        tool.main(tool.Args(config=folder / "c.py", profile="3:5"))
    return folder / "run"


@pytest.fixture(scope="module")
def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lines_hold_what_was_learnt_and_how(lines):
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert 0 < line["loss"] < 7
        assert 0 < line["grad_norm/vision/.*"] < line["grad_norm"]
        assert 0 < line["grad_norm/(projector|llm)/.*"] < line["grad_norm"]
        assert line["rate/vision/.*"] == pytest.approx(1e-3 * line["rate_share"])
        assert line["rate/(projector|llm)/.*"] == pytest.approx(5e-3 * line["rate_share"])


def test_lines_hold_speeds_and_the_share_of_the_peak(lines):
    for line in lines:
        assert 8 < line["tokens_per_second"] / line["examples_per_second"] < 168
        assert line["mfu"] == pytest.approx(line["tflops"] * 1e12 / PEAK)
        for tower in ("vision", "llm"):
            assert line[f"mfu/{tower}"] == pytest.approx(line[f"tflops/{tower}"] * 1e12 / PEAK)
        towers = line["mfu/vision"] + line["mfu/llm"]
        assert 0.9 * line["mfu"] < towers < line["mfu"]  # the rest is the projector's


def test_lines_hold_shares_of_the_time(lines):
    first, second, last = (
        [line[f"waiting/{purpose}"] for purpose in ("data", "save", "compile")] for line in lines
    )
    for shares in (first, second, last):
        assert min(shares) >= 0
        assert sum(shares) <= 1
    assert last[0] > max(0.05, 2 * second[0])  # a share: a busy machine computes for longer
    assert first[1] == 0 < second[1]  # the checkpoint after 3 steps
    assert first[2] > 0.1  # of two small steps, compiling is most
    assert second[2] == last[2] == 0


def test_the_profile_holds_the_steps_that_were_asked_for(run):
    (file,) = (run / "profile").glob("plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    # Names alone: jax 0.11.2 dies of reading the numbers of a step.
    names = Counter(e.name for plane in data.planes for line in plane.lines for e in line.events)
    assert names["train"] == 2
    assert names["PjitFunction(step)"] >= 2
    assert any(name.startswith("dot") for name in names)  # what ran, not only what called
