"""The sentences of the page, and the names of its files."""

import dataclasses

import numpy as np
import pytest
from matplotlib.collections import LineCollection

from fitting.config import FitConfig
from fitting.report import text
from fitting.report.results import Recommendation, in_percent, subject
from fitting.runs import RunTable
from tests.fitting.laws import made_up_law
from tests.fitting.report.tables import STAR, UNITS
from tests.fitting.synthetic import synthetic_table


def test_one_of_a_kind_is_named_so():
    said = "the 700k language model, 1 frame, 1 visual token a frame"
    assert text.model_text((7e5, 1, 1)) == said


def test_runs_that_are_all_alike_or_a_single_one_get_no_law_and_no_advice():
    law = FitConfig(form="add", units="geomean")
    table = synthetic_table("add", STAR, units=UNITS, metric="acc")
    alike = subject(dataclasses.replace(table, error=np.full(len(table), 75.0)), law)
    assert "All 24 runs have the same error" in alike.why
    assert text.best_text(alike) == "All 24 runs have an error of 75.0."
    assert "all 75.0. The values" in text.runs_alt(alike.table)
    one = subject(table.take([0]), law)
    assert "1 run does not determine the 7 parameters" in one.why
    assert text.best_text(one).endswith(
        "700k language model, 8 frames, 9 visual tokens a frame and 1k examples: "
        "star-N7e5-T8-V9-n1000."
    )
    assert text.best_text(one).startswith("The error of the one run is ")


@pytest.mark.parametrize(
    ("probability", "regret", "said"),
    [
        (0.99, 0.1, "Nearly all bootstrap members choose it."),
        (0.6, 0.1, "60% of the bootstrap members choose it."),
        (
            0.2,
            0.4,
            "A near tie: 20% of the bootstrap members choose it, but for 90% of them it is ",
        ),
        (0.2, 7.0, "Unsure: 20% of the bootstrap members choose it, and for 90% of them it is at "),
        (
            0.0,
            0.4,
            "A near tie: it is the best configuration of no bootstrap member, but for 90% of ",
        ),
    ],
)
def test_how_sure_a_choice_is_in_words(probability, regret, said):
    numbers = dict(budget=1e12, cost=9e11, num_examples=1e6, x=(1e9, 8, 16), error=30.0, low=28.0)
    more = dict(high=33.0, alike=1, affordable=9, outside=[])
    choice = Recommendation(probability=probability, regret=regret, **numbers, **more)
    law = made_up_law("add")
    assert said in text.choice_text(choice, law)
    assert text.path_text([choice, choice._replace(budget=2e12, x=(1e9, 8, 36))], law).endswith(
        "language model 1B throughout, frames 8 throughout, tokens 16 → 36."
    )


def test_a_single_fit_has_no_share_of_members_and_an_undefined_interval_is_left_out():
    numbers = dict(budget=1e12, cost=9e11, num_examples=1e6, x=(1e9, 8, 16), error=30.0)
    blank = dict(low=float("nan"), high=float("nan"), probability=1.0, regret=0.0)
    choice = Recommendation(**numbers, **blank, alike=1, affordable=9, outside=["n 1M is far"])
    said = text.choice_text(choice, made_up_law("add", members=1, resampling="none"))
    assert said.endswith("Predicted error 30.0. This extrapolates: n 1M is far.")


def test_file_names_are_plain_and_apart():
    names = text.file_names(["a/b", "a b", "A_b", "é", "..", "avg"])
    assert names == dict(
        zip(names, ["a_b", "a_b-2", "A_b-3", "metric", "metric-2", "avg"], strict=True)
    )
    assert text.in_order(["b", "Metrics/Avg", "a"]) == ["Metrics/Avg", "a", "b"]


def repeated_runs():
    """Return two configurations, one of them trained with two seeds; one score has no standard
    error.
    """
    rows = [("a", 8, 0, 61.0, 1.5), ("b", 8, 1, 63.0, 2.5), ("c", 16, 0, 70.0, None)]
    return RunTable.from_rows(
        dict(
            run_id=name,
            sweep="star",
            lm_params=1e9,
            num_frames=frames,
            tokens_per_frame=9,
            num_examples=1000,
            seed=seed,
            protocol="questions",
            metric="acc",
            score=score,
            score_se=spread,
        )
        for name, frames, seed, score, spread in rows
    )


def test_seeds_replicates_protocols_and_standard_errors_are_said():
    said = " ".join(text.runs_text(repeated_runs()))
    assert "3 runs of 2 configurations, 1 of them run more than once" in said
    assert "seeds: 0, 1." in said
    assert "protocol: questions." in said
    assert "known for 2 of 3 scores: 1.5 to 2.5, median 2 points of 100" in said
    plain = text.runs_text(synthetic_table("add", STAR, units=UNITS))
    assert plain == [f"{len(STAR)} runs of {len(STAR)} configurations."]


def test_the_values_of_runs_show_seeds_and_standard_errors_where_there_are_any():
    headers, rows = text.run_rows(repeated_runs(), None)
    assert headers == ["run", "sweep", "LM", "frames", "tokens", "n", "seed", "acc"]
    assert [row[-2:] for row in rows] == [
        ["0", "39.00 ± 1.50"],
        ["1", "37.00 ± 2.50"],
        ["0", "30.00"],
    ]
    shares = in_percent(dataclasses.replace(repeated_runs(), scale=1.0))
    assert shares.score_se[:2] == pytest.approx([150, 250])


def test_standard_errors_are_bars_of_the_runs_and_of_the_predictions():
    from fitting import figures

    table = repeated_runs()
    for figure, axis in (
        (figures.all_runs(table), 1),
        (figures.predicted_vs_actual(table, {"all": table.error}), 0),
    ):
        bars = [c for c in figure.axes[axis].collections if isinstance(c, LineCollection)]
        assert sum(len(bar.get_segments()) for bar in bars) == 2
