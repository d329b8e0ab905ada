"""The study of the graded world, whose errors are averages over many skills (DECISIONS.md).

vvlm study --config study_graded --out runs/graded

Its law has not been measured on a whole sweep yet; `study` stays the default until it has.
"""

from .study import StudyConfig


def config() -> StudyConfig:
    """Return the study: about the same number of runs as the default one, each much cheaper."""
    return StudyConfig(
        world="graded",
        num_frames=32,
        image_size=32,
        train_videos=3072,
        val_videos=1000,
        turns=(("flash", 2), ("cell", 4), ("word", 4)),
        captions=6000,
        vision="graded/8",
        llms=("graded-s", "graded-m", "graded-l"),
        num_frames_levels=(1, 2, 4, 8),
        tokens_levels=(1, 4, 9, 16),
        center=(8, 4),
        num_examples=(256, 768, 2304),
        isoflop_examples=3072,
        budgets=(5e6, 10e6),
        domain_frames=tuple(range(1, 17)),
        batch_size=8,
        rate=5e-3,
    )
