"""Dense layers whose weight gradient transposes the narrower operand, which is faster on CPUs.

The weight gradient is xᵀ dy, or equally (dyᵀ x)ᵀ. XLA's CPU backend materialises the transpose of
the left operand, together with the elementwise operations fused into it, which then run along the
strided axis. jax always puts dy on the left. The rule here puts the narrower of x and dy there.
On GPUs and TPUs both orders are the same product. The rule applies there too: a program that
differs by platform would need more code and tests than it saves.
"""

import functools
import math

import flax.linen as nn
import jax


def _dot_general(x, w, dimensions, precision=None):
    """Replace `jax.lax.dot_general` in Flax's dense layers.

    Flax contracts the last axes of inputs [..., in] with the first axes of weights [in, ...] and
    uses no batch axes, so that the number of contracted axes describes the whole product.
    """
    return _product(x, w, len(dimensions[0][1]), precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, w, num_in, precision):
    ins_x = tuple(range(x.ndim - num_in, x.ndim))
    return jax.lax.dot_general(x, w, ((ins_x, tuple(range(num_in))), ((), ())), precision)


def _forward(x, w, num_in, precision):
    return _product(x, w, num_in, precision), (x, w)


def _backward(num_in, precision, inputs, dy):
    x, w = inputs
    num_out, rows = w.ndim - num_in, tuple(range(x.ndim - num_in))
    outs_y, outs_w = range(len(rows), dy.ndim), range(num_in, w.ndim)
    dx = jax.lax.dot_general(dy, w, ((tuple(outs_y), tuple(outs_w)), ((), ())), precision)
    over_rows = ((rows, rows), ((), ()))
    # Operands are compared by features: the rows are the contracted axes of both.
    if math.prod(w.shape[:num_in]) <= math.prod(w.shape[num_in:]):
        return dx, jax.lax.dot_general(x, dy, over_rows, precision)
    dw_transposed = jax.lax.dot_general(dy, x, over_rows, precision)
    order = (*range(num_out, w.ndim), *range(num_out))
    return dx, jax.lax.transpose(dw_transposed, order)


_product.defvjp(_forward, _backward)

Dense = functools.partial(nn.Dense, dot_general=_dot_general)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=_dot_general)
