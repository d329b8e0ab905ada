"""Exact parameter counts and forward FLOPs of the towers, from their configs alone. Imports no
jax.
"""

from vvlm_jax.config import LlamaConfig, VisionConfig


def llm_params(config: LlamaConfig) -> int:
    """x_N: parameters without the input embedding (a tied head counts as the embedding it is)."""
    c = config
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    biases = c.head_dim * (c.num_heads + 2 * c.num_kv_heads) if c.qkv_bias else 0
    block = attention + biases + 3 * c.width * c.mlp_dim + 2 * c.width
    head = 0 if c.tie_embeddings else c.vocab * c.width
    return c.depth * block + c.width + head


def vision_params(config: VisionConfig) -> int:
    """x_M: parameters of the encoder as it is run (blocks up to the feature layer; final norm and
    pooling head only where the config has the head).
    """
    c = config
    embedding = 3 * c.patch_size**2 * c.width + c.width + c.num_patches * c.width
    attention = 4 * (c.width**2 + c.width)
    mlp = 2 * c.width * c.mlp_dim + c.mlp_dim + c.width
    # The head: final norm, learnt query, attention, norm, MLP.
    head = 2 * c.width + c.width + attention + 2 * c.width + mlp if c.head == "map" else 0
    return embedding + c.blocks_run * (attention + mlp + 4 * c.width) + head


def vision_flops(config: VisionConfig, num_frames: int) -> int:
    """FLOPs of encoding `num_frames` frames: two a multiply-add, attention scores included."""
    c = config
    matmuls = 4 * c.width**2 + 2 * c.width * c.mlp_dim + 2 * c.num_patches * c.width
    patches = 3 * c.patch_size**2 * c.width
    head = 0
    if c.head == "map":  # keys, values and scores of every patch; one query
        one = 2 * c.width**2 + 2 * c.width * c.mlp_dim
        head = c.num_patches * (2 * c.width**2 + 2 * c.width) + one
    return 2 * num_frames * (c.num_patches * (patches + c.blocks_run * matmuls) + head)


def llm_flops(config: LlamaConfig, length: int, logits: int = 1) -> int:
    """FLOPs of a causal forward pass over `length` tokens with `logits` positions through the head.

    Causal attention is counted half: position i attends to i + 1 positions.
    """
    c = config
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    matmuls = length * (attention + 3 * c.width * c.mlp_dim)
    scores = length * (length + 1) * c.num_heads * c.head_dim
    return 2 * (c.depth * (matmuls + scores) + logits * c.width * c.vocab)
