import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.config import RESAMPLERS
from vvlm_jax.models.resampler import METHODS, antialias, area, bilinear

EVERY_METHOD = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def features(grid, width=3, seed=0):
    return np.random.default_rng(seed).standard_normal((2, grid**2, width)).astype(np.float32)


def positions(grid):
    """Return features that equal their position: [row, column]."""
    row_column = np.stack(np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij"), axis=-1)
    return row_column.reshape(1, grid**2, 2).astype(np.float32)


def test_every_name_has_its_method():
    assert {*METHODS, "quecc"} == {*RESAMPLERS}


@EVERY_METHOD
def test_the_whole_grid_is_left_alone(method):
    x_BPD = features(9)
    np.testing.assert_array_equal(method(x_BPD, 81), x_BPD)


@EVERY_METHOD
def test_tokens_are_row_major_and_evenly_spread(method):
    nine = np.array([[row, column] for row in (1, 4, 7) for column in (1, 4, 7)])
    # A widened kernel that reaches over the edge leans inwards.
    inwards = 0.25 if method is antialias else 0
    np.testing.assert_allclose(method(positions(9), 9)[0], nine - np.sign(nine - 4) * inwards,
                               atol=1e-5)  # fmt: skip


def test_without_antialiasing_the_single_token_is_the_centre_patch():
    x_BPD = features(27)
    np.testing.assert_allclose(bilinear(x_BPD, 1)[:, 0], x_BPD[:, 13 * 27 + 13], rtol=1e-6)
    for method in (area, antialias):
        moved = x_BPD.copy()
        moved[:, 26 * 27 + 26] += 1  # the last patch, far from the centre
        assert np.abs(method(moved, 1) - method(x_BPD, 1)).min() > 1e-5


def test_area_shares_a_patch_between_the_cells_it_lies_in():
    line = np.array([[2, 1, 0], [0, 1, 2]]) / 3  # cells of 1.5 patches
    x_BPD = features(3)
    expected = np.einsum("rg,sh,BghD->BrsD", line, line, x_BPD.reshape(2, 3, 3, 3))
    np.testing.assert_allclose(area(x_BPD, 4), expected.reshape(2, 4, 3), atol=1e-6)


@pytest.mark.parametrize("side", [1, 2, 5, 10, 14, 20, 26])
def test_area_weighs_every_patch_the_same(side):
    x_BPD = features(27)
    got = area(x_BPD, side**2)
    assert got.shape == (2, side**2, 3)
    np.testing.assert_allclose(got.mean(axis=1), x_BPD.mean(axis=1), atol=1e-6)


@EVERY_METHOD
def test_bfloat16_stays_bfloat16(method):
    x_BPD = jnp.asarray(features(9), jnp.bfloat16)
    got = method(x_BPD, 16)
    assert got.dtype == jnp.bfloat16
    exact = method(np.asarray(x_BPD, np.float32), 16)
    np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.torch
@pytest.mark.parametrize("side", [1, 2, 3, 4, 9, 10, 14, 25, 26, 27])
@pytest.mark.parametrize("grid", [27, 16])
def test_the_same_as_torch_where_torch_has_it(grid, side):
    import torch
    import torch.nn.functional as F

    side = min(side, grid)
    x_BPD = features(grid, 5, seed=side)
    x = torch.from_numpy(x_BPD).reshape(2, grid, grid, 5).permute(0, 3, 1, 2)

    def theirs(**options):
        y = F.interpolate(x, (side, side), **options).permute(0, 2, 3, 1)
        return y.reshape(2, side**2, 5).numpy()

    smooth = dict(mode="bilinear", align_corners=False)
    np.testing.assert_allclose(bilinear(x_BPD, side**2), theirs(**smooth), atol=1e-5)
    smooth["antialias"] = True
    np.testing.assert_allclose(antialias(x_BPD, side**2), theirs(**smooth), atol=1e-5)
    if grid % side == 0:  # elsewhere torch rounds cells to whole patches
        np.testing.assert_allclose(area(x_BPD, side**2), theirs(mode="area"), atol=1e-5)
