"""From a tiny study's table to a report: scores, warnings, and a page that stands alone."""

import dataclasses
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from fitting import figures, formatting
from fitting.config import FitConfig
from fitting.cost import CostConstants
from fitting.fits import fit
from fitting.report.assets import SCRIPT
from fitting.report.compute import (
    Analysis,
    analyse,
    deployment_rows,
    deployment_text,
    edge_text,
    elasticity_extrapolates,
    findings,
)
from fitting.report.page import Report, add_law, add_tasks
from fitting.runs import LI2024, read_runs
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
    assert "2 of 12 budgets do not pay" in text
    assert "poorly" not in text


def test_a_poor_fit_warns(table):
    shuffled = np.random.default_rng(0).permutation(table.error)
    noise = dataclasses.replace(table, error=shuffled)
    got = analyse(noise, DOMAIN, COST, CONFIGS[:1], [1e8], [2000])
    assert any("describes unseen runs poorly" in text for text in findings(got))


def test_deployment_text_lists_every_choice_and_warning(analysis):
    text = deployment_text(analysis, max_budgets=3, max_num_examples=2)
    body = [line for line in text.splitlines() if not line.startswith("Warning")]
    assert len(body) == 1 + 3 * 2
    assert len({len(line) for line in body}) == 1
    assert "MFLOPs" in text
    assert text.count("Warning: ") == len(findings(analysis))


def test_report_stands_alone_and_escapes(tmp_path, analysis):
    report = Report("<b>Title</b>", "a & b")
    add_law(report, analysis)
    page = report.write(tmp_path / "a").read_text()
    assert "<b>Title</b>" not in page
    assert "&lt;b&gt;Title&lt;/b&gt;" in page
    assert "acc <&>" not in page
    assert "acc &lt;&amp;&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert re.findall("<script.*?</script>", page, re.DOTALL) == [f"<script>{SCRIPT}</script>"]
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 7
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(alt.strip() for alt in re.findall(r'<img alt="([^"]*)"', page))
    assert page.count("<img ") == 7 == len(re.findall(r"<img alt=", page))
    for anchor in re.findall(r'href="([^"]*)"', page):
        assert f'id="{anchor[1:]}"' in page
    for number in (1, 2, "3a", "3b", 4, 6, 7):
        assert f"As the paper&#x27;s Figure {number}." in page
    names = ("runs", "performance", "isoflop", "predicted", "parameters", "frontier", "vision")
    for name in names:
        assert (tmp_path / "a" / "figures" / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert (tmp_path / "a" / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_calls_give_the_same_bytes(tmp_path, analysis):
    pages = []
    for folder in ("a", "b"):
        report = Report("T")
        report.figure("boxes", figures.parameter_boxes(analysis.law), "c", "alt")
        report.table(["k", "v"], [["x", 1]], "cap")
        report.warning("w")
        report.write(tmp_path / folder)
        pages.append({p.name: p.read_bytes() for p in (tmp_path / folder).rglob("*.*")})
    assert pages[0].keys() == {"report.html", "boxes.svg", "boxes.png", "boxes.csv"}
    assert pages[0] == pages[1]


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


def test_a_law_without_n_and_costs_has_a_page_too(tmp_path):
    li = read_runs(LI2024, factors=("lm_params", "visual_tokens"), error="error", scale=1)
    law = fit(li, FitConfig("li", resamples=3, starts=8, space="linear"))
    report = Report("T")
    add_law(report, Analysis(li, law))
    page = report.write(tmp_path).read_text()
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"runs", "performance", "predicted", "parameters"}
    assert "No run was left out to test the law" in page
    assert "No cost is known" in page


def test_tasks_are_compared_on_one_page(tmp_path, analysis, table):
    report = Report("T")
    add_tasks(report, table, {table.metrics[0]: analysis})
    page = report.write(tmp_path).read_text()
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    by_task = {"errors", "elasticity", "runs", "performance", "isoflop"}
    assert names == {f"{name}_by_task" for name in by_task}
    doubts = findings(analysis)
    folded = page[page.index("<details>") : page.index("</details>")]
    assert f"<summary>acc &lt;&amp;&gt;: {len(doubts)} warnings</summary>" in folded
    assert folded.count('class="warning"') == page.count('class="warning"') == len(doubts)
    for number in ("3c", 5, 8, 9, 10):
        assert f"As the paper&#x27;s Figure {number}." in page


def test_undetermined_parameters_are_named(analysis):
    unknown = undetermined(analysis.law)
    text = " ".join(findings(analysis))
    assert ("parameters are not determined by the runs" in text) == unknown.any()
    for name, no in zip(analysis.law.parameters, unknown, strict=True):
        if no:
            assert name in text


@pytest.mark.parametrize(("gone", "unknown"), [(0, False), (1, False), (2, True), (11, True)])
def test_members_that_disagree_whether_a_term_is_there_do_not_determine_it(gone, unknown):
    law = made_up_law("add", members=20, spread=0.01)
    floor = law.parameters.index("epsilon")
    law.theta[:gone, floor] = -60.0
    assert undetermined(law)[floor] == unknown
    law.theta[:19, floor] = law.whole.theta[0, floor] = -60.0
    assert not undetermined(law)[floor]  # absent in nearly all: an answer


def test_aicc_of_hubers_loss_is_not_printed():
    law = made_up_law("add", loss="huber")
    assert np.isnan(law.aicc)
    assert "AICc - (Huber's loss" in law.report()
    assert np.isfinite(made_up_law("add").aicc)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(exponent_cap=None), "; exponents free"),
        (dict(bound_exponents=True), "; 0 <= exponent <= 4"),
        (dict(bound_exponents=True, exponent_cap=None), "; exponents >= 0, without a cap"),
        ({}, "; |exponent| <= 4"),
        (dict(init="zero"), "one start at zero, lm"),
    ],
)
def test_the_card_says_what_was_done(options, text):
    assert text in made_up_law("add", **options).report()


