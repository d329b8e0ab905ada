import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.config import LlamaConfig
from vvlm_jax.models.llama import Llama, rope_frequencies, rotate
from vvlm_jax.models.variants import LLAMA

TINY = LlamaConfig(
    vocab=31, width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=8,
    tie_embeddings=True, rope_theta=100.0,
)  # fmt: skip

# How much slower each frequency has become, by llm: kept, in between, slowed by the full factor.
SLOWED = {
    "llama3.2-1b": [1.0] * 15 + [1.6513293, 3.2922628, 9.666731] + [32.0] * 14,
    "llama3.2-3b": [1.0] * 29
    + [1.234937, 1.6513292, 2.2766595, 3.2922621, 5.1715956, 9.666729]
    + [32.0] * 29,
    "llama3.1-8b": [1.0] * 29
    + [1.2074839, 1.5534146, 2.0263132, 2.6945297, 3.6842525, 5.2573266]
    + [8.0] * 29,
}


@pytest.mark.parametrize("llm", SLOWED)
def test_rope_frequencies(llm):
    config = LLAMA[llm]
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    H = config.head_dim
    np.testing.assert_allclose(plain, [500_000 ** (-2 * i / H) for i in range(H // 2)], rtol=1e-6)
    np.testing.assert_allclose(plain / rope_frequencies(config), SLOWED[llm], rtol=2e-6)


def test_rotated_scores_depend_on_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
    frequencies = rope_frequencies(TINY)

    def score(i, j):
        at = [rotate(x, jnp.array([[p]]), frequencies) for x, p in ((q, i), (k, j))]
        return float((at[0] * at[1]).sum())

    np.testing.assert_allclose(score(9, 4), score(5, 0), rtol=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_a_position_sees_itself_and_the_past_alone():
    L = 7
    model = Llama(TINY, jnp.float32)
    x_LD = np.random.default_rng(1).standard_normal((L, TINY.width)).astype(np.float32)
    variables = model.init(jax.random.key(0), x_LD[None])
    jacobian = jax.jit(jax.jacrev(lambda x: model.apply(variables, x[None])[0][0]))(x_LD)
    seen = np.abs(jacobian).max(axis=(1, 3))
    assert (seen[np.triu_indices(L, 1)] == 0).all()
    assert (seen[np.tril_indices(L)] > 1e-4).all()
