import dataclasses
import json

import pytest

from vvlm_jax.config import (
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    visual_length,
)
from vvlm_jax.config_check import choose, tokens_side, validate
from vvlm_jax.models.variants import VISION
from vvlm_jax.override import differences, from_dict, from_json, override, to_json

SO400M = VISION["so400m/14-384"]
UNUSUAL = TrainConfig(
    model=ModelConfig(llm="llama3.1-8b", num_frames=7, tokens_per_frame=9, remat="none"),
    data=DataConfig(num_examples=12, system='say "hi"\n', max_unreadable=0.0),
    optim=OptimConfig(learning_rates=(("llm/.*", 0.0), (".*", 3e-4)), warmup=0.1),
    init=(("vision", "runs/a"), ("llm", "runs/b")),
    seed=3,
    mesh=(("data", 2), ("fsdp", 4), ("tensor", 1)),
)


def test_there_are_few_options():
    stages = (ModelConfig, DataConfig, OptimConfig, TrainConfig)
    assert sum(len(dataclasses.fields(c)) for c in stages) - 3 <= 60  # but for the three groups


# Overrides.


@pytest.mark.parametrize(
    ("assignment", "read", "value"),
    [
        ("seed=7", lambda c: c.seed, 7),
        ("model.num_frames=8", lambda c: c.model.num_frames, 8),
        ("model.remat=none", lambda c: c.model.remat, "none"),
        ("model.llm=llama3.2-3b", lambda c: c.model.llm, "llama3.2-3b"),
        ('model.llm="study-s"', lambda c: c.model.llm, "study-s"),
        ("data.num_examples=5", lambda c: c.data.num_examples, 5),
        ("data.system=a = b", lambda c: c.data.system, "a = b"),
        ("out_dir=", lambda c: c.out_dir, ""),
        ("optim.warmup=0", lambda c: c.optim.warmup, 0.0),
        ("optim.clip_norm=1e-3", lambda c: c.optim.clip_norm, 1e-3),
        ('init=[["llm", "runs/x"]]', lambda c: c.init, (("llm", "runs/x"),)),
        (
            'optim.learning_rates=[["llm/.*", 1], [".*", 0.5]]',
            lambda c: c.optim.learning_rates,
            (("llm/.*", 1.0), (".*", 0.5)),
        ),
        ('mesh=[["data", 4]]', lambda c: c.mesh, (("data", 4),)),
    ],
)
def test_an_override_sets_one_option(assignment, read, value):
    before = TrainConfig()
    after = override(before, [assignment])
    assert read(after) == value
    assert type(read(after)) is type(value)
    hash(after)  # lists have become tuples all the way down
    text = assignment.partition("=")[0]
    assert next(differences(before, after))[0] == text
    assert before == TrainConfig()


def test_overrides_apply_in_order_and_keep_the_rest():
    changed = override(UNUSUAL, ["seed=1", "data.num_examples=null", "seed=2"])
    data = dataclasses.replace(UNUSUAL.data, num_examples=None)
    assert changed == dataclasses.replace(UNUSUAL, seed=2, data=data)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "model.num_frame=8",
            "model.num_frame: no such option; did you mean 'num_frames'?",
        ),
        ("modle.num_frames=8", "modle.num_frames: no such option modle; did you mean 'model'?"),
        ("sede=1", "sede: no such option; did you mean 'seed'?"),
        (
            "model.num_frames.x=8",
            "model.num_frames.x: model.num_frames is a value, it holds no options",
        ),
        ("model.num_frames=many", "model.num_frames = 'many': must be int, not str"),
        ("model.num_frames=8.5", "model.num_frames = 8.5: must be int, not float"),
        ("model.num_frames=true", "model.num_frames = True: must be int, not bool"),
        ("model.num_frames=null", "model.num_frames = None: must be int, not NoneType"),
        ("model.remat=1", "model.remat = 1: must be str, not int"),
        ("model.llm=3", "model.llm = 3: must be str, not int"),
        ("optim.warmup=true", "optim.warmup = True: must be float, not bool"),
        ("optim.warmup=slow", "optim.warmup = 'slow': must be float, not str"),
        ("data.num_examples=all", "data.num_examples = 'all': must be int, not str"),
        ("model=llama", "model = 'llama': must be ModelConfig, not str"),
        ("init=llm", "init = 'llm': must be a list"),
        ('init=[["llm"]]', "init[0] = ['llm']: must be a list of 2 items"),
        ('mesh=[["data", "x"]]', "mesh[0][1] = 'x': must be int, not str"),
        ('model={"num_frame": 1}', "model.num_frame: no such option; did you mean 'num_frames'?"),
        ("seed", "'seed': write an override as key=value"),
    ],
)
def test_a_wrong_override_is_one_line(assignment, message):
    with pytest.raises(ConfigError) as raised:
        override(TrainConfig(), [assignment])
    assert str(raised.value) == message


