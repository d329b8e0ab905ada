"""The jobs of a report."""

import numpy as np
import pytest

from fitting.report.jobs import budgets, measured_domain
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table


def test_what_a_report_offers_lies_between_the_runs():
    table = synthetic_table("add", PAPER_POINTS)
    domain = measured_domain(table.take(table.x[:, 1] >= 8))
    assert domain.lm_params == tuple(np.unique(table.x[:, 0]))
    assert domain.num_frames == tuple(range(8, int(table.x[:, 1].max()) + 1))
    assert set(domain.tokens_per_frame) >= {4, 9, 16, 25, 36, 49, 64}


@pytest.mark.parametrize(
    ("measured", "offered", "found"),
    [
        ([3.0, 70.0], [3.0, 70.0], [5, 10, 20, 50]),
        ([2.001, 9.0], [2.001, 9.0], [2.001, 5]),  # 2 would not pay for the cheapest
        ([2.001, 9.0], [1.5, 9.0], [2, 5]),
        ([4.0, 4.0], [4.0], [4.0]),
        ([1.0, 9e6], [1.0], [1, 20, 500, 10_000, 200_000, 5e6]),
    ],
)
def test_budgets_are_round_and_pay_for_something(measured, offered, found):
    assert budgets(np.array(measured), np.array(offered), 6) == pytest.approx(found)
