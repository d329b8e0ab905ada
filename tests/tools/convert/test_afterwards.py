"""Training and generation start from a converted folder."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.tools.convert.folders import params_of, run
from vvlm_jax.config import ModelConfig, TrainConfig
from vvlm_jax.data import synthetic
from vvlm_jax.models import vlm
from vvlm_jax.override import override
from vvlm_jax.sharding import make_mesh
from vvlm_jax.train import compiled, model_dir, optim
from vvlm_jax.train.model_dir import CheckpointError
from vvlm_jax.weights.mapping import WeightsError


def start(stage_config, part, folder):
    """Return the initial parameters of a run that takes one part from elsewhere."""
    config = override(stage_config, [f"init={json.dumps([[part, str(folder)]])}"])
    model = vlm.build(config.model, 4)
    state = compiled.initial_state(config, model, make_mesh(config.mesh))
    return flatten_dict(optim.merge(state.trainable, state.frozen), sep="/")


@pytest.mark.parametrize("converted", [True, False])
def test_training_starts_from_a_tower_and_takes_its_first_blocks(npz, tower, tmp_path, converted):
    config = TrainConfig(model=ModelConfig("study/12", "study-s", 2, 4, "float32"))
    src = npz
    if converted:
        run(npz, src := tmp_path / "ours", dtype="bfloat16")
    found = start(config, "vision", src)
    for path in (p for p in found if p.startswith("vision/")):
        expected = tower[path].astype(jnp.bfloat16) if converted else tower[path]
        expected = expected[:2] if "encoderblock" in path else expected
        assert found[path].dtype == jnp.float32
        np.testing.assert_array_equal(found[path], expected.astype(np.float32))


def test_training_starts_from_a_huggingface_directory(llama, tmp_path):
    config = TrainConfig(model=ModelConfig("study/12", "study-s", 2, 4, "float32"))
    run(llama, tmp_path / "ours")
    found = start(config, "llm", llama)
    for path, x in params_of(tmp_path / "ours").items():
        np.testing.assert_array_equal(found[path], x.astype(np.float32))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty: no finished model here"):
        start(config, "vision", tmp_path / "empty")


def test_a_model_is_loaded_with_the_tokenizer_in_its_folder(stage, tmp_path):
    folder = stage()
    synthetic.write_tokenizer(folder)
    (tmp_path / "words/tokenizer.json").unlink()
    params, tok = model_dir.load_params(folder), model_dir.open_model(folder)[1]
    assert tok.vocab > 5
    assert params.keys() == {"vision", "projector", "llm"}


def test_a_part_of_a_model_is_not_asked(npz, tmp_path):
    run(npz, tmp_path / "ours")
    said = re.escape(
        f"{tmp_path / 'ours'}: holds vision, and no projector or llm: a part of a model; "
        f'vvlm train makes one of it: --set \'init=[["vision","{tmp_path / "ours"}"]]\''
    )
    with pytest.raises(CheckpointError, match=said):
        model_dir.open_model(tmp_path / "ours")


def test_replies_end_where_the_generation_config_says(stage, tmp_path):
    folder = stage()
    before = model_dir.open_model(folder)[1].stop_ids
    for ends, more in ((3, (3,)), ([before[0], 3], (3,)), (5, ()), ([10**9, "x"], ()), (None, ())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert model_dir.open_model(folder)[1].stop_ids == before + more
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(WeightsError, match="generation_config.json: not a generation config"):
        model_dir.open_model(folder)


def test_a_folder_that_cannot_be_loaded_is_one_line(stage, monkeypatch):
    folder = stage()
    config = folder / "config.json"
    for old, new, message in (
        ('"tokens_per_frame": 4', '"tokens_per_frame": 5', "model.tokens_per_frame = 5: must be a"),
        ('"study/12"', '"study/13"', "model.vision = 'study/13': unknown; did you mean"),
        ("words", "letters", r"run: no tokenizer: put the .* \(data.tokenizer = .*letters' is not"),
    ):
        before = config.read_text()
        assert old in before
        config.write_text(before.replace(old, new))
        with pytest.raises(ValueError, match=message):
            model_dir.open_model(folder)
        config.write_text(before)

    def fail(*args, **options):  # as for truncated files
        raise Exception("Encountered error while reading array") from ValueError("OUT_OF_RANGE")

    monkeypatch.setattr(model_dir.ocp.Checkpointer, "restore", fail)
    with pytest.raises(
        CheckpointError, match=r"run/params: cannot be read; copy the folder again, or make it"
    ):
        model_dir.load_params(folder)


READ = """
import asyncio, sys
from vvlm_jax.train.model_dir import load_params
for folder in sys.argv[1:]:
    for _ in range(3):
        try:
            load_params(folder)
        except ValueError as e:
            print(e)
        for late in ("Event loop is closed", "Encountered error while reading array index"):
            taken = asyncio.new_event_loop().create_future()
            taken.set_exception(RuntimeError(late))
            del taken  # and nobody looked
"""


def test_of_files_cut_short_nothing_is_told_but_the_line(stage, tmp_path):
    """It runs in its own process, because orbax logs until its process ends."""
    whole = stage()
    largest, least = shutil.copytree(whole, tmp_path / "a"), shutil.copytree(whole, tmp_path / "b")
    files = [file for file in (largest / "params").rglob("*") if file.is_file()]
    os.truncate(file := max(files, key=lambda file: file.stat().st_size), file.stat().st_size // 2)
    (least / "params/_METADATA").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", READ, str(largest), str(least), str(whole)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
    )
    again = "copy the folder again, or make it again"
    lines = [f"{largest}/params: cannot be read; {again}"] * 3
    assert done.stdout.splitlines() == lines + [f"{least}/params: empty or damaged; {again}"] * 3
    assert (done.returncode, done.stderr) == (0, "")
