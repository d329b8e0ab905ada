"""Which rows a mixture takes of its files, and what is in its subsets of n."""

import zlib

import numpy as np
import pytest

from configs import mixtures
from vvlm_jax.config import ConfigError
from vvlm_jax.data.datasets import nested_subset
from vvlm_jax.data.prepare.mixture import MixtureConfig, SubsetConfig, sample, validate, without

TABLE_3 = 2_192_374
N = (250_000, 500_000, 1_000_000, TABLE_3)


def test_the_papers_mixture_is_table_3():
    paper = validate(mixtures.paper())
    assert len(paper.subsets) == 13
    assert sum(subset.examples for subset in paper.subsets) == TABLE_3
    assert validate(mixtures.lcs()).subsets[0].examples == 558_128


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("end:3", range(7, 10)),
        ("first:25%", range(3)),  # 2.5, rounded up
        ("end:1%", [9]),
        ("first:99", range(10)),
        ("end:99", range(10)),
        ("first:0", []),
        ("end:0", []),
    ],
)
def test_strategies_take_what_llava_takes(strategy, expected):
    assert sample(10, strategy, 0, "a.json").tolist() == list(expected)


def test_a_random_share_is_seeded_and_differs_from_file_to_file():
    taken = sample(1000, "random:10%", 0, "a.json")
    assert len({*taken.tolist()}) == 100
    assert (np.diff(taken) > 0).all()
    np.testing.assert_array_equal(taken, sample(1000, "random:100", 0, "a.json"))
    assert taken.tolist() != sample(1000, "random:100", 1, "a.json").tolist()
    assert taken.tolist() != sample(1000, "random:100", 0, "b.json").tolist()


@pytest.mark.parametrize("strategy", ["some", "first", "first:x", "last:3", "random:-1", ""])
def test_an_unknown_strategy_is_named(strategy):
    with pytest.raises(ConfigError, match=r"a\.json: sampling .*: must be all, first:N, end:N or"):
        sample(10, strategy, 0, "a.json")


def test_subsets_can_be_left_out_by_name():
    left = without(mixtures.paper(), ("clevrer", "webvid"))
    assert sum(s.examples for s in left.subsets) == TABLE_3 - 82_620 - 99_922
    with pytest.raises(ConfigError, match="--without clever: no such subset; did you mean 'clev"):
        without(mixtures.paper(), ("clever",))
    with pytest.raises(ConfigError, match="nothing is left of lcs"):
        without(mixtures.lcs(), ("lcs_558k",))


def test_mixtures_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"mixture\.name = 'My mix': must be like"):
        validate(MixtureConfig("My mix", (SubsetConfig("a", ()),)))
    with pytest.raises(ConfigError, match=r"mixture\.subsets: must be at least one, of different"):
        validate(MixtureConfig("mine", (SubsetConfig("a", ()), SubsetConfig("a", ()))))


def test_subsets_of_the_whole_mixture_are_nested_and_keep_its_shares():
    """0.25M ⊂ 0.5M ⊂ 1M ⊂ all; shares within five standard errors of a draw without return."""
    sizes = [subset.examples for subset in mixtures.paper().subsets]
    subset_of = np.repeat(np.arange(len(sizes)), sizes)
    chosen = [nested_subset(TABLE_3, n, 0) for n in N]
    for smaller, larger in zip(chosen, chosen[1:], strict=False):
        np.testing.assert_array_equal(smaller, larger[: len(smaller)])
    assert (np.bincount(chosen[-1]) == 1).all()
    for numbers in chosen:
        n = len(numbers)
        counts = np.bincount(subset_of[numbers], minlength=len(sizes))
        for i, size in enumerate(sizes):
            p = size / TABLE_3
            error = np.sqrt(n * p * (1 - p) * (TABLE_3 - n) / (TABLE_3 - 1))
            assert abs(counts[i] - n * p) <= 5 * error + 1e-6, mixtures.paper().subsets[i].name


def test_the_order_is_the_same_on_every_machine():
    """NumPy does not promise it; a version with another order must fail here."""
    order = nested_subset(TABLE_3, None, 0).astype("<i8")
    assert order[:4].tolist() == ORDER_STARTS
    assert zlib.crc32(order.tobytes()) == ORDER_CHECKSUM


ORDER_STARTS = [2043049, 118252, 489221, 1560903]
ORDER_CHECKSUM = 156131981