def test_a_fit_without_a_bag_shows_no_spread():
    text = made_up_law("add", members=1, resampling="none", init="zero").report()
    assert "median" not in text
    assert "95%" not in text
    assert "members" not in text
    assert "of the starts" not in text


def test_an_elasticity_beyond_the_runs_is_marked(tmp_path, analysis, table):
    law, change = analysis.law, analysis.elasticity
    outside = elasticity_extrapolates(law, change)
    assert change.delta == table.n.max() / 2
    assert list(outside) == [n + change.delta > table.n.max() for n in change.num_examples]
    assert 0 < outside.sum() < len(outside)
    report = Report("T")
    add_law(report, analysis)
    page = report.write(tmp_path).read_text()
    page = page[page.index("n with its step") :]
    cell = r"<td>([^<]*)</td>"
    rows = re.findall(rf"<tr>{cell}(?:<td>[^<]*</td>){{4}}<td>(yes|no)</td></tr>", page)
    marks = [
        (formatting.count(n), "yes" if no else "no")
        for n, no in zip(change.num_examples, outside, strict=True)
    ]
    assert rows == marks


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
    unknown = undetermined(law)
    assert unknown.sum() > 4
    found = findings(Analysis(synthetic_table("add", POINTS, noise=0.01, units=UNITS), law))
    text = next(t for t in found if "not determined" in t)
    names = [name for name, no in zip(law.parameters, unknown, strict=True) if no]
    assert f": {', '.join(names[:4])} and {len(names) - 4} more." in text


def test_report_refuses_bad_calls():
    report = Report("T")
    report.figure("a", Figure(), "c", "alt")
    for name, alt, message in (
        ("a", "x", "must be new"),
        ("../b", "x", "must be new"),
        ("b", " ", "alt"),
    ):
        with pytest.raises(ValueError, match=message):
            report.figure(name, Figure(), "c", alt)
    with pytest.raises(ValueError, match="row 2: 1 cells, 2 headers"):
        report.table(["a", "b"], [[1, 2], [1]])


def test_cost_groups_split_at_gaps():
    groups = figures.cost_groups(np.array([31.0, 2.0, 30.0, 2.1, 5.0]))
    assert list(groups) == [2, 0, 2, 0, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.count(7.5e9), "7.5B"),
        (formatting.count(250_000), "250k"),
        (formatting.count(999_999), "1M"),
        (formatting.count(0.25), "0.25"),
        (formatting.count(float("nan")), "-"),
        (formatting.flops(3.2e6), "3.2 MFLOPs"),
        (formatting.flops(1.5e13), "15 TFLOPs"),
    ],
)
def test_units_read_well(text, expected):
    assert text == expected
