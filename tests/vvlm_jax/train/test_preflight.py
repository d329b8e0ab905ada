"""Conditions that would stop a run are one-line errors before anything is compiled."""

import shutil
from collections import namedtuple

import pytest

from vvlm_jax import devices
from vvlm_jax.config import ConfigError
from vvlm_jax.data import pipeline
from vvlm_jax.train import loop, preflight, run_dir
from vvlm_jax.train.loop import train

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def nothing_compiles(monkeypatch):
    """Replace the first function that compiles, so that reaching it is a TypeError."""
    monkeypatch.setattr(loop, "initial_state", None)


def fails(config, match, **options):
    with pytest.raises(ConfigError, match=match) as raised:
        train(config, **options)
    assert "\n" not in str(raised.value)


def test_missing_weights_are_an_error(stage, tmp_path):
    gone = tmp_path / "gone"
    fails(
        stage(tmp_path / "run", init=(("llm", str(gone)),)),
        rf"no such file or folder: init\[llm\] = {gone}",
    )
    fails(
        stage(tmp_path / "run", init=(("llm", f"{gone}.npz"),)),
        rf"no such .*init\[llm\] = {gone}.npz",
    )
    gone.mkdir()
    fails(
        stage(tmp_path / "run", init=(("llm", str(gone)),)),
        rf"init\[llm\] = {gone}: no finished model",
    )
    fails(stage(tmp_path / "run", init=(("lm", str(gone)),)), "init: unknown part 'lm'; did you")


@pytest.mark.parametrize(
    "option",
    [
        "out_dir=gs://b/run",
        "data.tokenizer=gs://b/tok",
        'init=[["llm","gs://b/llama"]]',
    ],
)
def test_buckets_have_to_be_mounted(stage, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    name = option.partition("=")[0]
    fails(
        stage(tmp_path / "run", option), rf"^{name}\S* = '\w+://\S+': must be a path: mount the b"
    )
    assert list(tmp_path.iterdir()) == []  # no folder "gs:"


@pytest.mark.parametrize("option", ["annotations=http://b/train.json", "media_root=az://b/videos"])
def test_data_lie_in_folders_or_buckets(stage, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    fails(
        stage(tmp_path / "run", f"data.{option}"),
        rf"^data.{option.replace('=', ' = .')}': must be a path, or one in a bucket: gs://, s3://",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_for_the_checkpoints(stage, tmp_path, monkeypatch):
    """A checkpoint of this model takes 3 × 4 bytes a parameter."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12, 10**5))
    needs = r"0\.0001 GB free; 3 checkpoints of \S+ GB and a model of \S+ GB need \S+; free some,"
    fails(stage(tmp_path, checkpoint_every=1), needs)
    fails(stage(tmp_path, checkpoint_every=0), r"0 checkpoints of \S+ GB and a model of \S+ GB")


def test_room_is_counted_in_bytes(stage, tok, tmp_path, monkeypatch):
    from vvlm_jax.models import vlm

    config = stage(tmp_path, checkpoint_every=1)
    model = vlm.build(config.model, pipeline.video_id(tok))
    params = sum(x.size for x in vlm.jax.tree.leaves(vlm.shapes(model)))
    exact = 3 * 3 * 4 * params + 3 * 4  # two that stay and one that is written; Adam's counter
    for free in (exact, exact - 1):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        if free == exact:
            preflight.check(config, model, tmp_path, 6)
        else:
            with pytest.raises(ConfigError, match="need"):
                preflight.check(config, model, tmp_path, 6)


def test_a_large_model_on_a_cpu_has_to_be_asked_for(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "LARGE", 1000)
    train_until_state(stage(tmp_path / "asked"))  # the tests set JAX_PLATFORMS=cpu
    monkeypatch.setattr(preflight, "_platforms", lambda: "")
    monkeypatch.setattr(devices, "_FILES", ())
    fails(stage(tmp_path), r"^no accelerator found, and .* or set JAX_PLATFORMS=cpu")
    monkeypatch.setattr(devices, "_FILES", ("null",))
    fails(stage(tmp_path), r"^/dev/null exists, but this jax cannot use it, and ")


def train_until_state(config):
    with pytest.raises(TypeError, match="NoneType"):
        train(config)


def test_an_option_to_allow_that_does_not_exist(stage, tmp_path):
    fails(stage(tmp_path), r"^--allow optim\.warmpu: no such option; did you mean 'warmup'\?$",
          allow=("optim.warmpu",))  # fmt: skip
    fails(stage(tmp_path), r"^--allow seed\.x: no such option$", allow=("seed.x",))


def test_checkpoints_without_a_config_are_refused(stage, tmp_path):
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    fails(stage(tmp_path), r"checkpoints: holds checkpoints, but .* has no config\.json; choose")


@pytest.mark.parametrize("option", ["batch_size=8", "seed=1", "data.num_examples=8"])
def test_options_that_determine_the_examples_of_each_step_cannot_change(stage, tmp_path, option):
    run_dir.claim(stage(tmp_path))
    (tmp_path / "metrics.jsonl").write_text("")
    name = option.partition("=")[0]
    fails(stage(tmp_path, option), rf"holds a run with {name} = .*the examples of each step",
          allow=(name,))  # fmt: skip
