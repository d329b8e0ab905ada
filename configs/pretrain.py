"""Stage 1 of Table 4 at full size: the projector alone, on captioned images, 729 features.

vvlm train --config pretrain --set data.annotations=data/captions.json
"""

from vvlm_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def config() -> TrainConfig:
    """Return stage 1 on LCS-558k captions: batch 512, peak rate 1e-3."""
    return TrainConfig(
        model=ModelConfig(
            vision="so400m/14-384", llm="llama3.2-1b", num_frames=1, tokens_per_frame=729
        ),
        data=DataConfig(
            annotations="data/blip_laion_cc_sbu_558k.json",
            media_root="data/images",
            tokenizer="data/tokenizer",
            prompt="plain",
            max_text_tokens=256,
            text_buckets=(64, 128),
        ),
        optim=OptimConfig(learning_rates=(("projector/.*", 1e-3), (".*", 0.0))),
        out_dir="runs/pretrain",
        batch_size=512,
        microbatches=8,
        loss_chunk=128,
    )
