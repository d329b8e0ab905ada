"""The convert command: folders in and out, whole or not at all, and one line for each mistake."""

import dataclasses
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
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict

from tools import convert
from vvlm_jax import config as config_lib
from vvlm_jax.config import ConfigError, ModelConfig, TrainConfig, VisionConfig
from vvlm_jax.data import synthetic
from vvlm_jax.models import vlm
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.sharding import make_mesh
from vvlm_jax.train import model_dir, optim, program
from vvlm_jax.train.model_dir import CheckpointError
from vvlm_jax.weights import big_vision, export, huggingface
from vvlm_jax.weights.files import Safetensors
from vvlm_jax.weights.mapping import WeightsError, tree_shapes

ROOT = Path(__file__).parents[2]
TOWER = VisionConfig(
    width=48, depth=3, mlp_dim=96, num_heads=3, patch_size=12, image_size=48, feature_layer=-1,
    head="map",
)  # fmt: skip
"""All of study/12."""


def random_params(model, parts, norm=False, head=False, dtype="float32"):
    entries = huggingface.entries(model, parts, huggingface.TOWER, norm, head)
    rng = np.random.default_rng(0)
    return {
        path: (0.1 * rng.standard_normal(shape)).astype(jnp.dtype(dtype))
        for path, shape in tree_shapes(entries).items()
    }


@pytest.fixture(scope="module")
def tower():
    return random_params(ModelConfig(vision=TOWER), ("vision",), True, True)


@pytest.fixture(scope="module")
def npz(tower, tmp_path_factory):
    file = tmp_path_factory.mktemp("npz") / "tower.npz"
    export.write_big_vision(file, tower, ModelConfig(vision=TOWER))
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Hugging Face directory of study-s in bfloat16, with a tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    model = ModelConfig(llm=LLAMA["study-s"])
    params = random_params(model, ("llm",), dtype="bfloat16")
    export.write_huggingface(folder, params, model)
    synthetic.write_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id":[1, 3]}')
    (folder / "modeling.py").write_text("raise SystemExit('executed')")
    return folder


def run(*arguments, **options):
    src, dst = arguments
    convert.main(convert.Args(str(src), Path(dst), **options))


def params_of(folder):
    return flatten_dict(model_dir.load_params(folder), sep="/")


def same(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert found[path].dtype == x.dtype
        np.testing.assert_array_equal(found[path], x, err_msg=path)


def test_npz_to_folder_and_back(npz, tower, tmp_path, capsys):
    run(npz, tmp_path / "ours")
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}: 36 parameters, 97,440 numbers\n"
    same(params_of(tmp_path / "ours"), tower)
    config = config_lib.from_json(TrainConfig, (tmp_path / "ours/config.json").read_text())
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


@pytest.fixture
def stage(tmp_path):
    """A trained folder of a whole VLM: config.json and params/, tokenizer elsewhere."""

    def make(**options):
        synthetic.write_tokenizer(tmp_path / "words")
        config = TrainConfig(
            model=ModelConfig("study/12", "study-s", 2, 4, "float32", **options),
            data=config_lib.DataConfig(tokenizer=str(tmp_path / "words")),
        )
        sizes = dataclasses.replace(config.model, vision=VISION["study/12"], llm=LLAMA["study-s"])
        newline = ("newline",) if options else ()
        params = random_params(sizes, ("vision", "projector", "llm", *newline))
        params = unflatten_dict(params, sep="/")
        (tmp_path / "run").mkdir()
        (tmp_path / "run/config.json").write_text(config_lib.to_json(config))
        model_dir.save_params(tmp_path / "run", params)
        return tmp_path / "run"

    return make


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
    src = shutil.copytree(llama, tmp_path / "src")
    other.save(str(src / "tokenizer.json"))
    run(src, tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "hf", to="hf")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (src / name).read_bytes()
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


# --- what is there stays, and what is written is whole ---


def test_an_existing_folder_is_not_overwritten(npz, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="ours: already there; remove it or choose another DST"):
        run(npz, tmp_path / "ours")
    (tmp_path / "ours/notes.txt").unlink()
    run(npz, tmp_path / "ours")  # an empty one gives way


