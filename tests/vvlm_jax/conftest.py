"""A tiny synthetic world, and a stage small enough to train in a second."""

import dataclasses
import json
import subprocess

import pytest

from vvlm_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from vvlm_jax.data import synthetic, tokenizer
from vvlm_jax.override import override

TURNS = (("flash", 1), ("cell", 1), ("most", 1))
CLIP = dict(num_frames=8, flash_lengths=(2,), size=48, seed=0)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Return a folder: tokenizer, 24 training clips, 6 clips to ask about, stories, captions."""
    folder = tmp_path_factory.mktemp("world")
    synthetic.write_tokenizer(folder)
    synthetic.write_videos(folder, "train", 24, TURNS, **CLIP)
    synthetic.write_videos(folder, "val", 6, TURNS, **CLIP)
    synthetic.write_stories(folder, 16, TURNS, 0)
    synthetic.write_captions(folder, 12, 48, 0)
    return folder


@pytest.fixture(scope="session")
def uneven(world, tmp_path_factory):
    """Return annotations of the training clips, every question longer by 0, 5, … 35 words."""
    rows = json.loads((world / "train.json").read_text())
    for i, row in enumerate(rows):
        row["conversations"][0]["value"] += " red" * (i % 8 * 5)
    file = tmp_path_factory.mktemp("uneven") / "rows.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture(scope="session")
def tok(world):
    return tokenizer.load(world)


@pytest.fixture(scope="session")
def stage(world):
    """Return stage(out_dir, "optim.warmup=0", …) -> TrainConfig: everything trains, on clips."""

    def make(out_dir="unused", *assignments, **values):
        config = TrainConfig(
            model=ModelConfig("study/12", "study-s", 2, 4, dtype="float32", remat="none"),
            data=DataConfig(
                str(world / "train.json"), str(world), str(world / "tokenizer.json"),
                max_text_tokens=160, read_threads=1,
            ),
            optim=OptimConfig((("vision/.*", 1e-3), ("(projector|llm)/.*", 5e-3))),
            out_dir=str(out_dir),
            batch_size=4, log_every=1, checkpoint_every=0,
        )  # fmt: skip
        return override(dataclasses.replace(config, **values), assignments)

    return make


@pytest.fixture
def small_disk(tmp_path):
    """Yield a folder on a disk of 1 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def one_thread():
    """Run PyTorch on one thread: several take minutes on a busy machine, for no gain."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
