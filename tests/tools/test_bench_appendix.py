"""`tools.bench.bench_appendix` and `tools.bench.bench_coverage`: small runs."""

import numpy as np
import pytest

from fitting.config import FitConfig
from fitting.report.results import is_synthetic
from fitting.runs import read_runs
from tools.bench import bench_appendix, bench_coverage, bench_report


def test_the_reports_table_is_the_papers_design_for_each_metric(tmp_path):
    table = read_runs(bench_report.write_table(tmp_path / "runs.csv", bench_report.METRICS))
    assert (len(table), len(table.metrics)) == (88 * 9, 9)
    assert is_synthetic(tmp_path / "runs.csv", table)


@pytest.mark.slow(reason="compiles two forms and every option")
def test_the_appendix_prints_its_three_tables(capsys, monkeypatch):
    monkeypatch.setattr(bench_appendix, "PAPER_FORMS", ("mult", "add"))  # others compile for long
    rows = bench_appendix.appendix(FitConfig(form="mult", resamples=2, starts=3))
    shown = capsys.readouterr().out
    for part in ("add ", "sweep=star → sweep=isoflop", "exponents bounded", "mean"):
        assert part in shown, part
    assert [name for name, *_ in rows] == ["Table 2", "Tables 8 and 9"]


def test_an_interval_that_is_too_narrow_is_caught(monkeypatch):
    honest = np.array(bench_coverage.covered(FitConfig(resamples=20, starts=20), range(2)))
    assert (honest[:, 2] > 0.8).all()
    monkeypatch.setattr(bench_coverage, "LEVEL", 0.1)
    narrow = np.array(bench_coverage.covered(FitConfig(resamples=20, starts=20), range(2)))
    assert (narrow[:, :4] < 0.4).all()


def test_coverage_prints_a_line_a_kind(monkeypatch, capsys):
    monkeypatch.setattr(bench_coverage, "covered", lambda config, seeds: [[0.5] * 5 for _ in seeds])
    bench_coverage.main(bench_coverage.Args(tables=4))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["iid", "stratified", "wild", "bayesian"]
    assert "50.0 ± 0.0" in lines[2]
