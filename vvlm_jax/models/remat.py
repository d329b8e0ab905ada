"""Rematerialisation policies: which activations a block saves for the backward pass.

Blocks name the activations that are expensive to recompute (`keep`). A policy of `config.REMAT` is
the set of names saved besides the block's input; `products` also saves every matrix product, and so
the scores of the reference attention. The backward pass of an attention kernel needs the kernel's
softmax statistics too, which are no output of the block: Pallas' kernel names them itself
(`CONTEXT`), and cuDNN's is recognised by its primitive.
"""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name as keep

__all__ = ["CONTEXT", "blocks", "keep"]

CONTEXT = "context"
"""Name of attention's result before the output projection."""
_ATTENTION = ("query", "key", "value", CONTEXT, "attended")
_KEPT = {
    "products": (*_ATTENTION, "gate", "up"),
    "attention": _ATTENTION,
    "full": (),
    "chunks": (),
}


def blocks(module, length: int, policy: str, unroll: int, **scan):
    """Return a scan of `length` copies of a Linen class over stacked parameters [length, …].

    Args:
      module: the class of the block.
      policy: remat policy, one of `config.REMAT`.
      unroll: blocks in one iteration of the loop.
      scan: further options of `nn.scan`.
    """
    return nn.scan(
        _block(module, policy),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=length,
        unroll=min(unroll, length),
        **scan,
    )


def _block(module, policy: str):
    if policy == "none":
        return module
    kept = _policy(_KEPT[policy])
    if policy == "products":
        kept = jax.checkpoint_policies.save_from_both_policies(kept, _DOTS)
    return nn.remat(module, prevent_cse=False, policy=kept)


_DOTS = jax.checkpoint_policies.dots_saveable


def _policy(names):
    if not names:
        return None
    named = jax.checkpoint_policies.save_only_these_names(*names)

    def is_kept(primitive, *args, **params):
        is_kernel = primitive.name.startswith("dot_product_attention_fwd")
        return is_kernel or named(primitive, *args, **params)

    return is_kept
