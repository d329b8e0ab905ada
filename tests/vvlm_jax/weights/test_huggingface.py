"""Directories that transformers wrote, through our modules and back, against transformers."""

import dataclasses
import filecmp
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from vvlm_jax.models.llama import Llama
from vvlm_jax.models.sovit import SoViT
from vvlm_jax.models.vlm import VLM
from vvlm_jax.weights import export, sources
from vvlm_jax.weights.mapping import WeightsError

pytestmark = pytest.mark.torch


def read(folder, **options):
    """Return (source, parameters as a tree)."""
    source = sources.open_source(folder, **options)
    return source, unflatten_dict(sources.load(source, sources.like(source)), sep="/")


def flat(params):
    paths = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in paths}


def pixels(num=2, size=18):
    return np.random.default_rng(0).uniform(-1, 1, (num, size, size, 3)).astype(np.float32)


def as_torch(x):
    import torch

    return torch.from_numpy(np.array(x))


# --- towers ---


@pytest.mark.parametrize(("kind", "layer"), [("siglip", -1), ("siglip", -3), ("siglip_vision", -2)])
def test_a_tower_gives_transformers_hidden_states(saved, kind, layer, assert_close):
    model, folder = saved(kind)
    tower = getattr(model, "vision_model", model)
    source, params = read(folder)
    assert len(source.left_out) == (24 if kind == "siglip" else 0)
    config = dataclasses.replace(source.model.vision, feature_layer=layer, head="none")
    module = SoViT(config, jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), pixels())["params"]
    part = sources.load_part(folder, "vision", like)
    assert jax.tree.map(jnp.shape, part) == jax.tree.map(jnp.shape, like)
    theirs = tower(as_torch(pixels().transpose(0, 3, 1, 2)), output_hidden_states=True)
    ours = module.apply({"params": part}, pixels())
    assert_close(ours, theirs.hidden_states[layer])
    # The blocks that this tower does not run are in the whole one.
    whole = params["vision"]["Transformer"]["encoderblock"]["LayerNorm_0"]["scale"]
    part = part["Transformer"]["encoderblock"]["LayerNorm_0"]["scale"]
    np.testing.assert_array_equal(part, whole[: 4 + layer])


@pytest.mark.parametrize("kind", ["siglip", "siglip_vision"])
def test_the_whole_tower_gives_transformers_pooled_output(saved, kind, assert_close):
    model, folder = saved(kind)
    source, params = read(folder)
    module = SoViT(source.model.vision, jnp.float32)
    theirs = getattr(model, "vision_model", model)(as_torch(pixels().transpose(0, 3, 1, 2)))
    ours = module.apply({"params": params["vision"]}, pixels())
    assert_close(ours[:, 0], theirs.pooler_output)


def test_a_tower_by_itself_gives_siglips_hidden_states(saved, tmp_path, assert_close):
    """SiglipVisionModel normalises its last hidden state, a VLM's tower does not."""
    import torch
    from transformers import SiglipVisionModel

    _, folder = saved("onevision", vision_feature_layer=-2)
    source, params = read(folder)
    tower = {k: x for k, x in flat(params).items() if k.startswith("vision/")}
    written = export.write_huggingface(tmp_path, tower, source.model)
    assert [name.rpartition(".")[0] for name in written.made_up] == [
        "vision_model.post_layernorm"
    ] * 2
    model, report = SiglipVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = model(as_torch(pixels().transpose(0, 3, 1, 2)), output_hidden_states=True)
    module = SoViT(source.model.vision, jnp.float32)
    ours = module.apply({"params": params["vision"]}, pixels())
    assert_close(ours, theirs.hidden_states[-1])
    normalised = torch.nn.functional.layer_norm(theirs.hidden_states[-1], (32,), eps=1e-6)
    assert_close(normalised.detach(), theirs.last_hidden_state)


def logits_of(model, config, params, tokens):
    def logits(llm, tokens_BL):
        return llm.logits(llm(llm.embed(tokens_BL))[0])

    ours = Llama(config, jnp.float32).apply({"params": params}, tokens, method=logits)
    return ours, model(as_torch(tokens).long()).logits


ROPE = {
    "plain": dict(rope_type="default", rope_theta=3e4),
    # A short original length, so that within 40 tokens all branches of the rule matter.
    "llama3": dict(
        rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64,
    ),
}  # fmt: skip
TOKENS = np.random.default_rng(1).integers(0, 50, (2, 40), dtype=np.int32)


