"""Hugging Face directories of small random models, as transformers itself writes them."""

import json
import shutil

import numpy as np
import pytest

TOWER = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=18,
    patch_size=4,
)  # fmt: skip
LLAMA = dict(
    vocab_size=50, hidden_size=40, intermediate_size=56, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
)  # fmt: skip
ROPE = dict(
    rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip


def build(kind, **options):
    """Return a random transformers model; biases and scales are not 0 and 1."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    if kind == "siglip_vision":
        model = tf.SiglipVisionModel(tf.SiglipVisionConfig(**TOWER | options))
    elif kind == "siglip":
        text = dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            vocab_size=20, max_position_embeddings=8,
        )  # fmt: skip
        model = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=TOWER | options))
    elif kind == "llama":
        defaults = dict(head_dim=12, rope_parameters=ROPE, rms_norm_eps=1e-5)
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**LLAMA | defaults | options))
    elif kind == "qwen2":
        model = tf.Qwen2ForCausalLM(tf.Qwen2Config(**LLAMA | options))
    else:
        text = tf.LlamaConfig(**LLAMA | dict(head_dim=12, rope_parameters=ROPE))
        if kind == "onevision-qwen2":
            text = tf.Qwen2Config(**LLAMA, tie_word_embeddings=True)
        layer = options.pop("vision_feature_layer", -1)
        tower = tf.SiglipVisionConfig(**TOWER | dict(vision_use_head=False) | options)
        model = tf.LlavaOnevisionForConditionalGeneration(
            tf.LlavaOnevisionConfig(
                vision_config=tower, text_config=text, image_token_index=48, video_token_index=49,
                vision_feature_layer=layer,
            )
        )  # fmt: skip
    with torch.no_grad():
        for x in model.parameters():
            x += 0.1 * torch.randn_like(x)
    return model.eval()


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Return saved(kind, dtype="float32", max_shard_size=…, …) → (torch model, directory)."""
    made = {}

    def save(kind, dtype="float32", max_shard_size="50GB", **options):
        key = json.dumps([kind, dtype, max_shard_size, options], sort_keys=True)
        if key not in made:
            import torch

            model = build(kind, **options).to(getattr(torch, dtype))
            folder = tmp_path_factory.mktemp(kind)
            model.save_pretrained(folder, max_shard_size=max_shard_size)
            made[key] = model, folder
        return made[key]

    return save


@pytest.fixture
def copied(saved, tmp_path):
    """Return `saved` with a copy of its directory, which the test may change."""

    def copy(kind, **options):
        model, folder = saved(kind, **options)
        shutil.copytree(folder, tmp_path / kind)
        return model, tmp_path / kind

    return copy


@pytest.fixture
def edit():
    """Return edit(folder, name=value, …) changes config.json; None removes a key."""

    def change(folder, **values):
        file = folder / "config.json"
        config = json.loads(file.read_text()) | values
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return change


@pytest.fixture(scope="session")
def assert_close():
    def check(ours, theirs):
        """Assert that an array equals the reference to 1e-4 of its largest value."""
        theirs = theirs.detach().float().numpy()
        assert np.shape(ours) == theirs.shape
        assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()

    return check
