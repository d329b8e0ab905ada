"""Sweeps and costs against Table 6 of the paper, counted by hand."""

import itertools
import re
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fitting.cost import PAPER, CostConstants, inference_flops
from fitting.sweeps import (
    PAPER_BUDGETS,
    PAPER_DOMAIN,
    PAPER_ISOFLOP,
    PAPER_STAR,
    Domain,
    Point,
    isoflop_candidates,
    isoflop_sweep,
    star_sweep,
)

TINY = Domain((20_000, 120_000, 700_000), tuple(range(1, 17)), (1, 4, 9, 16))
TINY_COST = CostConstants(vision_params=60_000, features_per_frame=16)


def test_equation_1_by_hand():
    flops = inference_flops(7.5e9, 32, 196, vision_params=0.43e9, features_per_frame=768)
    assert flops == 2 * 32 * (0.43e9 * 768 + 7.5e9 * 196)
    assert PAPER([[7.5e9, 32, 196], [1e9, 1, 1]]).shape == (2,)
    with pytest.raises(ValueError, match=r"x \[..., 3\]"):
        PAPER([1e9, 4])


def test_the_papers_star_has_39_runs_of_13_configurations():
    points = star_sweep(*PAPER_STAR)
    assert len(points) == 39 == len({p.run_id for p in points})
    assert len({p.x for p in points}) == 13
    center = PAPER_STAR.center
    for point in points:
        assert sum(a != b for a, b in zip(point.x, center, strict=True)) <= 1


def test_the_star_is_that_of_table_6():
    points = {(*p.x, p.num_examples) for p in star_sweep(*PAPER_STAR)}
    arms = [(lm, 32, 196) for lm in (1e9, 2.8e9, 7.5e9)]
    arms += [(7.5e9, frames, 196) for frames in (4, 8, 12, 16, 32)]
    arms += [(7.5e9, 32, tokens) for tokens in (4, 16, 25, 36, 49, 100, 196)]
    assert points == {(*x, n) for x in arms for n in (250_000, 500_000, 1_000_000)}


def test_the_planning_domain_is_that_of_section_5():
    assert PAPER_DOMAIN.num_frames == tuple(range(1, 129))
    assert PAPER_DOMAIN.tokens_per_frame == tuple(side**2 for side in range(1, 28))
    assert PAPER_DOMAIN.tokens_per_frame[-1] == 729


def test_a_centre_off_the_levels_is_still_run_once():
    points = star_sweep((10, 3, 4), Domain((10, 20), (2, 4), (4,)), (100,))
    assert [p.x for p in points] == [(10, 3, 4), (20, 3, 4), (10, 2, 4), (10, 4, 4)]


def test_seeds_give_replicates_of_every_point():
    once, thrice = (star_sweep(*PAPER_STAR, **more) for more in ({}, {"seeds": (0, 1, 2)}))
    assert len({p.run_id for p in thrice}) == len(thrice) == 3 * len(once)
    assert [p.run_id for p in thrice[:2]] == [f"{once[0].run_id}-seed{i}" for i in (0, 1)]
    twice = isoflop_sweep(TINY, (8e6,), 4000, TINY_COST, tolerance=0.15, seeds=(3, 4))
    assert {p.seed for p in twice} == {3, 4}
    assert len({p.x for p in twice}) * 2 == len(twice)
    for seeds in ((), (1, 1), 3):
        with pytest.raises(ValueError, match="one or more different seeds"):
            star_sweep(*PAPER_STAR, seeds=seeds)
    with pytest.raises(ValueError, match="num_examples must be one or more data sizes, got 100"):
        star_sweep((10, 3, 4), TINY, 100)


def test_exhaustive_search_finds_the_counts_of_table_6():
    found = isoflop_candidates(PAPER_DOMAIN, PAPER_BUDGETS, PAPER, 0.03)
    assert [len(points) for points in found.values()] == [9, 14, 51, 106]
    wide = isoflop_candidates(PAPER_DOMAIN, PAPER_BUDGETS, PAPER, 0.06)
    assert sum(len(points) for points in wide.values()) == 356
    assert len(PAPER_ISOFLOP) == 49 == len(set(PAPER_ISOFLOP))
    assert all(p.x in wide[p.budget] for p in PAPER_ISOFLOP)
    assert sum(p.x in found[p.budget] for p in PAPER_ISOFLOP) == 42
    assert not {x for points in wide.values() for x in points if x[1] > 128 or x[2] > 27**2}


def test_the_published_runs_are_those_of_table_6():
    assert PAPER_BUDGETS == (2e12, 5e12, 15e12, 30e12)
    published = Counter((p.budget, p.lm_params) for p in PAPER_ISOFLOP)
    counts = [[published[budget, lm] for lm in (1e9, 2.8e9, 7.5e9)] for budget in PAPER_BUDGETS]
    assert counts == [[3, 2, 2], [4, 5, 4], [5, 5, 5], [5, 5, 4]]
    assert {p.num_examples for p in PAPER_ISOFLOP} == {2_192_374}  # Table 3, all examples
    off = PAPER([p.x for p in PAPER_ISOFLOP]) / [p.budget for p in PAPER_ISOFLOP] - 1
    assert (round(off.min(), 3), round(off.max(), 3)) == (-0.045, 0.052)  # the paper: 5.3
    assert {(16, 625), (32, 144)} <= {p.x[1:] for p in PAPER_ISOFLOP if p.x[0] == 1e9}


