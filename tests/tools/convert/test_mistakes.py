"""One line for each mistake, and what is there stays."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tools.convert.folders import run
from tools import convert as command
from vvlm_jax.config import ConfigError
from vvlm_jax.data.tokenizer import NEWLINE, VIDEO
from vvlm_jax.train import model_dir
from vvlm_jax.train.model_dir import CheckpointError
from vvlm_jax.weights.mapping import WeightsError


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
    (tmp_path / ".partial-ours").mkdir()  # what a killed conversion leaves
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
        (dict(source=Path("x")), "--source x: needs --to hf"),
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
        (tmp_path / "ours", 48, "--image-size 48: only models of other libraries"),
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
        ("", "came_from.json: not a file of vvlm convert"),
        ("[]", "came_from.json: not a file of vvlm convert"),
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


def without(folder, *tokens):
    """Return a folder whose tokenizer has other names for these tokens."""
    file = folder / "tokenizer.json"
    text = file.read_text()
    for token in tokens:
        assert token in text
        text = text.replace(token, "x" + token[2:-2])
    file.write_text(text)
    return folder


def test_a_tokenizer_that_cannot_serve_the_model(llama, stage, tmp_path):
    """The error comes before weights are read; single towers need no tokenizer."""
    src = without(shutil.copytree(llama, tmp_path / "src"), VIDEO)
    mend = (
        r"tokenizer\.json: lacks <\|reserved_special_token_0\|>; put .* without the file, weights"
    )
    with pytest.raises(ValueError, match=mend):
        run(src, tmp_path / "ours")
    run(src, tmp_path / "hf", to="hf")
    (src / "tokenizer.json").unlink()
    run(src, tmp_path / "ours")
    folder = stage(newline="per-video")
    without(tmp_path / "words", NEWLINE)
    lacks = (
        r"json: lacks <\|reserved_special_token_1\|>, which model\.newline = 'per-video' needs; put"
    )
    with pytest.raises(ValueError, match=lacks):
        run(folder, tmp_path / "again")
    with pytest.raises(ValueError, match=lacks):
        model_dir.open_model(folder)
    run(folder, tmp_path / "tower", part="vision")
    run(folder, tmp_path / "llm", part="llm")


def test_a_whole_vlm_whose_tokenizer_has_no_newline(stage, tmp_path):
    run(stage(newline="per-video"), src := tmp_path / "hf", to="hf")
    without(src, NEWLINE)
    with pytest.raises(ValueError, match=r"_1\|>, which model\.newline = 'per-video' needs; put"):
        run(src, tmp_path / "ours")


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


def test_the_command_lists_what_does_not_fit_and_ends_with_one_line(
    npz, tmp_path, monkeypatch, capsys
):
    with np.load(npz) as arrays:
        wrong = dict(arrays) | {"params/img/extra": np.ones(3, np.float32)}
    del wrong["params/img/MAPHead_0/LayerNorm_0/bias"]
    np.savez(tmp_path / "wrong.npz", **wrong)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "wrong.npz"), str(tmp_path / "x")])
    with pytest.raises(SystemExit) as e:
        command.cli()
    assert e.value.code == 2
    lines = capsys.readouterr().err.rstrip().split("\n")
    assert "  unmapped: params/img/extra [3]" in lines
    assert "  missing: params/img/MAPHead_0/LayerNorm_0/bias [48]" in lines
    assert len(lines) == 3
    assert lines[-1].startswith(f"error: {tmp_path / 'wrong.npz'}: tensors do not fit its config: ")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("src", ["nowhere", "nowhere.npz", ""])
def test_a_source_that_is_none(tmp_path, src):
    with pytest.raises(WeightsError, match=r"no such file|neither a directory"):
        run(tmp_path / src, tmp_path / "out")
