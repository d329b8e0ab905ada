"""Dense layers have the same parameters, outputs and gradients as Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.models.dense import Dense, DenseGeneral

CASES = {
    "wider": (lambda kind: kind[0](24), (2, 3, 8)),
    "narrower": (lambda kind: kind[0](4), (2, 3, 8)),
    "into heads": (lambda kind: kind[1]((6, 4)), (2, 3, 8)),
    "out of heads": (lambda kind: kind[1](5, axis=(-2, -1)), (2, 3, 4, 2)),
    "into fewer heads": (lambda kind: kind[1]((1, 2), use_bias=False), (2, 3, 8)),
    "one row": (lambda kind: kind[0](4), (8,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_outputs_and_gradients_equal_flax(case, dtype):
    make, shape = CASES[case]
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    ours, flax = (make(kind).clone(dtype=dtype) for kind in KINDS)
    params = flax.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), params)

    def total(layer):
        return lambda params, x: (layer.apply(params, x).astype(jnp.float32) ** 3).sum()

    found, expected = (
        jax.jit(jax.value_and_grad(total(layer), (0, 1)))(params, x) for layer in (ours, flax)
    )
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    jax.tree.map(lambda a, b: close(a, b, tolerance), found, expected)


KINDS = ((Dense, DenseGeneral), (nn.Dense, nn.DenseGeneral))


def close(a, b, tolerance):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize(("width", "first"), [(24, "x"), (4, "dy")])
def test_the_narrower_operand_is_on_the_left(width, first):
    """Check the operands of the weight gradient, the only product over the 40 rows."""
    x = jnp.ones((40, 8))
    params = Dense(width).init(jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: Dense(width).apply(p, x).sum()))(params)
    shapes = [
        [v.aval.shape for v in eqn.invars]
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "dot_general"
        and eqn.params["dimension_numbers"][0] == ((0,), (0,))
    ]
    assert shapes == [[(40, 8), (40, width)] if first == "x" else [(40, width), (40, 8)]]
