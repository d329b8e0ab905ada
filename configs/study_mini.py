"""A small study of a few minutes, for tests and a first look.

vvlm study --config study_mini --out runs/mini
"""

from .study import DecisionTest, StudyConfig


def config() -> StudyConfig:
    """Return a study in which every phase runs, with too little data to learn much.

    Most isoFLOP runs share x with a run of the star, and the domain is small enough for the tested
    ones to share theirs, which saves compiling.
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
        domain_frames=(2, 4, 8),
        domain_tokens=(4, 16),
        max_per_curve=2,
        decision=DecisionTest(
            budgets=(0.75, 1.3),
            rivals=("outside", "add"),
            spend=(0.5, 1.0),
            seeds=2,
            questions=12,
            replicated=2,
            replicates=1,
            own_projectors=False,
        ),
        resamples=4,
        starts=8,
    )
