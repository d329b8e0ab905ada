"""Every module of the four trees can be imported: names, syntax and pins fit together."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDS_MORE = ("lmms", "decoders", "torch_train", "__main__")
"""Parts of the names of modules that need an environment of their own, or that run a command."""


@pytest.mark.light
def test_every_module_is_imported():
    failed = []
    for tree in ("vvlm_jax", "fitting", "configs", "tools"):
        for file in sorted((ROOT / tree).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            if any(part in name for part in NEEDS_MORE):
                continue
            try:
                importlib.import_module(name.removesuffix(".__init__"))
            except Exception as e:
                failed.append(f"{name}: {type(e).__name__}: {e}")
    assert not failed, failed
