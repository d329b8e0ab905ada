"""What a block keeps for the backward pass, and what it computes again (`ModelConfig.remat`).

Blocks name what is dear to compute (`keep`); a policy is the set of names that are kept besides the
block's input, and `products` also keeps scores where attention writes them out. An attention kernel
counts as kept only with its softmax statistics, which never leave it: Pallas' kernel names them
(`CONTEXT`), and cuDNN's is known by its primitive.
"""

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name as keep

__all__ = ["CONTEXT", "blocks", "keep"]

CONTEXT = "context"
"""What attention gives before the output projection."""
_ATTENTION = ("query", "key", "value", CONTEXT, "attended")
_KEPT = {
    "products": (*_ATTENTION, "gate", "up"),
    "attention": _ATTENTION,
    "full": (),
    "chunks": (),
}


def blocks(module, length: int, policy: str, unroll: int, **scan):
    """`length` of `module` (a Linen class), one behind the other over parameters [length, …], under
    a policy of `config.REMAT`, `unroll` of them in one turn of the loop.
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