def test_a_name_like_no_other_lists_what_there_is():
    with pytest.raises(ConfigError, match=r"^model\.zzz: no such option; known: vision, llm, num_"):
        override(TrainConfig(), ["model.zzz=1"])


def test_choose_names_the_nearest_key():
    assert choose({"a": 1}, "a", "x") == 1
    with pytest.raises(ConfigError, match=r"^model\.vision = 'so400m/14': .*'so400m/14-"):
        choose(VISION, "so400m/14", "model.vision")


# JSON.


@pytest.mark.parametrize("config", [TrainConfig(), UNUSUAL])
def test_json_round_trip(config):
    again = from_json(TrainConfig, to_json(config))
    assert again == config
    assert hash(again) == hash(config)
    assert json.loads(to_json(config))["model"]["num_frames"] == config.model.num_frames


def test_json_of_an_older_run_takes_defaults_and_refuses_what_it_does_not_know():
    assert from_dict(TrainConfig, {"model": {"num_frames": 3}}).model == ModelConfig(num_frames=3)
    with pytest.raises(ConfigError, match=r"^data\.sytem: no such option; did you mean 'system'"):
        from_dict(TrainConfig, {"data": {"sytem": ""}})


def test_differences():
    assert list(differences(UNUSUAL, UNUSUAL)) == []
    deeper = override(UNUSUAL, ["optim.warmup=0.2", "seed=9"])
    assert list(differences(UNUSUAL, deeper)) == [("optim.warmup", 0.1, 0.2), ("seed", 3, 9)]
    assert list(differences(UNUSUAL, override(UNUSUAL, ["seed=9"]))) == [("seed", 3, 9)]


# What cannot work.


def test_what_can_work_passes():
    assert validate(UNUSUAL, SO400M) is UNUSUAL
    validate(TrainConfig(), SO400M)
    for buckets in ("[64, 128]", "[64, 512]", "[512]"):
        validate(override(TrainConfig(), [f"data.text_buckets={buckets}"]), SO400M)
    validate(override(TrainConfig(), ["model.tokens_per_frame=729", "data.prompt=plain"]), SO400M)


