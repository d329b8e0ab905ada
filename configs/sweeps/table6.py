"""Shared by the star and the isoFLOP sweep of Table 6: models, stages, weights, questions.

To write another sweep copy star.py and give `table6.config` your points, or build a `SweepConfig`
from your own stages. Paths are relative to where the commands run.
"""

import dataclasses

from fitting import cost
from fitting.sweeps import PAPER_LM_PARAMS
from vvlm_jax.sweep.config import Evaluation, LmSize, SweepConfig

from .. import finetune, pretrain

EXAMPLES = 2_192_374
"""Table 3: the whole mixture."""
CAPTIONS = 558_128
"""LCS-558k."""
LLMS = ("llama3.2-1b", "llama3.2-3b", "llama3.1-8b")
"""The language models of the paper's three sizes."""


def config(name: str, points) -> SweepConfig:
    """Return a sweep with the stages of Table 4, for points with the paper's language models."""
    stage_1 = pretrain.config()
    return SweepConfig(
        name=name,
        points=points,
        sizes=tuple(
            LmSize(lm_params, llm, init=(("llm", f"weights/{llm}"),))
            for lm_params, llm in zip(PAPER_LM_PARAMS, LLMS, strict=True)
        ),
        finetune=finetune.config(),
        pretrain=dataclasses.replace(
            stage_1, data=dataclasses.replace(stage_1.data, num_examples=CAPTIONS)
        ),
        init=(("vision", "weights/siglip-so400m-patch14-384"),),
        evaluations=(Evaluation("val", "data/val.jsonl", "data/videos"),),
        data_size=EXAMPLES,
        vision_params=cost.PAPER.vision_params,
        features_per_frame=cost.PAPER.features_per_frame,
    )
