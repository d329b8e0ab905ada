"""The stages of a study of the graded world (`vvlm_jax/data/graded.py`).

Clips of two frames with captions pretrain the encoder with the largest language model, then every
language model with that encoder, then each projector. Finetuning thus starts from models that read
colours, cells and known dialects, and learns frames, pooled tokens and new dialects. At these sizes
a whole batch fits a core's cache, so that there is one microbatch.
"""

from vvlm_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

TAUGHT = (("flash", 1), ("cell", 5), ("word", 4))
"""Questions of each task in a caption of pretraining."""
_TEXT_TOKENS = 24


def vision_stage(study, folder: str) -> TrainConfig:
    """Return the stage that pretrains the encoder, together with the largest language model."""
    return _on_pairs(study, study.llms[-1], folder, 8, (".*", 4e-3))


def lm_stage(study, llm: str, folder: str) -> TrainConfig:
    """Return the stage that pretrains a language model behind the finished encoder."""
    return _on_pairs(study, llm, folder, 8, ("vision/.*", 0.0), (".*", 5e-3))


def projector_stage(study, llm: str, folder: str) -> TrainConfig:
    """Return stage 1: the projector alone, with unpooled features."""
    return _on_pairs(study, llm, folder, 4, ("projector/.*", 5e-3), (".*", 0.0))


def finetune_stage(study, folder: str) -> TrainConfig:
    """Return stage 2: all parts train on clips; a sweep sets x and n."""
    return TrainConfig(
        model=_model(study, study.llms[-1], 8, 16),
        data=_data(folder, "train", 512),
        optim=_optim(("vision/.*", study.rate / 5), ("(projector|llm)/.*", study.rate)),
        batch_size=study.batch_size,
        seed=study.seed,
        log_every=10,
        checkpoint_every=0,
    )


def _on_pairs(study, llm: str, folder: str, epochs: int, *rates) -> TrainConfig:
    return TrainConfig(
        model=_model(study, llm, 2, 16),
        data=_data(folder, "pairs", 64, study.captions),
        optim=_optim(*rates),
        epochs=epochs,
        batch_size=32,
        seed=study.seed,
        log_every=20,
        checkpoint_every=0,
    )


def _model(study, llm: str, num_frames: int, tokens: int) -> ModelConfig:
    # Bilinear resampling without antialiasing sees some patches only, and one of an odd grid.
    return ModelConfig(
        study.vision, llm, num_frames, tokens, dtype="float32", remat="none", resampler="area"
    )


def _optim(*rates) -> OptimConfig:
    return OptimConfig(learning_rates=rates, b2=0.98)


def _data(folder: str, kind: str, cache_mb: int, num_examples: int | None = None) -> DataConfig:
    return DataConfig(
        f"{folder}/{kind}.json",
        folder,
        f"{folder}/tokenizer.json",
        num_examples=num_examples,
        prompt="plain",
        max_text_tokens=_TEXT_TOKENS,
        frame_cache_mb=cache_mb,
        read_threads=1,
    )
