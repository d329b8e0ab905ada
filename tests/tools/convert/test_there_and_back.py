"""Folders in and out, whole or not at all, and what is said of them."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax.traverse_util import unflatten_dict

from tests.tools.convert.folders import TOWER, params_of, random_params, run, same
from vvlm_jax.config import ModelConfig, TrainConfig
from vvlm_jax.data import tokenizer
from vvlm_jax.models.variants import LLAMA
from vvlm_jax.override import from_json
from vvlm_jax.train import model_dir
from vvlm_jax.weights import big_vision, export
from vvlm_jax.weights.files import Safetensors
from vvlm_jax.weights.mapping import WeightsError


@pytest.mark.light
def test_npz_to_folder_and_back(npz, tower, tmp_path, capsys):
    run(npz, tmp_path / "ours")
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}: 36 parameters, 97,440 numbers\n"
    same(params_of(tmp_path / "ours"), tower)
    config = from_json(TrainConfig, (tmp_path / "ours/config.json").read_text())
    assert config.model.vision == TOWER
    run(tmp_path / "ours", tmp_path / "again.npz", to="npz")
    assert (tmp_path / "again.npz").stat().st_size == npz.stat().st_size
    with np.load(npz) as before, np.load(tmp_path / "again.npz") as after:
        same(dict(after), dict(before))


def test_huggingface_to_folder_and_back(llama, tmp_path):
    run(llama, tmp_path / "ours")
    beside = {"tokenizer.json", "generation_config.json"}
    names = {"config.json", "params", "came_from.json"} | beside
    assert {file.name for file in (tmp_path / "ours").iterdir()} == names
    assert {str(x.dtype) for x in params_of(tmp_path / "ours").values()} == {"bfloat16"}
    run(tmp_path / "ours", tmp_path / "hf", to="hf")
    run(tmp_path / "ours", tmp_path / "over", to="hf", source=llama)
    for name in {"model.safetensors", "config.json"} | beside:
        for folder in ("hf", "over"):
            assert (tmp_path / folder / name).read_bytes() == (llama / name).read_bytes()
    names = {file.name for file in llama.iterdir()} - {"modeling.py"}
    assert {file.name for file in (tmp_path / "over").iterdir()} == names


def test_the_chat_format_is_that_of_the_tokenizer(llama, tmp_path):
    src = shutil.copytree(llama, tmp_path / "src")
    text = (src / "tokenizer.json").read_text()
    for role, token in tokenizer.FAMILIES["chatml"].items():
        text = text.replace(role, token)
    for token in (tokenizer.BOS, tokenizer.HEADER_END):
        text = text.replace(token, token.strip("<>"))
    (src / "tokenizer.json").write_text(text)
    for folder, prompt in ((llama, "llama3"), (src, "chatml")):
        run(folder, tmp_path / prompt)
        assert model_dir.read_config(tmp_path / prompt).data.prompt == prompt


def test_dtype_and_image_size(npz, tower, tmp_path):
    run(npz, tmp_path / "ours", dtype="bfloat16", image_size=30)
    found = params_of(tmp_path / "ours")
    resized = big_vision.resample_posemb(tower["vision/pos_embedding"], 2)
    same(
        found,
        {k: x.astype(jnp.bfloat16) for k, x in (tower | {"vision/pos_embedding": resized}).items()},
    )
    run(tmp_path / "ours", tmp_path / "hf", to="hf", dtype="float32")
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["image_size"], config["torch_dtype"]) == (30, "float32")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Return a language model in float16, as some are published."""
    folder = tmp_path_factory.mktemp("half")
    model = ModelConfig(llm=LLAMA["study-s"])
    export.write_huggingface(folder, random_params(model, ("llm",), dtype="float16"), model)
    return folder


@pytest.mark.parametrize(
    ("dtype", "stored", "computed"),
    [(None, "float16", "bfloat16"), ("float32",) * 3, ("bfloat16",) * 3],
)
def test_float16_is_kept_and_told_when_it_will_be_rounded(
    half, tmp_path, capsys, dtype, stored, computed
):
    run(half, tmp_path / "ours", dtype=dtype)
    said = (
        "stored in float16 and run in bfloat16, since training and kernels support no other narrow"
    )
    assert (said in capsys.readouterr().out) == (dtype is None)
    assert {str(x.dtype) for x in params_of(tmp_path / "ours").values()} == {stored}
    assert model_dir.read_config(tmp_path / "ours").model.dtype == computed
    run(half, tmp_path / "hf", to="hf")
    assert "stored in" not in capsys.readouterr().out  # nothing will be run
    for file in ("hf", half):
        assert Safetensors(tmp_path / file).infos["model.norm.weight"].dtype == "float16"


