"""Stage 2 with QueCC in place of bilinear resampling: finetune everything, 81 tokens a frame.

    vvlm train --config quecc --set model.tokens_per_frame=9

Li et al. read keys and values from hidden_states[12, 16, 22, 23] of CLIP's 24 layers: at 1/2, 2/3,
11/12 and 23/24 of its depth, the last being the layer (-2) that queries come from too. Of SoViT's
27 blocks these are, rounded, the 14th (13.5), 18th, 25th (24.75) and 26th (25.875): layer -2 again.

Cells of s x s patches must tile the grid. Theirs is 24 x 24, V = (24 / s)^2 = 1, 4, 9, 16, 36, 64,
144 or 576; SoViT's is 27 x 27 (at 384 pixels), s = 1, 3, 9 or 27 and V = 729, 81, 9 or 1.
"""

import dataclasses

from vvlm_jax.config import TrainConfig

from . import finetune

LAYERS = (14, 18, 25, 26)


def config() -> TrainConfig:
    """Return `configs/finetune.py` with QueCC at s = 3."""
    base = finetune.config()
    model = dataclasses.replace(
        base.model, resampler="quecc", quecc_layers=LAYERS, tokens_per_frame=81
    )
    return dataclasses.replace(base, model=model, out_dir="runs/quecc")
