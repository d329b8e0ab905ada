"""Tests of the lack of fit: level in the family, power outside it, replicates, words, file."""

import dataclasses

import numpy as np
import pytest

from fitting import lack_of_fit, planner
from fitting.config import FitConfig
from fitting.fits import fit, fit_many
from fitting.intervals import law_interval
from fitting.lack_of_fit import check, examine, judged
from fitting.law import BaggedFit
from fitting.runs import RunTable
from fitting.verdict import DOUBTFUL, HOLDS, NO_LAW, Verdict

SMALL = FitConfig(form="add", resamples=8, starts=12, units="geomean")


def grid(error, *, size=6, repeats=1, noise=0.01, seed=0):
    """A synthetic table of two factors on a grid, with log noise around error(x, y)."""
    level = np.geomspace(1, 32, size)
    x, y = (v.ravel() for v in np.meshgrid(level, level))
    x, y = np.repeat(x, repeats), np.repeat(y, repeats)
    value = error(x, y) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(x)))
    return RunTable(
        factors=("x", "y"),
        x=np.column_stack([x, y]),
        examples=None,
        n=None,
        error=value,
        scale=100.0,
        weights=np.ones(len(x)),
        run_id=np.array([f"r{i}" for i in range(len(x))]),
        metric=np.full(len(x), "synthetic"),
        columns={},
        source="grid.csv",
    )


def right(x, y):
    return 20 + 25 * x**-0.4 + 12 * y**-0.3


def wrong(x, y):
    """A product of the factors, which no sum of them describes."""
    return 15 + 40 * (x * y) ** -0.4


def test_a_right_form_holds_and_a_wrong_one_is_doubtful():
    tables = [grid(error, seed=s) for error in (right, wrong) for s in range(3)]
    laws = fit_many([(table, None) for table in tables], SMALL)
    found = [check(law, table) for law, table in zip(laws, tables, strict=True)]
    assert [v.verdict for v in found] == [HOLDS] * 3 + [DOUBTFUL] * 3
    worst = found[-1].tests[0]
    assert worst.p < 1e-3
    assert "curvature" in worst.name
    assert "90% interval" in found[-1].reasons[0]
    assert "--form auto" in found[-1].help


def test_a_misfit_too_small_to_matter_is_a_note():
    table = grid(lambda x, y: right(x, y) + 5 * (x * y) ** -0.5, size=13, noise=0.02)
    found = examine(fit(table, SMALL), table)
    assert found.significant
    assert not found.matters
    verdict = lack_of_fit.conclude(found, fit(table, SMALL), table)
    assert verdict.verdict == HOLDS
    assert "by little" in verdict.reasons[0]


def test_replicates_are_an_f_test_of_pure_error():
    """The F is the textbook's where the law is linear in what it fits."""
    table = grid(wrong, size=4, repeats=2, noise=0.02)
    law = fit(table, SMALL)
    found = {test.name: test for test in examine(law, table).tests}["replicates"]
    residual = np.log(table.error) - np.log(law.predict_whole(table.x))
    pairs = residual.reshape(-1, 2)
    pure = ((pairs - pairs.mean(axis=1, keepdims=True)) ** 2).sum()
    spare = len(table) - np.linalg.matrix_rank(examined_rank(law, table))
    freedom = spare - len(pairs)
    expected = ((residual**2).sum() - pure) / freedom / (pure / len(pairs))
    assert found.statistic == pytest.approx(expected, rel=1e-3)
    assert found.p < 1e-3


def examined_rank(law, table):
    from fitting.fits import refit

    return refit(law, table).basis[0]


def test_without_repeats_enough_there_is_no_f_test():
    table = grid(right, size=5)
    names = [test.name for test in examine(fit(table, SMALL), table).tests]
    assert "replicates" not in names
    assert "neighbours alike" in names


def test_scores_without_an_effect_are_no_law():
    table = grid(lambda x, y: 50 + 0 * x, noise=0.05)
    found = check(fit(table, SMALL), table)
    assert found.verdict == NO_LAW
    assert "left-out runs" in found.reasons[0]


