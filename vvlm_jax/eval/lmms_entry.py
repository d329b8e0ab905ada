"""The entry point by which LMMs-Eval finds the model by name.

It is separate from `lmms.py`, which imports LMMs-Eval: during that import LMMs-Eval loads its entry
points, and would find a partially initialised module.
"""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Return the manifest for entry-point group `lmms_eval.models`."""
    return ModelManifest("vvlm_jax", simple_class_path="vvlm_jax.eval.lmms.VvlmJax")
