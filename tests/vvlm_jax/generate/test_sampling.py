import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.generate.sampling import draws, likeliest_share, next_token

PROBS = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = jnp.log(jnp.asarray(PROBS, jnp.float32))[None]


def drawn(count, temperature=1.0, top_p=1.0, seed=0):
    """Return shares of tokens among the draws of so many rows with equal logits."""
    how = draws(seed, range(count), temperature, top_p)
    tokens = next_token(jnp.tile(LOGITS, (count, 1)), how, 3)
    return np.bincount(tokens, minlength=5) / count


def test_temperature_0_takes_the_likeliest():
    assert draws(0, [0, 1], 0.0, 0.5) is None
    assert next_token(jnp.array([[0.0, 2, 1], [5, 2, 1]]), None, 0).tolist() == [1, 0]


def test_draws_follow_the_probabilities():
    np.testing.assert_allclose(drawn(20_000), PROBS, atol=0.015)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_raises_the_probabilities_to_a_power(temperature):
    expected = PROBS ** (1 / temperature)
    np.testing.assert_allclose(drawn(20_000, temperature), expected / expected.sum(), atol=0.015)


@pytest.mark.light
@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, 5), (0.96, 5), (0.9, 4), (0.84, 3), (0.72, 3), (0.65, 2), (0.3, 1), (1e-9, 1)],
)
def test_top_p_keeps_the_fewest_tokens_that_hold_it(top_p, kept):
    order, logits = likeliest_share(LOGITS, top_p)
    assert order[0].tolist() == [1, 3, 4, 0, 2]
    assert np.isfinite(np.asarray(logits[0])).sum() == kept
    expected = np.where(np.isin(np.arange(5), order[0, :kept]), PROBS, 0)
    np.testing.assert_allclose(drawn(20_000, top_p=top_p), expected / expected.sum(), atol=0.015)


def test_equal_probabilities_are_cut_too():
    assert np.isfinite(np.asarray(likeliest_share(jnp.zeros((1, 10)), 0.29)[1])).sum() == 3


def test_a_row_draws_the_same_whatever_stands_beside_it():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((6, 50)), jnp.float32)
    together = next_token(logits, draws(7, [0, 1, 2, 3, 4, 5], 1.0, 0.9), 4)
    for rows in ([4, 2, 2, 5, 1, 0], [5, 4, 3, 2, 1, 0], [3, 3, 3, 3, 3, 3]):
        alone = next_token(logits[jnp.array(rows)], draws(7, rows, 1.0, 0.9), 4)
        np.testing.assert_array_equal(alone, together[jnp.array(rows)])


def test_seed_row_and_place_each_change_the_draw():
    flat = jnp.zeros((1, 10_000))

    def one(seed, row, place):
        return int(next_token(flat, draws(seed, [row], 1.0, 1.0), place)[0])

    cases = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    assert len({one(*case) for case in cases}) == len(cases)
    assert one(1, 2, 3) == one(1, 2, 3)


@pytest.mark.parametrize(
    ("temperature", "top_p", "message"),
    [
        (-0.1, 1.0, r"temperature = -0\.1: must be 0 .* or above"),
        (float("nan"), 1.0, "temperature = nan"),
        (float("inf"), 1.0, "temperature = inf"),
        (1.0, 0.0, r"top_p = 0\.0: must be a share above 0 and up to 1"),
        (0.0, 1.5, r"top_p = 1\.5"),
    ],
)
def test_options_that_cannot_work_are_named(temperature, top_p, message):
    with pytest.raises(ValueError, match=message):
        draws(0, [0], temperature, top_p)


def test_drawing_works_inside_a_program():
    how = draws(0, [0, 1], 0.7, 0.9)
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 50)), jnp.float32)
    np.testing.assert_array_equal(
        jax.jit(next_token)(logits, how, jnp.int32(2)), next_token(logits, how, 2)
    )
