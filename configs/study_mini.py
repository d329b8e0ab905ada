"""The study made small: the same code, a few minutes; for tests and a first look.

python -m tools.study --config configs/study_mini.py --out runs/mini
"""

from .study import StudyConfig


def config() -> StudyConfig:
    """Too little of everything to learn much; every phase runs. Most isoFLOP runs have an x that a
    run of the star has, too: compiling is what takes the time here.
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
