import struct
import sys

import pytest

from tests.patience import wait_until
from vvlm_jax.config import ConfigError
from vvlm_jax.train.trackers import start_trackers


def scalars(folder):
    """Return [(step, name, value)] of the event files, read record by record."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            size = struct.unpack("<Q", data[:8])[0]  # length, its checksum, record, its checksum
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            found += [
                (event.step, v.tag, v.simple_value)
                for v in event.summary.value
                if v.WhichOneof("value") == "simple_value"
            ]
    return found


@pytest.mark.light
def test_tensorboard_gets_every_scalar(stage, tmp_path):
    config = stage(tmp_path, trackers=("tensorboard",))
    for start in (0, 2):  # a run and its continuation
        (tracker,) = start_trackers(config, start)
        tracker.write(start + 1, {"loss": 0.5, "grad_norm/llm": 2.0})
        tracker.close()
    expected = [(1, "loss", 0.5), (1, "grad_norm/llm", 2.0)]
    assert scalars(tmp_path / "tensorboard") == [*expected, *((3, *x[1:]) for x in expected)]


@pytest.mark.slow(reason="starts W&B's own processes")
def test_wandb_continues_one_run(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = stage(tmp_path, trackers=("wandb",))
    for start in (0, 2):
        (tracker,) = start_trackers(config, start)
        tracker.write(start + 1, {"loss": 0.5})
        tracker.close()
    name = (tmp_path / "wandb-id").read_text()
    logs = list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert logs
    # Its own process writes them.
    wait_until(lambda: all(b"loss" in log.read_bytes() for log in logs))


def test_a_tracker_that_is_not_installed_is_one_line(stage, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="trackers: wandb is not installed: pip install wandb"):
        start_trackers(stage(tmp_path, trackers=("wandb",)), 0)
