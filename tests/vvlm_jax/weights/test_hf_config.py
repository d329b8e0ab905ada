"""config.json of Hugging Face directories, read, refused in one line, and written."""

import dataclasses

import pytest

from vvlm_jax.weights import hf_config, sources
from vvlm_jax.weights.mapping import WeightsError

pytestmark = pytest.mark.torch

SLIDES = "use_sliding_window = True: layers from max_window_layers = [01] on would slide"


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "llama",
            dict(model_type="gemma"),
            r"model_type = 'gemma': not supported; take a vision tower \(siglip,",
        ),
        ("llama", dict(hidden_act="gelu"), "hidden_act = 'gelu': only 'silu'"),
        ("llama", dict(attention_bias=True), "attention_bias = True: only False"),
        ("llama", dict(hidden_size="40"), "hidden_size = '40': must be a positive integer"),
        ("llama", dict(model_type=["llama"]), r"model_type = \['llama'\]: not supported"),
        ("llama", dict(num_hidden_layers=10**9), "num_hidden_layers = 1000000000: there are only"),
        ("llama", dict(model_type=None), "model_type = None: not supported; take a vision tower"),
        ("qwen2", dict(layer_types=["full_attention", "sliding_attention"]), "= 'sliding_atten"),
        ("qwen2", dict(layer_types=["full_attention"]), "a list of num_hidden_layers = 2 kinds"),
        ("qwen2", dict(layer_types="full_attention"), "layer_types = 'full_attention': must be a"),
        ("qwen2", dict(layer_types=None, use_sliding_window=True, max_window_layers=1), SLIDES),
        ("qwen2", dict(layer_types=None, use_sliding_window=True, max_window_layers=0), SLIDES),
        ("llama", dict(num_key_value_heads=3), "num_key_value_heads = 3: must divide num_att"),
        ("llama", dict(head_dim=7), "head_dim = 7: must be even"),
        ("llama", dict(rms_norm_eps="x"), "rms_norm_eps = 'x': must be a positive number"),
        ("llama", dict(tie_word_embeddings="no"), "tie_word_embeddings = 'no': must be true or"),
        ("llama", dict(rope_parameters=[1]), r"rope_parameters = \[1\]: must be one set"),
        ("llama", dict(rope_parameters=None, rope_scaling=["x"]), r"rope_scaling = \['x'\]: must"),
        ("llama", dict(rope_parameters=dict(full=dict(rope_type="yarn"))), "must be one set"),
        ("llama", dict(rope_parameters=None, rope_theta="abc"), "rope_theta = 'abc': must be a p"),
        ("llama", dict(rope_parameters=dict(rope_theta="a")), "parameters: rope_theta = 'a': must"),
        ("llama", dict(dtype="float8_e4m3fn"), "dtype = 'float8_e4m3fn': only bfloat16, float16"),
        ("llama", dict(dtype=None, torch_dtype="int8"), "torch_dtype = 'int8': only bfloat16"),
        ("llama", dict(quantization_config=dict(bits=4)), "quantised weights are not read; take"),
        ("siglip", dict(vision_config=dict(num_hidden_layers=10**9)), "1000000000: there are only"),
        ("siglip", dict(vision_config=dict(num_attention_heads=5)), "= 5: must divide hidden_size"),
        ("siglip", dict(vision_config=dict(image_size=8)), "image_size = 8: must be from patch_s"),
        ("onevision", dict(vision_feature_layer=True), "layer = True: must be one layer"),
        ("onevision", dict(text_config=dict(model_type="gemma")), "only llama or qwen2 is sup"),
        ("onevision", dict(text_config=dict(model_type=["llama"])), "text_config: model_type"),
        ("onevision", dict(vision_config=dict(model_type="clip")), "only siglip_vision_model is"),
        ("llama", dict(rope_parameters=dict(rope_type="yarn")), "rope_type = 'yarn'"),
        ("llama", dict(rope_parameters=dict(rope_type="llama3")), "rope_parameters: factor = None"),
        ("siglip_vision", dict(hidden_act="gelu"), "hidden_act = 'gelu': only 'gelu_pytorch"),
        ("siglip", dict(vision_config=None), "has no vision_config"),
        ("onevision", dict(vision_feature_layer=[-1, -2]), r"layer = \[-1, -2\]: must be one"),
        ("onevision", dict(vision_feature_select_strategy="default"), "only 'full'"),
    ],
)
def test_a_config_that_ours_cannot_be_is_one_line(copied, edit, kind, values, message):
    _, folder = copied(kind)
    edit(folder, **values)
    with pytest.raises(WeightsError, match=message) as raised:
        sources.open_source(folder)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(str(folder / "config.json"))


@pytest.mark.parametrize("text", ["", "[]", "null", '"model_type"', "[" * 50_000])
def test_a_config_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json: not a config \(") as raised:
        sources.open_source(tmp_path)
    assert len(str(raised.value).splitlines()) == 1
    assert len(str(raised.value)) < 250 + len(str(tmp_path))


def test_the_published_config_of_siglip_leaves_out_its_class_defaults():
    values = dict(
        model_type="siglip",
        vision_config=dict(
            hidden_size=1152, image_size=384, intermediate_size=4304, num_attention_heads=16,
            num_hidden_layers=27, patch_size=14, model_type="siglip_vision_model",
        ),
    )  # fmt: skip
    from vvlm_jax.models.variants import VISION

    model, parts = hf_config.to_model_config(values, "x")
    whole = dataclasses.replace(VISION["so400m/14-384"], feature_layer=-1, head="map")
    assert (model.vision, parts) == (whole, ("vision",))


def test_a_config_goes_out_and_in(saved):
    for kind in ("llama", "siglip_vision", "onevision", "qwen2"):
        source = sources.open_source(saved(kind)[1])
        out = hf_config.from_model_config(
            source.model, source.parts, "float32", kind == "siglip_vision", {"video": 3}
        )  # fmt: skip
        again, parts = hf_config.to_model_config(out, "again")
        assert (again, parts) == (source.model, source.parts)