@pytest.mark.parametrize(
    ("tied", "rope", "spelling"),
    [
        (True, "plain", "v5"), (False, "llama3", "v4"), (False, "llama3", "older v4"),
        *(pytest.param(*case, marks=pytest.mark.slow(reason="compiles a model again")) for case in
          ((False, "llama3", "v5"), (False, "plain", "v4"), (True, "llama3", "v4"),
           (True, "plain", "older v4"))),
    ],
)  # fmt: skip
def test_llama_gives_transformers_logits(copied, edit, tied, rope, spelling, assert_close):
    model, folder = copied("llama", tie_word_embeddings=tied, rope_parameters=ROPE[rope])
    if spelling != "v5":
        parameters = dict(ROPE[rope])
        theta = parameters.pop("rope_theta")
        kind = "type" if spelling == "older v4" else "rope_type"
        parameters[kind] = parameters.pop("rope_type")
        scaling = parameters if rope == "llama3" else None
        edit(folder, rope_parameters=None, dtype=None, rope_theta=theta, rope_scaling=scaling,
             torch_dtype="float32")  # fmt: skip
    source, params = read(folder)
    assert source.model.dtype == "float32"
    assert_close(*logits_of(model, source.model.llm, params["llm"], TOKENS))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_qwen2_gives_transformers_logits(saved, tied, assert_close):
    model, folder = saved("qwen2", tie_word_embeddings=tied)
    source, params = read(folder)
    assert source.model.llm.qkv_bias
    assert_close(*logits_of(model, source.model.llm, params["llm"], TOKENS))


@pytest.mark.parametrize("spelling", ["v5", "v4"])
def test_a_window_that_no_layer_has_is_none(copied, edit, spelling, assert_close):
    """Qwen2 is published with a window whose first layer lies beyond the last one."""
    options = dict(use_sliding_window=True, sliding_window=4, max_window_layers=2)
    model, folder = copied("qwen2", **options)
    if spelling == "v4":
        edit(folder, layer_types=None, **options)
    source, params = read(folder)
    assert_close(*logits_of(model, source.model.llm, params["llm"], TOKENS))


def test_a_tied_head_that_is_stored_must_be_the_embedding(copied, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, folder = copied("llama", tie_word_embeddings=True)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, file, {"format": "pt"})
    before = file.read_bytes()
    source, params = read(folder)
    came = export.Came(source.config, source.prefixes, ["lm_head.weight"])
    export.write_huggingface(tmp_path, flat(params), source.model, came=came)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    tensors["lm_head.weight"][3, 4] += 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        read(folder)


# --- there and back ---

BACK = [
    ("siglip_vision", "float32", {}),
    ("siglip_vision", "bfloat16", {"vision_use_head": False}),
    ("llama", "bfloat16", {"tie_word_embeddings": True}),
    ("llama", "float16", {"tie_word_embeddings": False}),
    ("qwen2", "float32", {"tie_word_embeddings": False}),
    ("onevision", "float32", {}),
]


