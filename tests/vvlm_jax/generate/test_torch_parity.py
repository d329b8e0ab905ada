"""Greedy tokens of ragged prompts, token for token as transformers' Llama and Qwen2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vvlm_jax.models.reference import llama, varied
from vvlm_jax.config import LlamaConfig, RopeScaling, VisionConfig
from vvlm_jax.generate.generate import Prompts, programs, write
from vvlm_jax.generate.placement import laid_apart
from vvlm_jax.models import vlm
from vvlm_jax.models.vlm import VLM

pytestmark = pytest.mark.torch

VISION = VisionConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=4, image_size=8)
LENGTHS = np.array([23, 7, 16, 1], np.int32)
NEW = 32


@pytest.mark.parametrize(
    ("tied", "scaling", "qwen"),
    [
        pytest.param(True, None, False, marks=pytest.mark.slow(reason="compiles a third model")),
        (False, RopeScaling(8.0, original_max_position=64), False),
        pytest.param(False, None, True, marks=pytest.mark.slow(reason="compiles a third model")),
    ],
    ids=["tied, plain", "untied, llama3", "qwen2"],
)
def test_greedy_tokens_are_transformers(tied, scaling, qwen):
    import torch

    config = LlamaConfig(
        vocab=199, width=48, depth=2, mlp_dim=80, num_heads=6, num_kv_heads=2, head_dim=8,
        tie_embeddings=tied, rope_theta=1e4, rope_scaling=scaling, qkv_bias=qwen,
    )  # fmt: skip
    model = VLM(VISION, config, 1, 198, jnp.float32)
    params = varied(
        jax.tree.map(lambda x: 3 * x, jax.jit(vlm.init, static_argnums=0)(model, jax.random.key(4)))
    )
    tokens = np.random.default_rng(0).integers(1, 190, (4, LENGTHS.max()), dtype=np.int32)
    prompts = Prompts(tokens, LENGTHS)
    never = config.vocab
    reference = llama(params["llm"], config)
    reference.generation_config.eos_token_id = None
    run = programs(model, (never,))
    [(ours, ended)] = write(run, laid_apart(params), prompts, jnp.zeros((4, 0, 1)), NEW)
    assert not ended.any()
    for row, tokens_L, length in zip(ours, tokens, LENGTHS, strict=True):
        prompt = torch.from_numpy(tokens_L[:length].astype(np.int64))[None]
        with torch.inference_mode():
            theirs = reference.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        assert row.tolist() == theirs[0, length:].tolist()
        assert len(set(row.tolist())) > 8
