import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from vvlm_jax import flops
from vvlm_jax.config import LlamaConfig, ModelConfig, VisionConfig
from vvlm_jax.models import vlm
from vvlm_jax.models.llama import Llama
from vvlm_jax.models.sovit import SoViT
from vvlm_jax.models.variants import LLAMA, VISION

# By llm: (total, input embedding, x_N, projector behind the So400m encoder), from Hugging Face.
PUBLISHED = {
    "llama3.2-1b": (1_235_814_400, 262_668_288, 973_146_112, 6_557_696),
    "llama3.2-3b": (3_212_749_824, 394_002_432, 2_818_747_392, 12_982_272),
    "llama3.1-8b": (8_030_261_248, 525_336_576, 7_504_924_672, 21_504_000),
}
SO400M_384 = 397_745_440
SO400M_384_MAP = 428_225_600
# Qwen2.5's totals, from transformers.
QWEN = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
}


@functools.cache
def sizes(vision, llm):
    """Return {path: number of parameters} of a model, none of them allocated."""
    shapes = vlm.shapes(vlm.build(ModelConfig(vision=vision, llm=llm), video_id=0))
    return {path: x.size for path, x in flatten_dict(shapes, sep="/").items()}


def total(sizes, part):
    return sum(size for path, size in sizes.items() if path.startswith(part))


@pytest.mark.parametrize("llm", PUBLISHED)
def test_published_parameter_counts(llm):
    everything, embedding, lm_params, projector = PUBLISHED[llm]
    found = sizes("so400m/14-384", llm)
    assert total(found, "llm/") == everything
    assert found["llm/embed/embedding"] == embedding
    assert total(found, "projector/") == projector
    assert total(found, "vision/") == SO400M_384
    assert flops.llm_params(LLAMA[llm]) == lm_params == everything - embedding
    assert flops.vision_params(VISION["so400m/14-384"]) == SO400M_384


@pytest.mark.parametrize("llm", QWEN)
def test_published_parameter_counts_of_qwen(llm):
    assert total(sizes("study/12", llm), "llm/") == QWEN[llm]


