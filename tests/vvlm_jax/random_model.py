"""A model of random parameters, small enough for a test to compile."""

import jax

from vvlm_jax.config import DataConfig, LlamaConfig, ModelConfig, TrainConfig, VisionConfig
from vvlm_jax.data import tokenizer
from vvlm_jax.models import vlm
from vvlm_jax.override import to_json


def random_model(folder, tok, max_position=512):
    """Write the config of a model with a tokenizer in the folder; return its parameters."""
    config = TrainConfig(
        model=ModelConfig(
            VisionConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=4, image_size=16),
            LlamaConfig(
                vocab=tok.vocab, width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2,
                head_dim=8, tie_embeddings=False, rope_theta=100.0, max_position=max_position,
            ),
            num_frames=3, tokens_per_frame=4, dtype="float32", remat="none",
        ),
        data=DataConfig(tokenizer=str(folder)),
    )  # fmt: skip
    (folder / "config.json").write_text(to_json(config))
    model = vlm.build(config.model, tok.special[tokenizer.VIDEO], tok.vocab)
    params = jax.jit(vlm.init, static_argnums=0)(model, jax.random.key(1))
    return jax.tree.map(lambda x: 3 * x, params)
