"""What one example costs at inference, in FLOPs: the paper's equation 1.

A cost model, everywhere in this package, is a function from configurations [..., 3] in the order
(lm_params, num_frames, tokens_per_frame) to a cost [...]; `PAPER` is one of them, and a measured
table of latencies wrapped in a function serves as well.
"""

from dataclasses import dataclass

import numpy as np


def inference_flops(
    lm_params, num_frames, tokens_per_frame, *, vision_params, features_per_frame
) -> np.ndarray:
    """FLOPs to read one video: c = 2 x_T (x_M x_W + x_N x_V), equation 1.

    Text tokens and decoding are disregarded, as in the paper.

    Args:
      lm_params: x_N, language-model parameters without the input embedding, any shape.
      num_frames: x_T, frames per video, broadcast against the others.
      tokens_per_frame: x_V, visual tokens the language model reads per frame.
      vision_params: x_M, parameters of the vision model.
      features_per_frame: x_W, features (patches) the vision model computes per frame.

    Returns:
      FLOPs per example, float64, of the broadcast shape.
    """
    lm_params, num_frames, tokens_per_frame = (
        np.asarray(value, np.float64) for value in (lm_params, num_frames, tokens_per_frame)
    )
    return 2.0 * num_frames * (vision_params * features_per_frame + lm_params * tokens_per_frame)


@dataclass(frozen=True)
class CostConstants:
    """Equation 1 with the vision model fixed: call it with configurations [..., 3].

    Attributes:
      vision_params: x_M, parameters of the vision model.
      features_per_frame: x_W, features computed per frame.
    """

    vision_params: float
    features_per_frame: float

    def __call__(self, x) -> np.ndarray:
        """FLOPs [...] of configurations x [..., 3]: lm_params, num_frames, tokens_per_frame."""
        x = np.asarray(x, np.float64)
        if x.shape[-1:] != (3,):
            raise ValueError(
                f"a cost needs x [..., 3] = lm_params, num_frames, tokens_per_frame; got {x.shape}"
            )
        return inference_flops(
            x[..., 0],
            x[..., 1],
            x[..., 2],
            vision_params=self.vision_params,
            features_per_frame=self.features_per_frame,
        )


PAPER = CostConstants(vision_params=0.43e9, features_per_frame=768)
"""SoViT-400m/14 as section 3 of the paper counts it: 768 is its constant, and Table 6's."""
