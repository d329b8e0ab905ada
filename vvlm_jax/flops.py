"""Exact parameter and FLOP counts of the towers, from their configs alone. Imports no jax."""

from vvlm_jax.config import LlamaConfig, ModelConfig, VisionConfig


def llm_params(config: LlamaConfig) -> int:
    """Return x_N: the parameters without the input embedding; a tied head is the embedding."""
    c = config
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    biases = c.head_dim * (c.num_heads + 2 * c.num_kv_heads) if c.qkv_bias else 0
    block = attention + biases + 3 * c.width * c.mlp_dim + 2 * c.width
    head = 0 if c.tie_embeddings else c.vocab * c.width
    return c.depth * block + c.width + head


def vision_params(config: VisionConfig) -> int:
    """Return x_M: the parameters of the encoder as it is run (blocks up to the feature layer; final
    norm and pooling head only where the config has the head).
    """
    c = config
    embedding = 3 * c.patch_size**2 * c.width + c.width + c.num_patches * c.width
    attention = 4 * (c.width**2 + c.width)
    mlp = 2 * c.width * c.mlp_dim + c.mlp_dim + c.width
    # The head: final norm, learnt query, attention, norm, MLP.
    head = 2 * c.width + c.width + attention + 2 * c.width + mlp if c.head == "map" else 0
    return embedding + c.blocks_run * (attention + mlp + 4 * c.width) + head


def vision_flops(config: VisionConfig, num_frames: int) -> int:
    """Return the FLOPs of encoding `num_frames` frames: two a multiply-add, scores included."""
    c = config
    matmuls = 4 * c.width**2 + 2 * c.width * c.mlp_dim + 2 * c.num_patches * c.width
    patches = 3 * c.patch_size**2 * c.width
    head = 0
    if c.head == "map":  # keys, values and scores of every patch; one query
        one = 2 * c.width**2 + 2 * c.width * c.mlp_dim
        head = c.num_patches * (2 * c.width**2 + 2 * c.width) + one
    return 2 * num_frames * (c.num_patches * (patches + c.blocks_run * matmuls) + head)


def llm_flops(config: LlamaConfig, length: int, logits: int = 1) -> int:
    """Return the FLOPs of a causal forward pass over `length` tokens with `logits` head positions.

    Causal attention is counted half: position i attends to i + 1 positions.
    """
    c = config
    attention = c.width * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    matmuls = length * (attention + 3 * c.width * c.mlp_dim)
    scores = length * (length + 1) * c.num_heads * c.head_dim
    return 2 * (c.depth * (matmuls + scores) + logits * c.width * c.vocab)


def projector_flops(vision: VisionConfig, llm: LlamaConfig, tokens: int) -> int:
    """Return the FLOPs of projecting `tokens` features into the language model."""
    return 2 * tokens * llm.width * (vision.width + llm.width)


def train_flops(
    config: ModelConfig,
    vision: VisionConfig,
    llm: LlamaConfig,
    lengths,
    answers: int,
    frames: int,
    trained,
) -> dict[str, int]:
    """Return the FLOPs of a training step by tower: forward and backward, without recomputation.

    A product costs once more for the gradient of its input, and once more for that of its weights
    where they are trained. No gradient is computed below the lowest trained tower.

    Args:
      lengths: of each row, the positions that are needed: up to its last answer.
      answers: logits of all rows together.
      frames: of all rows together.
      trained: towers with a trainable parameter, among `vision`, `projector`, `llm`.

    Returns:
      {"vision", "projector", "llm"}; QueCC is not counted.
    """

    def times(tower, below):
        return 1 + bool(trained & below) + (tower in trained)

    trained = set(trained)
    forward = sum(llm_flops(llm, int(n), logits=0) for n in lengths)
    scores = sum(
        2 * llm.depth * n * (n + 1) * llm.num_heads * llm.head_dim for n in map(int, lengths)
    )
    head = 2 * answers * llm.width * llm.vocab
    factor = times("llm", {"vision", "projector", "llm"})
    # Scores have no weights: both of their gradients are those of inputs.
    llm_total = factor * (forward - scores + head) + (3 if factor > 1 else 1) * scores
    return {
        "vision": times("vision", {"vision"}) * vision_flops(vision, frames),
        "projector": times("projector", {"vision", "projector"})
        * projector_flops(vision, llm, frames * vision.out_grid**2),
        "llm": llm_total,
    }
