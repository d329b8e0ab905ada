"""Stage 2 of Table 4 at full size: finetune everything on video conversations.

vvlm train --config finetune --set model.llm=llama3.2-3b model.num_frames=16
"""

from vvlm_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def config() -> TrainConfig:
    """Return the star centre's shape (32 frames × 196 tokens) on Llama-3.2-1B."""
    return TrainConfig(
        model=ModelConfig(
            vision="so400m/14-384",
            llm="llama3.2-1b",
            num_frames=32,
            tokens_per_frame=196,
            remat="attention",
            frame_chunk=8,
        ),
        data=DataConfig(
            annotations="data/train.json",
            media_root="data/videos",
            tokenizer="data/tokenizer",
            text_buckets=(128, 256),
            system="You are a helpful language and vision assistant. You are able to understand "
            "the visual content that the user provides, and assist the user with a variety of "
            "tasks using natural language.",
        ),
        optim=OptimConfig(
            learning_rates=(("vision/.*", 2e-6), ("(projector|quecc|llm)/.*|newline", 1e-5))
        ),
        out_dir="runs/finetune",
        batch_size=256,
        microbatches=8,
        loss_chunk=128,
    )
