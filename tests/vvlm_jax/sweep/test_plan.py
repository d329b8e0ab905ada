import math

import jax
import pytest

from configs.sweeps import isoflop, mini, star
from fitting.cost import PAPER
from vvlm_jax.models import vlm
from vvlm_jax.sweep import plan
from vvlm_jax.sweep.config import finetune_config

RATE = dict(peak=1e15, mfu=0.5)


def test_training_flops_at_the_star_centre():
    # Counted by hand for a sample of 6272 visual and 128 text positions.
    rows = plan.rows(star.sweep(), PAPER, **RATE)
    by_x = {(r["lm_params"], r["num_frames"], r["tokens_per_frame"]): r for r in rows}
    for lm_params, sample in ((1e9, 1.10e14), (2.8e9, 1.94e14), (7.5e9, 3.65e14)):
        row = by_x[lm_params, 32, 196]
        assert row["train_flops"] / row["steps"] / 256 == pytest.approx(sample, rel=0.02)
    assert row["inference_flops"] == pytest.approx(PAPER((7.5e9, 32, 196)))
    assert row["num_examples"] == 1_000_000
    assert row["steps"] == 3906
    assert row["device_hours"] == pytest.approx(row["train_flops"] / 5e14 / 3600)


def test_table_6_has_39_and_49_runs():
    assert len(plan.rows(star.sweep(), PAPER, **RATE)) == 39
    rows = plan.rows(isoflop.sweep(), PAPER, **RATE)
    assert len(rows) == 49
    assert {r["num_examples"] for r in rows} == {2_192_374}
    near = [
        min(abs(r["inference_flops"] / c - 1) for c in (2e12, 5e12, 15e12, 30e12)) for r in rows
    ]
    assert max(near) < 0.06


def test_parameters_are_those_of_the_model():
    config = mini.sweep()
    for point in config.points[:2]:
        stage = finetune_config(config, point)
        vision, llm = plan.sizes(stage)
        shapes = vlm.shapes(vlm.build(stage.model, 0, llm.vocab))
        there = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
        assert plan.num_parameters(vision, llm) == there


def test_totals_hold_stage_1_once_a_size_and_the_price():
    rows = plan.rows(star.sweep(), PAPER, price=2.0, fits={(7.5e9, 32, 196): False}, **RATE)
    stage_1 = plan.stage_1_rows(star.sweep(), price=2.0, **RATE)
    assert [r["llm"] for r in stage_1] == ["llama3.2-1b", "llama3.2-3b", "llama3.1-8b"]
    total = plan.totals(rows, stage_1)
    assert total["train_flops"] == sum(r["train_flops"] for r in [*rows, *stage_1])
    assert total["cost"] == pytest.approx(2 * total["device_hours"])
    assert (total["runs"], total["stage_1"], total["unfit"]) == (39, 3, 3)
    assert plan.totals(plan.rows(star.sweep(), PAPER, **RATE), [])["cost"] is None
