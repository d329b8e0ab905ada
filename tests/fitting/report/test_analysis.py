"""Analysis of a small synthetic table: the chosen form, the frontier, and reasons for doubt."""

import dataclasses

import numpy as np
import pytest

from fitting import formatting
from fitting.config import FitConfig
from fitting.cost import CostConstants
from fitting.report.analysis import (
    Analysis,
    analyse,
    edge_text,
    elasticity_extrapolates,
    findings,
)
from fitting.report.text import deployment_rows, deployment_text, elasticity_rows_by_n
from fitting.summary import undetermined
from fitting.sweeps import Domain, isoflop_sweep, star_sweep
from tests.fitting.laws import made_up_law
from tests.fitting.synthetic import synthetic_table

COST = CostConstants(vision_params=60_000, features_per_frame=16)
DOMAIN = Domain((20_000, 120_000, 700_000), (1, 2, 3, 4, 6, 8, 12, 16), (1, 4, 9, 16))
LEVELS = Domain(DOMAIN.lm_params, (1, 2, 4, 8), (1, 4, 9))
POINTS = star_sweep((700_000, 8, 9), LEVELS, (1000, 2000, 4000)) + isoflop_sweep(
    DOMAIN, (8e6, 1.6e7, 3.2e7, 6.4e7), 8000, COST, tolerance=0.15
)
UNITS = np.array([120_000, 5, 5, 3000.0])
CONFIGS = [FitConfig(form=name, resamples=5, starts=16) for name in ("mult", "add")]


@pytest.fixture(scope="module")
def table():
    return synthetic_table("add", POINTS, noise=0.01, units=UNITS, metric="acc <&>")


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def analysis(table, lines):
    budgets, sizes = np.geomspace(1e6, 2e8, 12), [1000, 4000, 8000, 32_000]
    return analyse(table, DOMAIN, COST, CONFIGS, budgets, sizes, on_progress=lines.append)


def test_the_true_form_wins_and_predictions_are_held_out(analysis, table, lines):
    comparison = analysis.comparison
    assert comparison.best == "add" == analysis.law.config.form
    assert comparison.entry("add").law.aicc < comparison.entry("mult").law.aicc
    assert comparison.entry("add").cross_validation.r2 > 0.9
    known = ~np.isnan(comparison.entry("add").validation(comparison.extrapolation).predicted)
    assert (known == (table.column("sweep") == "isoflop")).all()
    inside = analysis.law.predict(table.x, table.n)
    held_out = comparison.entry("add").validation("5-fold").predicted
    assert not np.isclose(held_out, inside, rtol=1e-9).any()
    assert lines[0] == "form 1/2: mult"
    assert any("frontier" in line for line in lines)


def test_comparison_without_the_second_sweep_says_so(table):
    star = table.select(sweep="star")
    got = analyse(star, DOMAIN, COST, CONFIGS[:1], [1e8], [2000])
    assert any("Extrapolation from star to isoflop: not measured" in t for t in findings(got))


def test_findings_name_extrapolation_and_budgets_too_small(analysis):
    text = " ".join(findings(analysis))
    assert "extrapolate" in text
    outside_only_by_n = [
        row for row in deployment_rows(analysis) if row[1] == "32k" and row[2] != "-"
    ]
    assert outside_only_by_n
    assert all(row[-1] == "yes" for row in outside_only_by_n)
    assert "2 of 12 budgets are below" in text
    assert "poorly" not in text


def test_a_poor_fit_warns(table):
    shuffled = np.random.default_rng(0).permutation(table.error)
    noise = dataclasses.replace(table, error=shuffled)
    got = analyse(noise, DOMAIN, COST, CONFIGS[:1], [1e8], [2000])
    assert any("predicts unseen runs poorly" in text for text in findings(got))


def test_deployment_text_lists_every_choice_and_warning(analysis):
    text = deployment_text(analysis, max_budgets=3, max_num_examples=2)
    body = [line for line in text.splitlines() if not line.startswith("Warning")]
    assert len(body) == 1 + 3 * 2
    assert len({len(line) for line in body}) == 1
    assert "MFLOPs" in text
    assert text.count("Warning: ") == len(findings(analysis))


def test_an_impossible_answer_is_named_and_its_value_is_not_shown(analysis):
    law = dataclasses.replace(analysis.law, scale=40.05)  # between roundings
    got = dataclasses.replace(analysis, law=law)
    rows = [row for row in deployment_rows(got) if row[2] != "-"]
    for row, sound in zip(rows, (r for r in deployment_rows(analysis) if r[2] != "-"), strict=True):
        high = float(sound[6].split(" to ")[1])
        assert (row[-1] == "impossible") == (high > 40.05)
        assert (row[5] == ">40.05") == (float(sound[5]) > 40.05)
        assert row[6].endswith("to >40.05") == (high > 40.05)
    assert {row[-1] for row in rows} > {"impossible"}
    assert any("outside 0 to 40.05, which no run can have" in text for text in findings(got))
    assert not any("which no run can have" in text for text in findings(analysis))


def test_undetermined_parameters_are_named(analysis):
    law = analysis.law
    capped = law.at_cap > 0.1 * len(law.theta)  # the bound excludes what these may be
    unknown = undetermined(law) & ~capped
    text = " ".join(findings(analysis))
    assert ("parameters are not determined by the runs" in text) == unknown.any()
    for name, no in zip(law.parameters, unknown, strict=True):
        if no:
            assert name in text
    assert ("The bound excludes more" in text) == capped.any()


def test_an_answer_at_the_edge_of_the_domain_is_said(analysis):
    best = analysis.frontier
    highest = np.nanmax(best.x, axis=(0, 1))
    offered = np.stack([highest / 2, highest * 2], axis=1)
    assert not edge_text(dataclasses.replace(analysis, offered=offered))
    offered[1, 1] = highest[1]
    ends = (best.x[-1, :, 1] == highest[1]).any()  # at the largest budget of some n
    got = dataclasses.replace(analysis, offered=offered)
    text = edge_text(got)
    assert ends
    assert f"frames per video ({highest[1]:g}, from " in text
    assert "parameters" not in text
    assert text in findings(got)


def test_a_sentence_names_four_parameters_at_most():
    law = made_up_law(members=21, spread=2.0)
    unknown = undetermined(law) & ~(law.at_cap > 2)
    assert unknown.sum() > 4
    found = findings(Analysis(synthetic_table("add", POINTS, noise=0.01, units=UNITS), law))
    text = next(t for t in found if "not determined" in t)
    names = [name for name, no in zip(law.parameters, unknown, strict=True) if no]
    assert f": {', '.join(names[:4])} and {len(names) - 4} more." in text


def test_an_elasticity_beyond_the_runs_is_marked(analysis, table):
    law, change = analysis.law, analysis.elasticity
    outside = elasticity_extrapolates(law, change)
    assert change.delta == table.n.max() / 2
    assert list(outside) == [n + change.delta > table.n.max() for n in change.num_examples]
    assert 0 < outside.sum() < len(outside)
    shown = [(row[0], row[-1]) for row in elasticity_rows_by_n(change, law)]
    assert shown == [
        (formatting.count(n), "yes" if no else "no")
        for n, no in zip(change.num_examples, outside, strict=True)
    ]
