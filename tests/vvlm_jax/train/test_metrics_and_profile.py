"""Output of one run: its lines of metrics, and a profile of some of its steps."""

import contextlib
import itertools
import json
import time
from collections import Counter

import jax
import pytest

from tools import train as tool
from vvlm_jax import devices
from vvlm_jax.data.media import FrameReader
from vvlm_jax.override import to_json
from vvlm_jax.train.timing import Clock

STEPS, PEAK, SLOW = 6, 1e12, 0.1
CONFIG = """
from vvlm_jax.config import TrainConfig
from vvlm_jax.override import from_json

def config():
    return from_json(TrainConfig, {text!r})
"""


@pytest.fixture(scope="module")
def run(stage, world, tmp_path_factory):
    """Return the folder of a finished run of 6 steps of 4 examples.

    It has a line every 2 steps, a checkpoint after 3, steps 3 and 4 (from 0) in the profile, slow
    data after step 4, and a "cpu" whose peak is known.
    """
    folder = tmp_path_factory.mktemp("telling")
    media, calls, waits = folder / "media", itertools.count(), []
    read, waiting = FrameReader.video, Clock.waiting
    media.symlink_to(world)  # so that other tests' readers, which may be at it still, do not count

    def video(reader, name):
        if reader.root == str(media) and next(calls) >= 4 * 4:
            while len(waits) < 5:
                time.sleep(0.01)
            time.sleep(SLOW)
        return read(reader, name)

    @contextlib.contextmanager
    def noted(clock, last):
        with waiting(clock, last):
            waits.append(last)
            yield

    # No other test takes this eps, so that the step compiles here. One thread reads in order, and
    # may wait for as long as that compiles.
    options = ("optim.eps=3e-7", "data.read_threads=1", "data.max_read_seconds=1e6",
               f"data.media_root={media}")  # fmt: skip
    config = stage(folder / "run", *options, log_every=2, checkpoint_every=3)
    (folder / "c.py").write_text(CONFIG.format(text=to_json(config)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(devices._PEAK_BF16, jax.devices()[0].device_kind, PEAK)
        patch.setattr(FrameReader, "video", video)
        patch.setattr(Clock, "waiting", noted)
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
    purposes = [f"waiting/{purpose}" for purpose in ("data", "save", "compile")]
    for line in lines:
        assert min(line[purpose] for purpose in purposes) >= 0
        assert sum(line[purpose] for purpose in purposes) <= 1.001
    # A share is what it is of a time in which this machine may have done something else.
    first, second, last = (
        [line[purpose] * 2 * 4 / line["examples_per_second"] for purpose in purposes]
        for line in lines
    )
    assert last[0] > 0.5 * 4 * SLOW
    assert first[1] == 0 < second[1]  # the checkpoint after 3 steps
    assert first[2] > 0.05
    assert second[2] == last[2] == 0


def test_the_profile_holds_the_steps_that_were_asked_for(run):
    (file,) = (run / "profile").glob("plugins/profile/*/*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(file))
    # Names alone: jax 0.11.2 dies of reading the numbers of a step.
    names = Counter(e.name for plane in data.planes for line in plane.lines for e in line.events)
    assert names["train"] == 2
    assert names["PjitFunction(step)"] >= 2
    assert any(name.startswith("dot") for name in names)  # what ran, not only what called