def test_losses_have_no_ceiling_and_no_logarithm():
    """In linear space and without a scale, the misfit is in the units of the loss."""
    tables = [
        dataclasses.replace(grid(error, noise=0.002), scale=np.inf) for error in (right, wrong)
    ]
    laws = fit_many([(table, None) for table in tables], SMALL.replace(space="linear"))
    found = [examine(law, table) for law, table in zip(laws, tables, strict=True)]
    assert [one.holds for one in found] == [True, False]
    residual = tables[1].error - laws[1].predict_whole(tables[1].x)
    assert found[1].misfit == pytest.approx(np.sqrt(np.mean(residual**2)), rel=0.4)


def test_too_few_runs_are_doubtful():
    table = grid(right).take(np.arange(0, 36, 6))
    found = check(fit(table, SMALL), table)
    assert found.verdict == DOUBTFUL
    assert "6 runs for 5 parameters" in found.reasons[0]


def test_another_table_is_refused():
    table = grid(right)
    law = fit(table, SMALL)
    with pytest.raises(ValueError, match=r"grid\.csv: these are not the runs"):
        check(law, grid(right, seed=1))


def test_runs_without_a_weight_do_not_count():
    table = grid(right)
    table = dataclasses.replace(
        table,
        weights=np.where(np.arange(36) < 3, 0.0, 1.0),
        error=np.where(np.arange(36) < 3, 99.0, table.error),
    )
    assert check(fit(table, SMALL), table).verdict == HOLDS


def test_the_verdict_is_saved_and_stands_on_top_of_a_plan(tmp_path):
    table = grid(wrong)
    law = judged(fit(table, SMALL), table)
    law.save(tmp_path)
    again = BaggedFit.load(tmp_path)
    assert again.verdict == law.verdict
    assert again.verdict.tests[0].name
    assert "lack of fit: doubtful" in again.report()
    answer = planner.lack_of_fit(again)
    assert answer["verdict"] == DOUBTFUL
    assert answer["reasons"] == list(law.verdict.reasons)
    untested = dataclasses.replace(law, verdict=None)
    assert "not tested" in planner.lack_of_fit(untested)["reasons"][0]


def test_a_law_without_a_verdict_is_saved_as_before(tmp_path):
    law = fit(grid(right), SMALL)
    assert "lack_of_fit" not in law.save(tmp_path).read_text()
    assert BaggedFit.load(tmp_path).verdict is None


def test_a_verdict_in_one_line():
    assert Verdict(HOLDS).text == "holds"
    assert Verdict(DOUBTFUL, ("A.", "B."), "C.").text == "doubtful: A. B. C."


@pytest.mark.slow(reason="60 fits of the paper's 88 runs")
@pytest.mark.parametrize(("truth", "low", "high"), [("family", 0, 0.1), ("logistic", 0.9, 1)])
def test_level_and_power_on_the_paper_s_design(truth, low, high):
    from tools.bench.truths import make_table

    tables = [make_table(truth, 1000 + seed) for seed in range(30)]
    config = FitConfig(resamples=15, starts=40)
    laws = fit_many([(table, None) for table in tables], config)
    pairs = zip(laws, tables, strict=True)
    flagged = np.mean([check(law, table).verdict != HOLDS for law, table in pairs])
    assert low <= flagged <= high


def test_what_the_form_misses_widens_the_law_s_interval():
    table = grid(wrong)
    law = judged(fit(table, SMALL), table)
    x = table.x[:3]
    narrow, wide, middle = law.interval(x), law_interval(law, x), law.predict(x)
    more = 1.6449 * law.verdict.misfit
    assert more > 0
    np.testing.assert_allclose((wide[1] - middle) ** 2, (narrow[1] - middle) ** 2 + more**2, 1e-4)
    np.testing.assert_allclose((middle - wide[0]) ** 2, (middle - narrow[0]) ** 2 + more**2, 1e-4)
    untested = dataclasses.replace(law, verdict=None)
    np.testing.assert_array_equal(law_interval(untested, x), narrow)