def test_a_folder_of_ours_in_another_dtype(llama, tmp_path):
    run(llama, tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "wide", dtype="float32")
    wide = {k: x.astype(jnp.float32) for k, x in params_of(tmp_path / "ours").items()}
    same(params_of(tmp_path / "wide"), wide)
    assert model_dir.read_config(tmp_path / "wide").model.dtype == "float32"


def test_a_whole_vlm_goes_out_and_in(stage, tmp_path, capsys):
    folder = stage(newline="per-video")
    run(folder, tmp_path / "hf", to="hf")
    said = capsys.readouterr().out
    assert "written as ones and zeros: 2 tensors (vision_tower.vision_model.post_layernorm" in said
    assert "LlavaOnevisionForConditionalGeneration does not read them" in said
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["video_token_index"] == 4  # the tokenizer's placeholder
    run(tmp_path / "hf", tmp_path / "again")
    same(params_of(tmp_path / "again"), params_of(folder))
    assert "left out: 2 tensors (vision_tower.vision_model.post" in capsys.readouterr().out
    run(folder, tmp_path / "llm", to="hf", part="llm")
    assert json.loads((tmp_path / "llm/config.json").read_text())["model_type"] == "llama"


def test_a_tower_without_norm_is_told_and_completed_from_its_source(stage, tower, tmp_path, capsys):
    folder = stage()
    run(folder, tmp_path / "alone", to="hf", part="vision")
    said = capsys.readouterr().out
    assert "this tower has no final norm, written as ones and zeros: 2 tensors (vision_" in said
    assert "hidden_states[-1], and last_hidden_state is not meaningful; --source DIR takes" in said
    names = {"config.json", "model.safetensors"}  # and no tokenizer
    assert {file.name for file in (tmp_path / "alone").iterdir()} == names
    (tmp_path / "source").mkdir()
    whole = {path: x + 1 for path, x in tower.items()}
    export.write_huggingface(tmp_path / "source", whole, ModelConfig(vision=TOWER))
    capsys.readouterr()
    run(folder, tmp_path / "over", to="hf", part="vision", source=tmp_path / "source")
    said = capsys.readouterr().out
    # The last block, the norm, and the head.
    assert f"copied from {tmp_path / 'source'}: 29 tensors (vision_model.encoder.layers.2." in said
    assert "ones and zeros" not in said
    source, over = (Safetensors(tmp_path / name) for name in ("source", "over"))
    changed = {n for n in source.infos if (source.read(n) != over.read(n)).any()}
    assert changed == source.infos.keys() - {n for n in source.infos if _later(n)}
    run(folder, tmp_path / "alone.npz", to="npz", part="vision")
    assert "without Transformer/encoder_norm, which this tower lacks" in capsys.readouterr().out


def _later(name):
    return any(part in name for part in ("layers.2.", "post_layernorm", "head."))


def test_rounding_to_the_dtype_of_a_source_is_told(llama, tmp_path, capsys):
    run(llama, tmp_path / "ours", dtype="float32")
    run(tmp_path / "ours", tmp_path / "same", to="hf", source=llama)
    assert "rounded" not in capsys.readouterr().out  # it fits
    params = params_of(tmp_path / "ours")
    params["llm/norm/scale"] = params["llm/norm/scale"] * 1.001
    shutil.rmtree(tmp_path / "ours/params")
    model_dir.save_params(tmp_path / "ours", unflatten_dict(params, sep="/"))
    run(tmp_path / "ours", tmp_path / "over", to="hf", source=llama)
    said = f"rounded to the dtypes of {llama}: 1 tensors (model.norm.weight)\n"
    assert said in capsys.readouterr().out


def test_weights_go_out_whatever_the_tokenizer_is(llama, stage, tmp_path):
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    run(llama, tmp_path / "ours")
    other.save(str(tmp_path / "ours/tokenizer.json"))
    run(tmp_path / "ours", tmp_path / "hf", to="hf")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (llama / name).read_bytes()
    folder = stage(newline="per-video")  # where the class needs an id, it is asked for
    other.save(str(tmp_path / "words/tokenizer.json"))
    with pytest.raises(WeightsError, match=r"needs the placeholder's id: .*\|video_pad\|> into"):
        run(folder, tmp_path / "vlm", to="hf")
    run(folder, tmp_path / "llm", to="hf", part="llm")
    assert json.loads((tmp_path / "llm/config.json").read_text())["eos_token_id"] is None
    (tmp_path / "words/tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json: not a tokenizer"):
        run(folder, tmp_path / "vlm", to="hf")


def test_what_the_class_cannot_express_is_one_line(stage, tmp_path):
    folder = stage()
    with pytest.raises(WeightsError, match=r"^model\.newline = 'none': Llava.*--part llm writes"):
        run(folder, tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()
    run(folder, tmp_path / "tower", to="hf", part="vision")