@pytest.mark.parametrize("most", [5, 6])
def test_the_spacing_rule_keeps_2_to_6_a_curve(most):
    points = isoflop_sweep(
        PAPER_DOMAIN, PAPER_BUDGETS, 2_192_374, PAPER, tolerance=0.06, max_per_curve=most
    )
    sizes = Counter((p.budget, p.lm_params) for p in points)
    assert sizes.keys() == {(b, lm) for b in PAPER_BUDGETS for lm in PAPER_DOMAIN.lm_params}
    assert {2, most} <= set(sizes.values()) <= {2, 3, 4, 5, 6}
    lone = [p.x for p in points if (p.budget, p.lm_params) == (2e12, 7.5e9)]
    assert lone == [(7_500_000_000, 2, 25), (7_500_000_000, 3, 1)]  # the published two


def test_isoflop_sweep_keeps_the_ends_and_the_limit():
    points = isoflop_sweep(PAPER_DOMAIN, PAPER_BUDGETS, 2_000_000, PAPER, max_per_curve=4)
    found = isoflop_candidates(PAPER_DOMAIN, PAPER_BUDGETS, PAPER, 0.03)
    assert len({p.run_id for p in points}) == len(points)
    for budget, candidates in found.items():
        for lm_params in PAPER_DOMAIN.lm_params:
            curve = [x for x in candidates if x[0] == lm_params]
            kept = [p.x for p in points if (p.budget, p.lm_params) == (budget, lm_params)]
            assert set(kept) <= set(curve)
            assert len(kept) == min(4, len(curve))
            ratios = [x[2] / x[1] for x in kept]
            assert min(ratios) == min(x[2] / x[1] for x in curve)
            assert max(ratios) == max(x[2] / x[1] for x in curve)
    assert points == isoflop_sweep(PAPER_DOMAIN, PAPER_BUDGETS, 2_000_000, PAPER, max_per_curve=4)


def test_tiny_domains_work_and_no_configuration_serves_two_budgets():
    points = isoflop_sweep(TINY, (8e6, 9e6, 3.2e7), 4000, TINY_COST, tolerance=0.15)
    assert len({p.x for p in points}) == len(points) > 10
    cost = TINY_COST([p.x for p in points])
    assert np.all(np.abs(cost / [p.budget for p in points] - 1) <= 0.15)


def test_a_budget_out_of_reach_names_the_nearest_cost():
    nearest = TINY_COST((20_000, 1, 1))
    message = re.escape(f"budget 1e+05; the nearest costs {nearest:.4g}")
    with pytest.raises(ValueError, match=message):
        isoflop_candidates(TINY, (1e5,), TINY_COST, 0.03)


@pytest.mark.parametrize(
    ("point", "run_id"),
    [
        (Point("star", 1e9, 32, 196, 250_000), "star-N1e9-T32-V196-n250000"),
        (Point("isoflop", 2_800_000_000, 3, 4, 2_192_374, 2e12), "isoflop-N2.8e9-T3-V4-n2192374"),
        (Point("star", 123_456, 8, 16, 4096), "star-N123456-T8-V16-n4096"),
        (Point("star", 1e9, 8, 16, 4096, seed=0), "star-N1e9-T8-V16-n4096-seed0"),
    ],
)
def test_run_ids_are_exact_and_short(point, run_id):
    assert point.run_id == run_id


@pytest.mark.parametrize("levels", [(), (0, 1), (2, 2)])
def test_a_domain_needs_distinct_positive_levels(levels):
    with pytest.raises(ValueError, match=r"Domain.num_frames needs distinct positive"):
        Domain((1,), levels, (1,))


levels = st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True).map(tuple)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    domain=st.builds(Domain, levels, levels, levels),
    budgets=st.lists(st.floats(1e2, 1e6), min_size=1, max_size=3, unique=True),
    tolerance=st.floats(0.01, 0.9),
    most=st.integers(2, 6),
)
def test_any_isoflop_sweep_is_a_subset_of_what_it_may_be(domain, budgets, tolerance, most):
    """Costs are within the tolerance, no point is repeated, no curve is too long; or an error says
    why.
    """
    cost = CostConstants(vision_params=7, features_per_frame=3)
    everything = [tuple(x) for x in domain.configurations()]
    near = [c for c in cost(everything) if min(abs(c / b - 1) for b in budgets) <= tolerance]
    try:
        points = isoflop_sweep(domain, budgets, 10, cost, tolerance=tolerance, max_per_curve=most)
    except ValueError as e:
        assert "change the budget, tolerance or domain" in str(e)  # noqa: PT017
        return
    assert near
    assert len({p.x for p in points}) == len(points)
    assert {p.x for p in points} <= set(everything)
    for point in points:
        assert abs(cost(point.x) / point.budget - 1) <= tolerance
    assert max(Counter((p.budget, p.lm_params) for p in points).values()) <= most


@hypothesis.settings(deadline=None)
@hypothesis.given(
    center=st.tuples(*[st.integers(1, 60)] * 3),
    domain=st.builds(Domain, levels, levels, levels),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
)
def test_any_star_has_its_arms_and_nothing_else(center, domain, sizes):
    points = star_sweep(center, domain, sizes)
    off = sum(len(set(values) - {c}) for values, c in zip(domain.levels, center, strict=True))
    assert len({(p.x, p.num_examples) for p in points}) == len(points) == len(sizes) * (1 + off)
    for point, n in itertools.product(points, sizes):
        assert sum(a != b for a, b in zip(point.x, center, strict=True)) <= 1
        assert (center, n) in {(p.x, p.num_examples) for p in points}