@pytest.mark.torch
@pytest.mark.parametrize("llm", [*PUBLISHED, *QWEN])
def test_parameter_counts_are_those_of_transformers(llm):
    import torch
    import transformers

    c = LLAMA[llm]
    family = "Qwen2" if c.qkv_bias else "Llama"
    config = getattr(transformers, f"{family}Config")(
        vocab_size=c.vocab, hidden_size=c.width, intermediate_size=c.mlp_dim,
        num_hidden_layers=c.depth, num_attention_heads=c.num_heads, head_dim=c.head_dim,
        num_key_value_heads=c.num_kv_heads, tie_word_embeddings=c.tie_embeddings,
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    assert total(sizes("study/12", llm), "llm/") == model.num_parameters()
    # Without input embeddings, but a head of its own counts.
    head = 0 if c.tie_embeddings else c.vocab * c.width
    base = model.model.num_parameters() - c.vocab * c.width
    assert flops.llm_params(c) == base + head


@pytest.mark.parametrize("llm", LLAMA)
def test_llm_params_is_what_the_model_has(llm):
    found = sizes("study/12", llm)
    built = total(found, "llm/") - found["llm/embed/embedding"]
    assert flops.llm_params(LLAMA[llm]) == built


@pytest.mark.parametrize("vision", VISION)
def test_vision_params_is_what_the_model_has(vision):
    assert flops.vision_params(VISION[vision]) == total(sizes(vision, "study-s"), "vision/")


def whole(vision, **changes):
    """Return the encoder with its pooling head."""
    return dataclasses.replace(VISION[vision], feature_layer=-1, head="map", **changes)


def test_published_parameter_count_with_the_pooling_head():
    config = whole("so400m/14-384")
    assert total(sizes(config, "study-s"), "vision/") == SO400M_384_MAP
    assert flops.vision_params(config) == SO400M_384_MAP
    bare = dataclasses.replace(config, head="none")  # the reference counts the final norm with it
    assert flops.vision_params(bare) + 2 * 1152 == 412_987_248


# FLOPs, against XLA's count of the program as it is written, before any optimisation. It counts
# the body of a loop once, so depth is 1 here, and it counts all of attention where we count the
# causal half. In float32, as it counts casts too. What remains are norms, activations and softmax:
# at these widths around 1 %.


def xla_flops(function, *shapes):
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def abstract(module, *args, method=None):
    return jax.eval_shape(functools.partial(module.init, method=method), jax.random.key(0), *args)


@pytest.mark.parametrize("vision", ["so400m/14-224", "so400m/14-384"])
def test_vision_flops_are_what_xla_counts(vision):
    config = dataclasses.replace(VISION[vision], depth=2)
    assert config.blocks_run == 1
    frames = jax.ShapeDtypeStruct((3, config.image_size, config.image_size, 3), jnp.float32)
    model = SoViT(config, jnp.float32)
    counted = xla_flops(model.apply, abstract(model, frames), frames)
    assert 1 < counted / flops.vision_flops(config, 3) < 1.01


def test_vision_flops_with_the_pooling_head_are_what_xla_counts():
    config = whole("so400m/14-224", depth=1)
    frames = jax.ShapeDtypeStruct((3, 224, 224, 3), jnp.float32)
    model = SoViT(config, jnp.float32)
    counted = xla_flops(model.apply, abstract(model, frames), frames)
    assert 1 < counted / flops.vision_flops(config, 3) < 1.01


@pytest.mark.parametrize(
    ("llm", "length"), [("llama3.2-1b", 4096), ("llama3.1-8b", 64), ("qwen2.5-0.5b", 64)]
)
@pytest.mark.parametrize("logits", [1, 64])
def test_llm_flops_are_what_xla_counts(llm, length, logits):
    config = dataclasses.replace(LLAMA[llm], depth=1)
    model = Llama(config, jnp.float32)

    def forward(llm, x_BLD):
        return llm.logits(llm(x_BLD)[0][:, :logits])

    x_BLD = jax.ShapeDtypeStruct((1, length, config.width), jnp.float32)
    run = functools.partial(model.apply, method=forward)
    counted = xla_flops(run, abstract(model, x_BLD, method=forward), x_BLD)
    width_of_heads = config.num_heads * config.head_dim
    skipped = 2 * length * (length - 1) * width_of_heads  # position i attends to no j > i
    assert 1 < counted / (flops.llm_flops(config, length, logits) + skipped) < 1.02


SMALL = dict(width=256, depth=1, num_heads=4)
SMALL_VISION = VisionConfig(mlp_dim=1024, patch_size=14, image_size=112, feature_layer=-1, **SMALL)
SMALL_LLM = LlamaConfig(
    vocab=1000, mlp_dim=1024, num_kv_heads=2, head_dim=64, tie_embeddings=True, **SMALL
)


def test_flops_grow_with_depth_frames_and_logits():
    shallow, deep = (dataclasses.replace(LLAMA["llama3.1-8b"], depth=d) for d in (1, 4))
    head = flops.llm_flops(shallow, 10, 2) - flops.llm_flops(shallow, 10, 1)
    assert head == 2 * shallow.width * shallow.vocab
    block = flops.llm_flops(shallow, 10, 0)
    assert flops.llm_flops(deep, 10, 3) == 4 * block + 3 * head
    one, two = (dataclasses.replace(VISION["study/12"], depth=d) for d in (2, 3))
    stem = 2 * 16 * (3 * 12**2 * 48)
    assert flops.vision_flops(two, 1) - stem == 2 * (flops.vision_flops(one, 1) - stem)
    assert flops.vision_flops(two, 7) == 7 * flops.vision_flops(two, 1)


@pytest.mark.parametrize("trained", ["vision projector llm", "projector", "projector llm", "llm"])
def test_train_flops_are_what_xla_counts(trained):
    """They are those of loss and gradient of the trained towers. Left out are the gradient of the
    pixels (the model divides uint8s) and, as frozen towers keep none, what goes into their lowest
    product.
    """
    T, V, text, trained = 4, 16, 40, set(trained.split())
    config = ModelConfig(SMALL_VISION, SMALL_LLM, T, V, "float32", remat="none")
    model = vlm.build(config, video_id=0)
    length = T * V + text
    shapes = [((1, length), jnp.int32), ((1, T, 112, 112, 3), jnp.uint8), ((1, 3), jnp.int32)]
    params = vlm.shapes(model)
    ours, frozen = ({k: v for k, v in params.items() if (k in trained) == x} for x in (True, False))

    def loss(ours, frozen, *batch):
        return model.apply({"params": ours | frozen}, *batch, method="target_logits").sum()

    batch = [jax.ShapeDtypeStruct(*x) for x in shapes]
    counted = xla_flops(jax.grad(loss), ours, frozen, *batch)
    found = flops.train_flops(config, SMALL_VISION, SMALL_LLM, [length], 3, T, trained)
    skipped = 3 * 2 * length * (length - 1) * 256  # scores, and their two gradients
    assert 0.97 < counted / (sum(found.values()) + skipped) < 1.05
