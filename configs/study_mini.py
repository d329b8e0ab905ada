"""A small study of a few minutes, for tests and a first look.

vvlm study --config study_mini --out runs/mini
"""

from .study import StudyConfig


def config() -> StudyConfig:
    """Return a study in which every phase runs, with too little data to learn much.

    Most isoFLOP runs share x with a run of the star, which saves compiling.
    """
    return StudyConfig(
        train_videos=96,
        val_videos=12,
        captions=64,
        stories=128,
        num_frames_levels=(2, 4),
        tokens_levels=(4, 16),
        num_examples=(16, 32, 64),
        isoflop_examples=96,
        budgets=(12e6, 24e6),
        domain_frames=(1, 2, 4, 8),
        domain_tokens=(1, 4, 16),
        max_per_curve=2,
        resamples=4,
        starts=8,
    )
