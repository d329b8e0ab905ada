"""A video vision-language model in JAX: data, model, training, generation, evaluation."""

import importlib

_HOMES = {"VideoVLM": "vvlm_jax.generate.video_vlm"}
__all__ = ["VideoVLM"]  # noqa: F822 imported when it is asked for, because it needs jax


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
