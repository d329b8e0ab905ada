"""64 greedy tokens of ragged prompts, token for token as transformers' Llama."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.config import LlamaConfig, RopeScaling, VisionConfig
from vvlm_jax.generate.generate import programs, write
from vvlm_jax.models import vlm
from vvlm_jax.models.vlm import VLM
from vvlm_jax.types import Prompts

pytestmark = pytest.mark.torch

VISION = VisionConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=4, image_size=8)
LENGTHS = np.array([23, 7, 16, 1], np.int32)
NEW = 64


def llama(params, config: LlamaConfig):
    """transformers' model with our parameters."""
    import torch
    import transformers

    rope = dict(rope_type="default", rope_theta=config.rope_theta)
    if (s := config.rope_scaling) is not None:
        rope |= dict(
            rope_type="llama3", factor=s.factor, low_freq_factor=s.low_freq_factor,
            high_freq_factor=s.high_freq_factor,
            original_max_position_embeddings=s.original_max_position,
        )  # fmt: skip
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.mlp_dim,
            num_hidden_layers=config.depth, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
            tie_word_embeddings=config.tie_embeddings, rms_norm_eps=config.norm_eps,
            max_position_embeddings=4096, rope_parameters=rope,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    )  # fmt: skip
    params, D = jax.device_get(params), config.width
    layers, attn = params["layers"], params["layers"]["attn"]
    arrays = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["norm"]["scale"],
    }
    if not config.tie_embeddings:
        arrays["lm_head.weight"] = params["lm_head"]["kernel"].T
    for i in range(config.depth):
        at = f"model.layers.{i}."
        arrays[f"{at}input_layernorm.weight"] = layers["attn_norm"]["scale"][i]
        arrays[f"{at}post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][i]
        for name in "qkv":
            arrays[f"{at}self_attn.{name}_proj.weight"] = attn[name]["kernel"][i].reshape(D, -1).T
        arrays[f"{at}self_attn.o_proj.weight"] = attn["o"]["kernel"][i].reshape(-1, D).T
        for name in ("gate", "up", "down"):
            arrays[f"{at}mlp.{name}_proj.weight"] = layers["mlp"][name]["kernel"][i].T
    state = {k: torch.from_numpy(np.array(x, np.float32)) for k, x in arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert unexpected == []
    assert missing in ([], ["lm_head.weight"] if config.tie_embeddings else [])
    return model.eval()


@pytest.mark.parametrize(
    ("tied", "scaling"),
    [(True, None), (False, RopeScaling(8.0, original_max_position=64))],
    ids=["tied, plain", "untied, llama3"],
)
def test_greedy_tokens_are_transformers(tied, scaling):
    import torch

    config = LlamaConfig(
        vocab=199, width=48, depth=3, mlp_dim=80, num_heads=6, num_kv_heads=2, head_dim=8,
        tie_embeddings=tied, rope_theta=1e4, rope_scaling=scaling,
    )  # fmt: skip
    model = VLM(VISION, config, 1, 198, jnp.float32)
    params = jax.tree.map(
        lambda x: 3 * x, jax.jit(vlm.init, static_argnums=0)(model, jax.random.key(4))
    )
    tokens = np.random.default_rng(0).integers(1, 190, (4, LENGTHS.max()), dtype=np.int32)
    prompts = Prompts(tokens, LENGTHS, np.arange(4))
    never = config.vocab
    [(ours, ended)] = write(programs(model, (never,)), params, prompts, jnp.zeros((4, 0, 1)), NEW)
    assert not ended.any()
    reference = llama(params["llm"], config)
    for row, tokens_L, length in zip(ours, tokens, LENGTHS, strict=True):
        prompt = torch.from_numpy(tokens_L[:length].astype(np.int64))[None]
        with torch.inference_mode():
            theirs = reference.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW,
                min_new_tokens=NEW, do_sample=False,
            )  # fmt: skip
        assert row.tolist() == theirs[0, length:].tolist()
        assert len(set(row.tolist())) > 8
