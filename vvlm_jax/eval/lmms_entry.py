"""What LMMs-Eval loads to find the model by name.

Apart from `lmms.py`, which imports LMMs-Eval: while that is being imported, LMMs-Eval looks for its
models, and would find only half of a module.
"""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """For entry-point group `lmms_eval.models`."""
    return ModelManifest("vvlm_jax", simple_class_path="vvlm_jax.eval.lmms.VvlmJax")
