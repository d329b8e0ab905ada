"""Named sizes of vision encoders and language models: published ones, and small ones of the study.

The study's sizes have the same architectures as the published ones.
"""

from vvlm_jax.config import LlamaConfig, RopeScaling, VisionConfig

_SO400M = dict(width=1152, depth=27, mlp_dim=4304, num_heads=16, patch_size=14)
_QWEN25 = dict(qkv_bias=True, rope_theta=1e6, norm_eps=1e-6)
_GRADED_LLAMA = dict(vocab=192, depth=2, num_kv_heads=1, tie_embeddings=True, rope_theta=1e4)
_STUDY_LLAMA = dict(vocab=192, head_dim=16, tie_embeddings=True, rope_theta=1e4)

VISION = {
    "so400m/14-224": VisionConfig(image_size=224, **_SO400M),
    "so400m/14-384": VisionConfig(image_size=384, **_SO400M),
    "study/12": VisionConfig(
        width=48, depth=3, mlp_dim=96, num_heads=3, patch_size=12, image_size=48
    ),
    "graded/8": VisionConfig(
        width=32, depth=3, mlp_dim=64, num_heads=2, patch_size=8, image_size=32
    ),
}
"""Vision encoders by name; the suffix is the patch size and, if there are several, image size."""

LLAMA = {
    "llama3.2-1b": LlamaConfig(
        vocab=128256,
        width=2048,
        depth=16,
        mlp_dim=8192,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        tie_embeddings=True,
        rope_scaling=RopeScaling(32.0),
    ),
    "llama3.2-3b": LlamaConfig(
        vocab=128256,
        width=3072,
        depth=28,
        mlp_dim=8192,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        tie_embeddings=True,
        rope_scaling=RopeScaling(32.0),
    ),
    "llama3.1-8b": LlamaConfig(
        vocab=128256,
        width=4096,
        depth=32,
        mlp_dim=14336,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        tie_embeddings=False,
        rope_scaling=RopeScaling(8.0),
    ),
    "qwen2.5-0.5b": LlamaConfig(
        vocab=151936,
        width=896,
        depth=24,
        mlp_dim=4864,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        tie_embeddings=True,
        **_QWEN25,
    ),
    "qwen2.5-1.5b": LlamaConfig(
        vocab=151936,
        width=1536,
        depth=28,
        mlp_dim=8960,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        tie_embeddings=True,
        **_QWEN25,
    ),
    "qwen2.5-3b": LlamaConfig(
        vocab=151936,
        width=2048,
        depth=36,
        mlp_dim=11008,
        num_heads=16,
        num_kv_heads=2,
        head_dim=128,
        tie_embeddings=True,
        **_QWEN25,
    ),
    "qwen2.5-7b": LlamaConfig(
        vocab=152064,
        width=3584,
        depth=28,
        mlp_dim=18944,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        tie_embeddings=False,
        **_QWEN25,
    ),
    "study-s": LlamaConfig(
        width=32, depth=2, mlp_dim=96, num_heads=2, num_kv_heads=1, **_STUDY_LLAMA
    ),
    "study-m": LlamaConfig(
        width=48, depth=2, mlp_dim=144, num_heads=3, num_kv_heads=1, **_STUDY_LLAMA
    ),
    "study-l": LlamaConfig(
        width=64, depth=3, mlp_dim=192, num_heads=4, num_kv_heads=2, **_STUDY_LLAMA
    ),
    "graded-s": LlamaConfig(width=24, mlp_dim=72, num_heads=2, head_dim=12, **_GRADED_LLAMA),
    "graded-m": LlamaConfig(width=40, mlp_dim=120, num_heads=2, head_dim=20, **_GRADED_LLAMA),
    "graded-l": LlamaConfig(
        width=64, mlp_dim=192, num_heads=4, head_dim=16, **_GRADED_LLAMA | dict(num_kv_heads=2)
    ),
}
"""Language models by name: Llama 3.x, Qwen2.5, and the small ones of the study."""