@pytest.mark.parametrize(
    ("assignments", "field", "allowed"),
    [
        (["model.num_frames=0"], "model.num_frames = 0", "at least 1"),
        (["model.tokens_per_frame=5"], "model.tokens_per_frame = 5", "perfect square from 1 to 27"),
        (["model.tokens_per_frame=784"], "model.tokens_per_frame = 784", "27² = 729"),
        (["model.tokens_per_frame=0"], "model.tokens_per_frame = 0", "perfect square"),
        (["model.tokens_per_frame=-4"], "model.tokens_per_frame = -4", "perfect square"),
        (["model.dtype=float16"], "model.dtype = 'float16'", "bfloat16 or float32"),
        (["data.prompt=qwen"], "data.prompt = 'qwen'", "llama3, chatml or plain"),
        (["data.frame_sampling=all"], "data.frame_sampling = 'all'", "uniform or force"),
        (["data.num_examples=0"], "data.num_examples = 0", "at least 1, or null"),
        (["batch_size=0"], "batch_size = 0", "at least 1"),
        (["microbatches=0"], "microbatches = 0", "divisor of batch_size = 256"),
        (["microbatches=3"], "microbatches = 3", "divisor of batch_size = 256"),
        (["batch_size=8", "microbatches=16"], "microbatches = 16", "divisor of batch_size = 8"),
        (["epochs=0"], "epochs = 0", "at least 1"),
        (["loss_weighting=mean"], "loss_weighting = 'mean'", "token or sample"),
        (["log_every=0"], "log_every = 0", "at least 1"),
        (["checkpoint_every=-1"], "checkpoint_every = -1", "0 (only the last) or above"),
        (["model.frame_chunk=-1"], "model.frame_chunk = -1", "0 (all) or above"),
        (["model.remat=none", "model.unroll=0"], "model.unroll = 0", "at least 1"),
        (["model.remat=full", "model.unroll=2"], "model.unroll = 2", "1 with remat = 'full'"),
        (["model.remat=chunks"], "model.frame_chunk = 0", "above 0 with remat = 'chunks'"),
        (["loss_chunk=-1"], "loss_chunk = -1", "0 (all) or above"),
        (["data.text_buckets=[64, 32]"], "data.text_buckets = (64, 32)", "ascending, from 1 to"),
        (["data.text_buckets=[64, 64]"], "data.text_buckets = (64, 64)", "ascending, from 1 to"),
        (["data.text_buckets=[0, 64]"], "data.text_buckets = (0, 64)", "ascending, from 1 to"),
        (["data.text_buckets=[513]"], "data.text_buckets = (513,)", "max_text_tokens = 512"),
        (["optim.mu_dtype=float16"], "optim.mu_dtype = 'float16'", "bfloat16 or float32"),
        (["optim.spike_factor=1"], "optim.spike_factor = 1.0", "0 (never skip), or above 1"),
        (["optim.spike_factor=-2"], "optim.spike_factor = -2.0", "0 (never skip), or above 1"),
        (["optim.max_skipped=0"], "optim.max_skipped = 0", "at least 1"),
        (["optim.warmup=1"], "optim.warmup = 1.0", "from 0 to below 1"),
        (["optim.warmup=-0.1"], "optim.warmup = -0.1", "from 0 to below 1"),
        (["optim.warmup=NaN"], "optim.warmup = nan", "from 0 to below 1"),
        (["optim.clip_norm=0"], "optim.clip_norm = 0.0", "above 0"),
        (['optim.learning_rates=[["llm/.*", -1]]'], "optim.learning_rates[llm/.*] = -1.0", "or ab"),
    ],
)
def test_an_option_that_cannot_work_is_refused_in_one_line(assignments, field, allowed):
    config = override(TrainConfig(), assignments)
    with pytest.raises(ConfigError) as raised:
        validate(config, SO400M)
    message = str(raised.value)
    assert message.startswith(f"{field}: must be ")
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(("tokens", "side"), [(1, 1), (4, 2), (196, 14), (729, 27)])
def test_tokens_side(tokens, side):
    assert tokens_side(tokens, 27) == side


@pytest.mark.parametrize(
    ("newline", "length"), [("none", 288), ("per-video", 289), ("per-frame", 320), ("grid", 384)]
)
def test_visual_length_counts_newlines(newline, length):
    assert visual_length(32, 9, newline) == length
    assert visual_length(0, 9, newline) == 0


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("resampler=arena", "'arena': unknown; did you mean 'area'?"),
        ("remat=ful", "'ful': unknown; did you mean 'full'?"),
        ("attention=flash", "'flash': unknown; known: auto, reference"),
        ("newline=yes", "'yes': unknown; known: none, per-video, per-frame, grid"),
    ],
)
def test_an_unknown_choice_is_answered_with_those_there_are(field, message):
    with pytest.raises(ConfigError) as raised:
        validate(override(TrainConfig(), [f"model.{field}"]), SO400M)
    assert str(raised.value) == f"model.{field.partition('=')[0]} = {message}"


def test_the_grid_leaves_a_remainder_of_pixels_out():
    assert (SO400M.grid, SO400M.num_patches, SO400M.blocks_run) == (27, 729, 26)
    assert dataclasses.replace(SO400M, feature_layer=-1).blocks_run == 27