def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(npz, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("no space left")

    (tmp_path / "ours.partial").mkdir()  # somebody's, not a conversion's
    (tmp_path / ".ours.converting").mkdir()  # what a killed conversion leaves
    monkeypatch.setattr(model_dir, "save_params", fail)
    with pytest.raises(OSError, match="no space left"):
        run(npz, tmp_path / "ours")
    assert [file.name for file in tmp_path.iterdir()] == ["ours.partial"]
    monkeypatch.undo()
    run(npz, tmp_path / "ours")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ours", "ours.partial"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(to="npz"), "with --to npz, DST must end in .npz"),
        (dict(source=Path("x")), "--source x: only --to hf writes over a source"),
        (dict(part="llm"), "--part llm: the model has no such part"),
        (dict(image_size=0), "--image-size 0: must be at least one patch"),
    ],
)
def test_options_that_do_not_go_together(npz, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run(npz, tmp_path / "out", **options)


def test_an_image_size_that_cannot_be(npz, llama, tmp_path):
    run(npz, tmp_path / "ours")
    run(tmp_path / "ours", tmp_path / "hf", to="hf")
    for src, size, message in (
        (npz, 11, "--image-size 11: must be from 12, one patch, to 4096"),
        (npz, 10**9, "--image-size 1000000000: must be from 12, one patch, to 4096"),
        (tmp_path / "hf", 11, "--image-size 11: must be from 12, one patch, to 4096"),
        (llama, 48, f"--image-size 48: {llama} holds no vision tower"),
        (tmp_path / "ours", 48, "--image-size 48: only what is read from other libraries"),
    ):
        with pytest.raises((ConfigError, WeightsError), match=re.escape(message)):
            run(src, tmp_path / "out", image_size=size)


def test_an_npz_that_promises_too_much(npz, tmp_path):
    block = "params/img/Transformer/encoderblock_"
    query = "/MultiHeadDotProductAttention_0/query/kernel"
    for name, shape, message in (
        (f"{block}1000000{query}", (1,), "has Transformer/encoderblock_1000000, and only 69 ten"),
        (f"{block}{'9' * 5000}{query}", (1,), "tensors do not fit its config: 1 unmapped"),
        (
            f"{block}0{query}",
            (48, 0, 16),
            r"query/kernel has shape \[48, 0, 16\]; is this a SigLIP",
        ),
    ):
        with np.load(npz) as arrays:
            np.savez(tmp_path / "x.npz", **dict(arrays) | {name: np.ones(shape, np.float32)})
        with pytest.raises(WeightsError, match=message):
            run(tmp_path / "x.npz", tmp_path / "out")


DAMAGE = {
    "config.json": [
        ("[]", "config.json: not a config; copy the folder again"),
        ("{", "config.json: not JSON: "),
        ('{"model": [1]}', r"config.json: model = \[1\]: must be ModelConfig, not list"),
    ],
    "came_from.json": [
        ("", "came_from.json: not what tools.convert wrote"),
        ("[]", "came_from.json: not what tools.convert wrote"),
        ('{"config": 3}', "came_from.json: damaged; remove it"),
        ('{"config": {"model_type": "llama"}, "prefixes": [1], "copies": []}', "json: damaged; re"),
        (
            '{"config": {"model_type": "llama", "rope_scaling": [1]}, "prefixes": '
            '["", "", "", "", ""], "copies": []}',
            r"came_from.json: config: rope_scaling = \[1\]: must be one set",
        ),
    ],
    "params/_METADATA": [
        ("", "params: empty or damaged; copy"),
        ("{}", "params: empty or damaged"),
    ],
}


def test_a_damaged_folder_of_ours(llama, tmp_path):
    run(llama, tmp_path / "ours")
    for name, cases in DAMAGE.items():
        before = (tmp_path / "ours" / name).read_bytes()
        for text, message in cases:
            (tmp_path / "ours" / name).write_text(text)
            with pytest.raises(ValueError, match=message) as raised:
                run(tmp_path / "ours", tmp_path / "hf", to="hf")
            assert "\n" not in str(raised.value)
        (tmp_path / "ours" / name).write_bytes(before)
    shutil.rmtree(tmp_path / "ours/params")
    (tmp_path / "ours/params").mkdir()
    with pytest.raises(CheckpointError, match="params: empty or damaged"):
        run(tmp_path / "ours", tmp_path / "hf", to="hf")


def test_a_source_of_another_model_is_refused(llama, npz, tmp_path):
    run(npz, tmp_path / "ours")
    with pytest.raises(WeightsError, match="holds llm, and no vision"):
        run(tmp_path / "ours", tmp_path / "out", to="hf", source=llama)
    run(tmp_path / "ours", tmp_path / "hf", to="hf")
    file = tmp_path / "hf/config.json"
    before = file.read_text()
    for old, new, message in (
        ('"num_attention_heads": 3', '"num_attention_heads": 6', "tower has num_heads = 6, ours 3"),
        ('"intermediate_size": 96', '"intermediate_size": 95', "tower has mlp_dim = 95, ours 96"),
    ):
        file.write_text(before.replace(old, new))
        with pytest.raises(WeightsError, match=message):
            run(tmp_path / "ours", tmp_path / "out", to="hf", source=tmp_path / "hf")


def test_the_command_lists_what_does_not_fit_and_ends_with_one_line(npz, tmp_path):
    with np.load(npz) as arrays:
        wrong = dict(arrays) | {"params/img/extra": np.ones(3, np.float32)}
    del wrong["params/img/MAPHead_0/LayerNorm_0/bias"]
    np.savez(tmp_path / "wrong.npz", **wrong)
    done = subprocess.run(
        [sys.executable, "-m", "tools.convert", str(tmp_path / "wrong.npz"), str(tmp_path / "x")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = done.stderr.rstrip().split("\n")
    assert "  unmapped: params/img/extra [3]" in lines
    assert "  missing: params/img/MAPHead_0/LayerNorm_0/bias [48]" in lines
    assert len(lines) == 3
    assert lines[-1].startswith(f"error: {tmp_path / 'wrong.npz'}: tensors do not fit its config: ")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("src", ["nowhere", "nowhere.npz", ""])
def test_a_source_that_is_none(tmp_path, src):
    with pytest.raises(WeightsError, match=r"no such (file|directory)"):
        run(tmp_path / src, tmp_path / "out")


# --- what training and generation make of it ---


def start(stage_config, part, folder):
    """Initial parameters of a run that takes one part from elsewhere."""
    config = config_lib.override(stage_config, [f"init={json.dumps([[part, str(folder)]])}"])
    model = vlm.build(config.model, 4)
    state = program.initial_state(config, model, make_mesh(config.mesh))
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
    _, params, tok, _ = model_dir.load_model(folder)
    assert tok.vocab > 5
    assert params.keys() == {"vision", "projector", "llm"}


def test_a_part_of_a_model_is_not_asked(npz, tmp_path):
    run(npz, tmp_path / "ours")
    said = re.escape(
        f"{tmp_path / 'ours'}: holds vision, and no projector or llm: a part of a model; "
        f'tools.train makes one of it: --set \'init=[["vision","{tmp_path / "ours"}"]]\''
    )
    with pytest.raises(CheckpointError, match=said):
        model_dir.load_model(tmp_path / "ours")


def test_replies_end_where_the_generation_config_says(stage, tmp_path):
    folder = stage()
    before = model_dir.load_model(folder)[2].stop_ids
    for ends, more in ((3, (3,)), ([before[0], 3], (3,)), (5, ()), ([10**9, "x"], ()), (None, ())):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        assert model_dir.load_model(folder)[2].stop_ids == before + more
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(WeightsError, match="generation_config.json: not a generation config"):
        model_dir.load_model(folder)


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
            model_dir.load_model(folder)
        config.write_text(before)

    def fail(*args, **options):  # as on files cut short, whose other readers would go on behind us
        raise Exception("Encountered error while reading array") from ValueError("OUT_OF_RANGE")

    monkeypatch.setattr(model_dir.ocp.PyTreeCheckpointer, "restore", fail)
    with pytest.raises(
        CheckpointError, match=r"run/params: cannot be read; copy the folder again, or make it"
    ):
        model_dir.load_model(folder)
