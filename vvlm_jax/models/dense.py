"""Dense layers whose weights' gradient is a product in the better of two orders.

xᵀ dy is also (dyᵀ x)ᵀ. A CPU first writes out the transpose of what stands in front, and computes
whatever elementwise work led to it along the wrong axis; so the narrower of the two stands there.
jax always takes dy. On other platforms both are the same product.
"""

import functools
import math

import flax.linen as nn
import jax


def _dot_general(x, w, dimensions, precision=None):
    """`jax.lax.dot_general` as Flax calls it: of inputs [..., in], weights [in, ...], both of one
    or more axes, and no batched ones.
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
    if math.prod(w.shape[:num_in]) <= math.prod(w.shape[num_in:]):
        return dx, jax.lax.dot_general(x, dy, over_rows, precision)
    dw_transposed = jax.lax.dot_general(dy, x, over_rows, precision)
    order = (*range(num_out, w.ndim), *range(num_out))
    return dx, jax.lax.transpose(dw_transposed, order)


_product.defvjp(_forward, _backward)

Dense = functools.partial(nn.Dense, dot_general=_dot_general)
DenseGeneral = functools.partial(nn.DenseGeneral, dot_general=_dot_general)
