"""A sweep that takes minutes on a CPU: four runs on the study's data, two language models.

    python -m configs.sweeps.mini        # writes its clips and pictures, once
    vvlm sweep launch sweeps/mini --store runs/mini-sweep

The models learn nothing; the sweep exercises every part of the code.
"""

import dataclasses
from pathlib import Path

from fitting.sweeps import Domain, star_sweep
from vvlm_jax.config import TrainConfig
from vvlm_jax.flops import llm_params
from vvlm_jax.models.variants import LLAMA
from vvlm_jax.sweep.config import Evaluation, LmSize, SweepConfig

from .. import study as stages
from ..study import StudyConfig

DATA = "runs/mini-sweep-data"
LLMS = ("study-s", "study-m")
STUDY = StudyConfig(llms=LLMS, train_videos=16, val_videos=2, captions=8)


def sweep() -> SweepConfig:
    """Return a star with one run on each arm, at one data size."""
    small, large = (llm_params(LLAMA[llm]) for llm in LLMS)
    levels = Domain((small, large), (1, 2), (1, 4))
    return SweepConfig(
        name="mini",
        points=star_sweep((large, 2, 4), levels, (12,)),
        sizes=(LmSize(small, LLMS[0]), LmSize(large, LLMS[1])),
        finetune=_small(stages.finetune_stage(STUDY, DATA)),
        pretrain=_small(stages.projector_stage(STUDY, LLMS[-1], DATA)),
        evaluations=(Evaluation("val", f"{DATA}/val.jsonl", DATA, max_new_tokens=2),),
        data_size=STUDY.train_videos,
    )


def _small(stage: TrainConfig) -> TrainConfig:
    """Return a stage with batches of four, whose every step is logged and saved."""
    more = dict(batch_size=4, microbatches=1, epochs=1, log_every=1, checkpoint_every=1)
    return dataclasses.replace(stage, **more)


def write_data(folder: Path) -> None:
    """Write clips, questions, pictures and their annotations, unless they exist."""
    from vvlm_jax.data import synthetic

    size, seed = STUDY.image_size, STUDY.seed
    synthetic.write_tokenizer(folder)
    synthetic.write_captions(folder, STUDY.captions, size, seed)
    for split, count in (("train", STUDY.train_videos), ("val", STUDY.val_videos)):
        synthetic.write_videos(
            folder, split, count, STUDY.turns, num_frames=STUDY.num_frames,
            flash_lengths=STUDY.flash_lengths, size=size, seed=seed,
        )  # fmt: skip


if __name__ == "__main__":
    write_data(Path(DATA))
