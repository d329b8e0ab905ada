"""Equation 1, the actual FLOPs against the models' own counts, and measured tables."""

import flax
import jax
import numpy as np
import pytest

from fitting.cost import LLAMA, PAPER, SOVIT, VOCAB, ActualFlops, inference_flops, read_costs
from vvlm_jax import flops
from vvlm_jax.models import variants
from vvlm_jax.models.projector import Projector

NAMES = ("llama3.2-1b", "llama3.2-3b", "llama3.1-8b")
ENCODER = variants.VISION["so400m/14-384"]
X = np.array([[1e9, 8, 625], [2.8e9, 35, 36], [7.5e9, 1, 1], [7.5e9, 128, 729]])


def test_equation_1_by_hand():
    assert PAPER([7.5e9, 2, 3]) == 2 * 2 * (0.43e9 * 768 + 7.5e9 * 3)
    grid = inference_flops([[1e9], [2e9]], [1, 2, 3], 4, vision_params=1.0, features_per_frame=1.0)
    assert grid.shape == (2, 3)


@pytest.mark.parametrize(("shape", "name"), list(zip(LLAMA, NAMES, strict=True)))
def test_language_shapes_are_those_of_the_models(shape, name):
    config = variants.LLAMA[name]
    assert config.vocab == VOCAB
    assert shape.lm_params == flops.llm_params(config)
    for length in (1, 77, 4096, 93_412):
        assert shape.flops(length) == flops.llm_flops(config, length)


@pytest.mark.parametrize("name", ["so400m/14-384", "so400m/14-224"])
def test_the_vision_shape_is_the_models(name):
    config = variants.VISION[name]
    assert SOVIT.flops(config.num_patches) * 7 == flops.vision_flops(config, 7)


@pytest.mark.parametrize(("text", "features"), [(0, 729), (100, 729), (33, 256)])
def test_actual_flops_add_up(text, features):
    cost = ActualFlops(features, text)
    parts = cost.parts(X)
    np.testing.assert_array_equal(cost(X), sum(parts))
    for i, (_, frames, tokens) in enumerate(X.astype(int).tolist()):
        config = variants.LLAMA[NAMES[[0, 1, 2, 2][i]]]
        assert parts.lm[i] == flops.llm_flops(config, frames * tokens + text)
        assert parts.vision[i] == frames * SOVIT.flops(features)
        projector = Projector(config.width)
        pixels = jax.ShapeDtypeStruct((1, features, ENCODER.width), "bfloat16")
        params = jax.eval_shape(projector.init, jax.random.key(0), pixels)
        kernels = [v for v in jax.tree.leaves(flax.core.unfreeze(params)) if len(v.shape) == 2]
        assert parts.projector[i] == 2 * frames * features * sum(k.size for k in kernels)
    assert cost(X[2]).shape == ()
    assert cost(X[2]) == cost(X)[2]


def test_attention_counts_half_and_grows_with_the_square():
    cost, (one, two) = ActualFlops(text_tokens=0), ([7.5e9, 64, 729], [7.5e9, 128, 729])
    grown = cost.parts(two).lm - 2 * cost.parts(one).lm
    length, shape = 64 * 729, LLAMA[2]
    quadratic = 2 * 2 * shape.depth * shape.num_heads * shape.head_dim * length**2
    np.testing.assert_allclose(grown, quadratic, rtol=1e-4)


def test_equation_1_is_close_to_the_actual_cost_of_the_published_runs():
    from fitting.sweeps import PAPER_ISOFLOP

    x = np.array([point.x for point in PAPER_ISOFLOP])
    ratio = ActualFlops(text_tokens=0)(x) / PAPER(x)
    assert 0.9 < ratio.min() < ratio.max() < 1.3


def test_an_unknown_language_model_is_named():
    with pytest.raises(ValueError, match=r"lm_params 3e\+10; .* for 9.73e\+08, 2.82e\+09, 7.5"):
        ActualFlops()([[1e9, 1, 1], [3e10, 1, 1]])


TABLE = "# synthetic latencies\nwidth,depth,ms,note\n\n1,2,10,a\n1,4,18,b\n2,2,19.5,c\n"


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "ms.csv").write_text(text)
        return tmp_path / "ms.csv"

    return write


def test_a_measured_table_is_a_cost_and_a_domain(file):
    table = read_costs(file(TABLE), ("depth", "width"), "ms")
    np.testing.assert_array_equal(table([[[2, 2], [4, 1]]]), [[19.5, 18]])
    np.testing.assert_array_equal(table(table.configurations()), [10, 18, 19.5])
    plain = read_costs(file("width,depth,ms\n1,2,10\n"), ("depth", "width"))
    assert plain.column == "ms"


@pytest.mark.parametrize("x", [[3, 2], [[1, 2], [3, 2]]])
def test_a_configuration_that_was_not_measured_is_named(file, x):
    table = read_costs(file(TABLE), ("width", "depth"), "ms")
    with pytest.raises(ValueError, match="no ms for width=3, depth=2; the nearest of 3 is width=2"):
        table(x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE, "which column is the cost. It has width, depth, ms, note; say .*ms.csv:COLUMN"),
        ("width,ms\n1,2\n", "no column 'depth'; there are width, ms"),
        ("width,depth,ms\n1,2,fast\n", "row 1: ms is 'fast'; it must be a positive number"),
        ("width,depth,ms\n1,2,3\n1,0,3\n", "row 2: depth is '0'"),
        ("width,depth,ms\n1,2,3\n1,2,4\n", "row 2: the configuration of row 1 again"),
        ("width,depth,ms\n1,2\n", "row 1: ms is None"),
        ("width,depth,ms\n", "no rows; it needs width, depth and a cost"),
    ],
)
def test_bad_tables_are_named_in_one_line(file, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_costs(file(text), ("width", "depth"))
    assert "\n" not in str(error.value)


def test_no_such_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of costs"):
        read_costs(tmp_path / "gone.csv", ("a",))
