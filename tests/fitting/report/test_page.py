"""The page of laws that are fitted already: other factors, no costs, several metrics."""

import dataclasses

import numpy as np
import pytest

from fitting.ablations import Ablation, bagging
from fitting.config import FitConfig
from fitting.cost import PAPER
from fitting.fits import fit
from fitting.report.fitted import Fitted, write_fits
from fitting.report.jobs import comparison, entries_job
from fitting.runs import LI2024, RunTable, read_runs
from fitting.sweeps import Domain, star_sweep
from tests.fitting.synthetic import synthetic_table

QUICK = FitConfig("add", resamples=3, starts=8, units="geomean")
POINTS = star_sweep((1e9, 8, 49), Domain((1e9, 4e9), (2, 4, 8), (4, 16, 49)), (1e5, 1e6))


def figures_of(folder):
    return {path.stem for path in (folder / "figures").glob("*.svg")}


def test_a_law_of_other_factors_without_costs_has_a_page_too(tmp_path):
    li = read_runs(LI2024, factors=("lm_params", "visual_tokens"), error="error", scale=1)
    law = fit(li, FitConfig("li", resamples=3, starts=8, space="linear"))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "figure9_isoflop_by_task.svg").write_text("of an earlier report")
    page, doubts = write_fits(tmp_path, li, [Fitted(li, law)], PAPER)
    text = page.read_text()
    names = ("figure1_performance", "figure3a_parameters", "figure3b_predicted", "figure7_runs")
    assert figures_of(tmp_path) == {f"{name}-{li.metrics[0]}" for name in names}
    assert "No run was left out to test the law" in text
    assert "The cost of a configuration is not known" in text
    assert "vvlm fit --compare" in text
    assert "visual tokens" in text
    assert doubts > 0


@pytest.fixture(scope="module")
def tables():
    return [
        synthetic_table("add", POINTS, noise=0.01, seed=seed, metric=metric)
        for seed, metric in enumerate(("avg", "vqa <&>"))
    ]


def joined(tables):
    first = tables[0]
    arrays = ("x", "n", "error", "weights", "run_id", "metric")
    both = {name: np.concatenate([getattr(t, name) for t in tables]) for name in arrays}
    columns = {name: np.concatenate([t.columns[name] for t in tables]) for name in first.columns}
    return dataclasses.replace(first, **both, columns=columns)


def test_laws_of_several_metrics_and_their_tests_share_one_page(tmp_path, tables):
    fits = []
    for table in tables:
        entries = [entries_job({"": table}, "add", QUICK)[""]]
        compared = comparison(table, entries)
        fits.append(
            Fitted(table, fit(table, QUICK), compared, Ablation(compared, bagging(compared)))
        )
    table = joined(tables)
    assert isinstance(table, RunTable)
    page, doubts = write_fits(tmp_path, table, fits, PAPER)
    text = page.read_text()
    assert "vqa <&>" not in text
    for number in (1, "3a", "3b", "3c", 4, 5, 6, 7):
        assert f"As the paper&#x27;s Figure {number}:" in text
    for name in ("figure8_runs_by_task", "figure10_performance_by_task"):
        assert (tmp_path / "figures" / f"{name}.svg").is_file()
    for name in ("table2", "table8", "table9", "runs", "choice-avg", "deploy-vqa"):
        assert (tmp_path / "tables" / f"{name}.csv").is_file(), name
    compared = {fit.law.metric: fit.comparison for fit in fits}
    assert doubts > 0
    assert set(compared) == {"avg", "vqa <&>"}
