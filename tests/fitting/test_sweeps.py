"""Sweeps and costs against Table 6 of the paper, counted by hand."""

import re

import numpy as np
import pytest

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


def test_a_centre_off_the_levels_is_still_run_once():
    points = star_sweep((10, 3, 4), Domain((10, 20), (2, 4), (4,)), (100,))
    assert [p.x for p in points] == [(10, 3, 4), (20, 3, 4), (10, 2, 4), (10, 4, 4)]


def test_exhaustive_search_finds_the_counts_of_table_6():
    found = isoflop_candidates(PAPER_DOMAIN, PAPER_BUDGETS, PAPER, 0.03)
    assert [len(points) for points in found.values()] == [9, 14, 51, 106]
    wide = isoflop_candidates(PAPER_DOMAIN, PAPER_BUDGETS, PAPER, 0.06)
    assert sum(len(points) for points in wide.values()) == 356
    assert len(PAPER_ISOFLOP) == 49 == len(set(PAPER_ISOFLOP))
    assert all(p.x in wide[p.budget] for p in PAPER_ISOFLOP)
    assert sum(p.x in found[p.budget] for p in PAPER_ISOFLOP) == 42


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
    ],
)
def test_run_ids_are_exact_and_short(point, run_id):
    assert point.run_id == run_id


@pytest.mark.parametrize("levels", [(), (0, 1), (2, 2)])
def test_a_domain_needs_distinct_positive_levels(levels):
    with pytest.raises(ValueError, match=r"Domain.num_frames needs distinct positive"):
        Domain((1,), levels, (1,))
