"""What a batch costs: tokens, and FLOPs by tower."""

import numpy as np

from vvlm_jax import flops
from vvlm_jax.config import LlamaConfig, ModelConfig, VisionConfig
from vvlm_jax.types import Batch


def batch_cost(
    batch: Batch, model: ModelConfig, vision: VisionConfig, llm: LlamaConfig, trained
) -> dict[str, int]:
    """{"tokens", "vision", "projector", "llm"} of a training step on `batch`, by
    `flops.train_flops`.

    Of a row's positions those up to its last answer count; padding is nothing that was asked for.
    """
    is_answer_BM = np.asarray(batch.target_weight_BM) > 0
    lengths_B = np.where(is_answer_BM, np.asarray(batch.target_pos_BM) + 1, 0).max(axis=1)
    frames = batch.frames_BTHWC.shape[0] * batch.frames_BTHWC.shape[1]
    return {
        "tokens": int(lengths_B.sum()),
        **flops.train_flops(
            model, vision, llm, lengths_B, int(is_answer_BM.sum()), frames, trained
        ),
    }
