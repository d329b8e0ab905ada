"""`python -m tools.bench.bench_frontier`: and agreement with brute force."""

import numpy as np
import pytest

from tests.fitting.laws import made_up_law
from tools.bench import bench_frontier as bench


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "LEVELS", ((1e9, 7.5e9), range(1, 13), [1, 9, 36]))
    made_up_law(members=6).save(tmp_path)
    return bench.Args(tmp_path, repeats=1, quick=True)


def test_it_prints_a_table_and_that_both_agree(small, capsys):
    bench.main(small)
    shown = capsys.readouterr().out
    assert "30 budgets x 10 data sizes x 6 members over 72 configurations" in shown
    assert "x* the same in 300 of 300" in shown


def test_it_fails_when_they_do_not(small, monkeypatch):
    true = bench.brute_force

    def wrong(*task):
        error, index = true(*task)
        return error, np.where(index == index.max(), 0, index)

    monkeypatch.setattr(bench, "brute_force", wrong)
    with pytest.raises(SystemExit, match="differs from brute force"):
        bench.main(small)


def test_the_twin_has_the_papers_runs():
    table = bench.twin()
    assert len(table) == 88
    assert table.metrics == ("synthetic",)
    assert ((table.error > 20) & (table.error < 90)).all()