@pytest.mark.parametrize(("kind", "dtype", "options"), BACK)
def test_what_came_from_transformers_goes_back_byte_for_byte(saved, tmp_path, kind, dtype, options):
    _, folder = saved(kind, dtype, **options)
    source, params = read(folder)
    came = export.Came(source.config, source.prefixes, [])
    written = export.write_huggingface(tmp_path, flat(params), source.model, came=came)
    if not written.made_up:  # the final norm that LlavaOnevision stores and does not read
        ours, theirs = (f / "model.safetensors" for f in (tmp_path, folder))
        assert ours.read_bytes() == theirs.read_bytes()
    configs = [json.loads((f / "config.json").read_text()) for f in (tmp_path, folder)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("kind", ["siglip", "llama", "onevision"])
def test_over_its_source_every_file_is_the_same(saved, tmp_path, kind):
    _, folder = saved(kind, "bfloat16", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    source, params = read(folder)
    written = export.write_huggingface(tmp_path, flat(params), source.model, source=folder)
    assert sorted(written.copied) == source.left_out
    names = sorted(file.name for file in folder.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert filecmp.cmpfiles(folder, tmp_path, names, shallow=False) == (names, [], [])


def test_a_changed_tower_goes_into_its_source_and_the_rest_stays(saved, tmp_path):
    from safetensors.numpy import load_file

    _, folder = saved("siglip")
    source, params = read(folder)
    params = flat(params)
    block = "vision/Transformer/encoderblock/MlpBlock_0/Dense_0/bias"
    ours = {k: v[:2] if "encoderblock" in k else v for k, v in params.items()
            if "MAPHead" not in k and "encoder_norm" not in k}  # fmt: skip
    ours[block] = ours[block] + 1
    config = dataclasses.replace(source.model.vision, feature_layer=-2, head="none")
    model = dataclasses.replace(source.model, vision=config)
    written = export.write_huggingface(tmp_path, ours, model, source=folder)
    assert "vision_model.encoder.layers.2.mlp.fc1.bias" in written.copied
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {f"vision_model.encoder.layers.{i}.mlp.fc1.bias" for i in range(2)}


def test_every_bit_pattern_survives(copied, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    _, folder = copied("llama", dtype="bfloat16", vocab_size=2048, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    tensors["model.embed_tokens.weight"].view(-1)[: 2**16] = patterns
    layer = tensors["model.layers.1.mlp.up_proj.weight"]  # transposed on the way
    layer.view(-1)[:] = patterns[-layer.numel() - 32 : -32]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    source, params = read(folder)
    export.write_huggingface(tmp_path, flat(params), source.model)
    before, after = (
        (f / "model.safetensors").read_bytes()[-2 * 2**16 :] for f in (folder, tmp_path)
    )
    assert before == after


def test_without_a_source_large_models_are_sharded(saved, tmp_path, monkeypatch, assert_close):
    from transformers import LlamaForCausalLM

    model, folder = saved("llama", tie_word_embeddings=False)
    source, params = read(folder)
    monkeypatch.setattr(export, "SHARD_BYTES", 20_000)
    export.write_huggingface(tmp_path, flat(params), source.model)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    again, report = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = as_torch(TOKENS).long()
    assert_close(again(tokens).logits.detach(), model(tokens).logits)
    assert read(tmp_path)[0].model.llm == source.model.llm


# --- the whole VLM ---

T = 3
VIDEO, NEWLINE = 49, 48


def compare_vlms(model, params, theirs, assert_close):
    rng = np.random.default_rng(2)
    size, per_frame = model.vision.image_size, model.tokens_per_frame
    frames = rng.integers(0, 256, (T, size, size, 3), dtype=np.uint8)
    block = slice(4, 4 + T * per_frame + 1)  # theirs takes the newline for a token of the video
    tokens = rng.integers(0, 48, (1, 45), dtype=np.int32)
    tokens[0, block] = VIDEO
    pixels = (frames.astype(np.float32) / 255 - 0.5) / 0.5
    videos = as_torch(pixels.transpose(0, 3, 1, 2)[None])
    reference = theirs(input_ids=as_torch(tokens).long(), pixel_values_videos=videos).logits
    tokens[0, block.stop - 1] = NEWLINE
    vlm = VLM(
        model.vision, model.llm, model.tokens_per_frame, VIDEO, jnp.float32, newline_id=NEWLINE
    )
    everywhere = np.arange(45)[None]
    ours = vlm.apply({"params": params}, tokens, frames[None], everywhere, method="target_logits")
    assert_close(ours, reference)


@pytest.mark.parametrize(("layer", "size", "side"), [(-2, 18, 2), (2, 18, 2), (-1, 22, 3)])
def test_llava_onevision_gives_transformers_logits(saved, layer, size, side, assert_close):
    """Grids have 4 and 5 patches a side, tokens half of that, rounded up, as 14 of 27."""
    theirs, folder = saved("onevision", vision_feature_layer=layer, image_size=size)
    source, params = read(folder)
    assert (source.model.newline, source.model.tokens_per_frame) == ("per-video", side**2)
    compare_vlms(source.model, params, theirs, assert_close)


def test_ours_gives_the_same_logits_as_llava_onevision(saved, tmp_path, assert_close):
    from transformers import LlavaOnevisionForConditionalGeneration

    _, folder = saved("onevision", vision_feature_layer=-2)
    source, params = read(folder)  # a tower of which one block is not run, and no config kept
    written = export.write_huggingface(
        tmp_path, flat(params), source.model, tokens={"video": VIDEO}
    )
    assert len(written.made_up) == 2
    again, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    compare_vlms(source.model, params, again.eval(), assert_close)


def test_older_names_of_the_whole_vlm(copied):
    """They are `vision_tower.vision_model.` of v4, and those of its classes in memory."""
    from safetensors.numpy import load_file, save_file

    _, folder = copied("onevision")
    source, params = read(folder)
    tensors = load_file(folder / "model.safetensors")
    for old, new in (
        ("vision_tower.", "vision_tower.vision_model."),
        ("vision_tower.", "model.vision_tower."),
        ("language_model.model.", "model.language_model."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("image_newline", "model.image_newline"),
    ):
        renamed = {k.replace(old, new, 1) if k.startswith(old) else k: v
                   for k, v in tensors.items()}  # fmt: skip
        assert renamed != tensors
        save_file(renamed, folder / "model.safetensors")
        again = flat(read(folder)[1])
        assert all((x == again[k]).all() for k, x in flat(params).items())


def test_qwen2_inside_llava_onevision(saved, assert_close):
    theirs, folder = saved("onevision-qwen2")
    source, params = read(folder)
    assert source.model.llm.qkv_bias
    assert source.model.llm.tie_embeddings
    compare_vlms(source.model, params, theirs, assert_close)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(newline="none"), "model.newline = 'none': .* one newline after each video"),
        (dict(tokens_per_frame=9), r"model.tokens_per_frame = 9: .* only 4; --part"),
        (dict(resampler="area"), "model.resampler = 'area': .* pools bilinearly"),
    ],
)
def test_what_llava_onevision_cannot_express_is_refused(saved, tmp_path, change, message):
    source, params = read(saved("onevision")[1])
    model = dataclasses.replace(source.model, **change)
    for options in ({}, {"source": saved("onevision")[1]}):
        with pytest.raises(WeightsError, match=message):
            export.write_huggingface(tmp_path, flat(params), model, tokens={"video": 1}, **options)
