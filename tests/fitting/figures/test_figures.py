"""The figures hold what they say: data in artists, labels, panels; one line for the impossible."""

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest

from fitting import figures
from fitting.config import FitConfig
from fitting.cost import PAPER, ActualFlops
from fitting.elasticities import Elasticity
from fitting.figures.style import drawn, stacked, to_svg
from fitting.fits import fit
from fitting.frontiers import Frontier, empirical_frontier
from fitting.runs import FACTORS, LI2024, read_runs
from fitting.validation import Comparison, Entry, Validation
from tests.fitting.laws import any_law, made_up_law
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table, table_of


def paper_table(metric="synthetic", seed=0):
    return synthetic_table("add-interact", PAPER_POINTS, noise=0.01, seed=seed, metric=metric)


@pytest.fixture(scope="module")
def table():
    return paper_table()


@pytest.fixture(scope="module")
def law():
    return made_up_law(spread=0.05)


@pytest.fixture(scope="module")
def li():
    return read_runs(LI2024, factors=("lm_params", "visual_tokens"), error="error", scale=1)


@pytest.fixture(scope="module")
def li_law(li):
    return fit(li, FitConfig("li", resamples=3, starts=8, space="linear"))


def points(axis) -> set:
    """Return (x, y) of every drawn line, rounded."""
    found = [np.column_stack([np.ravel(v) for v in line.get_data()]) for line in axis.lines]
    return {(f"{x:.6g}", f"{y:.6g}") for x, y in np.concatenate(found)}


def as_set(x, y) -> set:
    return {(f"{a:.6g}", f"{b:.6g}") for a, b in zip(x, y, strict=True)}


def two_metrics():
    one, other = paper_table("a"), paper_table("b", seed=1)
    rows = [
        dict(
            run_id=t.run_id[r],
            sweep=t.columns["sweep"][r],
            **dict(zip(FACTORS, t.x[r], strict=True)),
            num_examples=t.n[r],
            metric=t.metric[r],
            score=100 - t.error[r],
        )
        for t in (one, other)
        for r in range(len(t))
    ]
    return type(one).from_rows(rows)


@pytest.mark.light
def test_all_runs_shows_the_star_by_factor_and_the_rest_by_cost(table):
    figure = figures.all_runs(table, PAPER)
    *arms, last = figure.axes
    star, rest = table.select(sweep="star"), table.select(sweep="isoflop")
    for k, axis in enumerate(arms):
        assert len(axis.lines) == 3  # one a data size
        assert points(axis) <= as_set(star.x[:, k], star.error)
        assert {float(x) for x, _ in points(axis)} == set(star.levels(FACTORS[k]))
    assert points(last) == as_set(PAPER(rest.x) / 1e12, rest.error)
    assert last.get_xlabel() == "inference cost (TFLOPs)"
    assert arms[0].get_ylabel() == "error (0 to 100)"
    texts = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert texts == ["n = 250k", "n = 500k", "n = 1M", "LM 1B", "LM 2.8B", "LM 7.5B"]


def test_all_runs_has_a_row_a_metric_and_names_it():
    table = two_metrics()
    figure = figures.all_runs(table, PAPER)
    assert len(figure.axes) == 2 * 4
    assert figure.axes[4].get_ylabel() == "b: error (0 to 100)"
    assert [axis.get_title() for axis in figure.axes] == ["star"] * 3 + ["isoflop"] + [""] * 4
    rest = table.select(metric="b", sweep="isoflop")
    assert points(figure.axes[7]) == as_set(PAPER(rest.x) / 1e12, rest.error)


def test_a_table_without_sweeps_and_n_has_no_empty_panel(li):
    figure = figures.all_runs(li)
    assert len(figure.axes) == 2
    assert [len(axis.lines) for axis in figure.axes] == [7, 4]
    for k, axis in enumerate(figure.axes):
        assert points(axis) == as_set(li.x[:, k], li.error)
    assert figure.axes[1].get_xlabel() == "visual tokens"
    assert [t.get_text() for t in figure.axes[1].texts] == ["500M", "1.8B", "4B", "7B"]
    assert figure.axes[0].get_ylabel() == "error (0 to 1)"


def test_contours_hold_the_laws_surface_and_the_measured_dots(table, law):
    figure = figures.iso_performance(law, table)
    *panels, bar = figure.axes
    assert len(panels) == 3
    assert bar.get_ylabel() == "error (0 to 100)"
    middle = figures.center(table)
    assert list(middle) == [7.5e9, 32, 196]
    for k, axis in enumerate(panels):
        dots = axis.collections[-1]
        at_center = table.take(figures.along(table, middle, k))
        places = dots.get_offsets().data
        drawn = set(zip(*places.T, dots.get_array(), strict=True))
        assert drawn == set(zip(at_center.x[:, k], at_center.n, at_center.error, strict=True))
        lines = axis.collections[1]  # white contours
        level = int(np.argmax([len(path.vertices) for path in lines.get_paths()]))
        vertices = lines.get_paths()[level].vertices
        x = np.tile(middle, (len(vertices), 1))
        x[:, k] = vertices[:, 0]
        said = law.predict(x, vertices[:, 1])
        np.testing.assert_allclose(said, lines.levels[level], atol=0.3)
    assert panels[0].get_title() == "at frames = 32, tokens = 196"


def test_contours_of_several_laws_are_rows_and_of_laws_without_n_pairs(table, law, li, li_law):
    assert len(figures.iso_performance([law, law], table).axes) == 2 * 3 + 2
    figure = figures.iso_performance(li_law, li)
    panel, _ = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == (
        "language-model parameters",
        "visual tokens",
    )
    assert len(panel.collections[-1].get_offsets()) == 28


def test_contours_that_leave_the_scale_are_marked(table, law):
    def levels(law):
        panel = figures.iso_performance(law, table).axes[0]
        return [list(c.levels) for c in panel.collections if hasattr(c, "levels")]

    assert [50.0] in levels(dataclasses.replace(law, scale=50.0))
    assert [100.0] not in levels(law)


def test_contours_need_two_columns_that_vary():
    alone = any_law(1, size=12)
    with pytest.raises(ValueError, match="contours need runs that vary in two factors.*x1"):
        figures.iso_performance(alone, table_of(alone.runs.error, alone.runs.z, metric="synthetic"))


def test_isoflop_panels_hold_runs_curves_and_the_best(table, law):
    figure = figures.isoflop_curves(law, table, PAPER)
    *panels, last = figure.axes
    assert [axis.get_title() for axis in panels] == ["1B LM", "2.8B LM", "7.5B LM"]
    runs = table.select(sweep="isoflop")
    for axis, size in zip(panels, (1e9, 2.8e9, 7.5e9), strict=True):
        mine = runs.take(runs.x[:, 0] == size)
        assert as_set(mine.x[:, 2], mine.error) <= points(axis)
        said = law.predict(mine.x, mine.n)  # the curves pass over their own runs
        known = {(float(x), float(y)) for x, y in points(axis)}
        for x, y in zip(mine.x[:, 2], said, strict=True):
            assert any(abs(np.log(a / x)) < 0.06 and abs(b - y) < 0.8 for a, b in known)
    best = empirical_frontier(runs, PAPER)
    rings = next(line for line in last.lines if line.get_label() == "best measured")
    np.testing.assert_allclose(rings.get_data(), [best.cost / 1e12, best.error])
    crosses = next(line for line in last.lines if line.get_label() == "the law there")
    np.testing.assert_allclose(crosses.get_ydata(), law.predict(best.x, best.num_examples))
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert [text.split()[0] for text in texts] == ["about"] * 4
    assert texts[-1] == "about 30 TFLOPs"


def test_isoflop_curves_are_named_by_their_budget_where_the_table_has_it(table, law):
    groups = figures.cost_groups(PAPER(table.x))
    budgets = np.array(["2e12", "5e12", "1.5e13", "3e13", "5e13", "1e14"])[groups % 6]
    named = dataclasses.replace(table, columns={**table.columns, "budget": budgets})
    figure = figures.isoflop_curves(law, named, PAPER)
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    groups = figures.cost_groups(PAPER(named.select(sweep="isoflop").x))
    meant = dict(zip(groups, named.select(sweep="isoflop").columns["budget"], strict=True))
    for curve, text in enumerate(texts):
        assert text == f"{float(meant[curve]) / 1e12:g} TFLOPs"


def test_isoflop_curves_need_such_runs_and_two_factors(table, law, li, li_law):
    with pytest.raises(ValueError, match="li2024.csv: no runs with sweep 'isoflop'"):
        figures.isoflop_curves(li_law, li, PAPER)
    one = any_law(1)
    with pytest.raises(ValueError, match="trade two or more factors; there is x1"):
        figures.isoflop_curves(one, table_of(one.runs.error, one.runs.z), PAPER)


def test_parameter_boxes_hold_the_members_and_grey_marks_the_undetermined():
    law = made_up_law(members=21, spread=0.2, failed=1)
    figure = figures.parameter_boxes(law)
    for axis, part in zip(figure.axes, (~law.is_exponent, law.is_exponent), strict=True):
        names = [label.get_text() for label in axis.get_xticklabels()]
        assert len(names) == part.sum()
        medians = [line.get_ydata()[0] for line in axis.lines if line.get_linewidth() == 2]
        np.testing.assert_allclose(medians, np.nanmedian(law.values[:, part], axis=0))
        crosses = next(line for line in axis.lines if line.get_marker() == "x")
        np.testing.assert_allclose(crosses.get_ydata(), law.readable(law.whole.theta[0])[part])
    faces = {tuple(np.round(box.get_facecolor()[:3], 2)) for a in figure.axes for box in a.patches}
    assert len(faces) == 2  # this spread determines some of them
    assert figure.axes[0].get_yscale() == "symlog"
    low = np.nanquantile(law.values[:, ~law.is_exponent], 0.05, axis=0).min()
    assert low / 10 < figure.axes[0].get_ylim()[0] < low  # no term is absent: no 0
    assert figure.axes[0].yaxis.get_transform().linthresh <= low


def test_parameter_boxes_refuse_a_degenerate_law(li):
    config = FitConfig("li", resamples=2, starts=32, space="linear", free_floor=True)
    law = fit(li, config)
    assert law.degenerate
    with pytest.raises(ValueError, match="mean nothing"):
        figures.parameter_boxes(law)


def test_predictions_stand_against_measurements(table, law):
    predicted = law.predict(table.x, table.n)
    some = np.where(table.column("sweep") == "star", predicted, np.nan)
    figure = figures.predicted_vs_actual(table, {"all": predicted, "star only": some})
    star = table.column("sweep") == "star"
    whole, part = figure.axes
    assert as_set(table.error, predicted) <= points(whole)
    drawn = next(line for line in part.lines if line.get_label() == "star")
    assert as_set(*drawn.get_data()) == as_set(table.error[star], predicted[star])
    assert not [line for line in part.lines if line.get_label() == "isoflop"]
    assert part.get_xlim() == part.get_ylim()
    assert list(part.get_xticks()) == list(part.get_yticks())
    mse = np.mean((predicted[star] - table.error[star]) ** 2)
    assert f"MSE = {mse:.3g}" in part.texts[0].get_text()
    with pytest.raises(ValueError, match="empty: no run is predicted"):
        figures.predicted_vs_actual(table, {"empty": np.full(len(table), np.nan)})


def comparison(table, law, factor):
    """Return two forms whose predictions are off by a known share."""
    everything = np.ones((1, len(table)), bool)
    entries = [
        Entry(
            name,
            law,
            tuple(
                Validation(split, table.error * (1 + off), table.error, everything, everything, ())
                for split in ("5-fold", "there")
            ),
        )
        for name, off in (("add", factor), ("mult", 2 * factor))
    ]
    return Comparison(tuple(entries), table, "there")


def test_errors_by_task_are_percent_of_each_form(table, law):
    figure = figures.errors_by_task(
        {"first": comparison(table, law, 0.01), "second": comparison(table, law, 0.03)}
    )
    assert [axis.get_title() for axis in figure.axes] == ["5-fold", "there"]
    for axis in figure.axes:
        values = [line.get_xdata() for line in axis.lines]
        np.testing.assert_allclose(values, [[1, 3], [2, 6]])
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["first", "second"]


def a_frontier(num_examples=(1e6, 2e6)):
    budgets, n = np.array([1e12, 5e12, 2e13]), np.array(num_examples)
    x = np.full((3, len(n), 3), np.nan)
    x[1:] = np.array([[2.8e9, 4, 16], [7.5e9, 16, 49]])[:, None] * [1, 1, 1]
    x[2, -1, 2] = 100
    blank = np.where(np.isnan(x[..., 0]), np.nan, 1.0)
    return Frontier(budgets, n, x, blank * 40, blank * 1e12)


def a_change(shift=0.0):
    values = np.tile([-0.2, 0.1, 0.8], (3, 2, 1)) + shift
    members = np.array([[-0.4, 0.0, 0.5], [0.0, 0.2, 1.1]])
    return Elasticity(np.ones(3), np.array([1e6, 2e6]), 5e6, values, members)


def test_skewed_errors_by_task_stand_on_a_log_axis(table, law):
    tasks = {
        name: comparison(table, law, off) for name, off in zip("abcd", (1, 1, 1, 40), strict=True)
    }
    even = {name: tasks[name] for name in "abc"}
    assert {axis.get_xscale() for axis in figures.errors_by_task(even).axes} == {"linear"}
    figure = figures.errors_by_task(tasks)
    for axis in figure.axes:
        assert axis.get_xscale() == "log"
        assert axis.get_xlim()[0] < 100 < 8000 < axis.get_xlim()[1]


def test_frontier_paths_are_the_frontier_with_gaps_where_nothing_is_affordable():
    best = a_frontier()
    figure = figures.frontier_paths(best, FACTORS, a_change())
    *panels, last = figure.axes
    assert len(panels) == 3
    for k, axis in enumerate(panels):
        for m, line in enumerate(axis.lines):
            np.testing.assert_array_equal(line.get_ydata(), best.x[:, m, k])
            np.testing.assert_array_equal(line.get_xdata(), [1, 5, 20])
        widths = [line.get_linewidth() for line in axis.lines]
        assert widths[0] > widths[1]  # where they coincide, both are seen
        assert axis.get_xlabel() == "inference budget (TFLOPs)"
    bars = [line.get_ydata() for line in last.lines if line.get_linewidth() == 2.5]
    np.testing.assert_allclose(bars, np.transpose(a_change().interval()))
    texts = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert texts == ["n = 1M", "n = 2M", "N: mean −0.20", "T: mean +0.10", "V: mean +0.80"]


def test_elasticities_beyond_the_runs_are_open_and_zeros_look_like_zeros():
    def panel(change, **fitted):
        return figures.frontier_paths(a_frontier(), FACTORS, change, **fitted).axes[-1]

    far = a_change()
    far.values[:, 1] = 40.0
    axis = panel(far, fitted_n=(1e6, 6e6))  # 1M + 5M is inside, 2M + 5M is not
    solid = [line.get_xdata() for line in axis.lines if "mean" in str(line.get_label())]
    assert [list(x) for x in solid] == [[1e6]] * 3
    assert axis.texts[-1].get_text() == "open: beyond the runs"
    inside = a_change()
    assert not [t for t in panel(inside).texts if "open" in t.get_text()]
    far.values[:, 0] = inside.values[:, 0]
    low, high = panel(dataclasses.replace(inside, values=far.values), fitted_n=(1, 1)).get_ylim()
    assert high > 40  # nothing else there to set the axis
    nothing = dataclasses.replace(far, values=far.values * 1e-5, members=far.members * 1e-5)
    assert panel(nothing).get_ylim() == (-0.05, 0.05)
    figure = figures.elasticity_by_task({"a": nothing}, FACTORS)
    assert figure.axes[0].get_xlim() == (-0.05, 0.05)


def test_frontier_paths_in_another_unit_and_without_n():
    figure = figures.frontier_paths(a_frontier([np.nan]), ("a", "b_c", "d"), unit="ms")
    assert [axis.get_title() for axis in figure.axes] == ["best a", "best b c", "best d"]
    assert figure.axes[0].get_xlabel() == "inference budget (ms)"
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [1e12, 5e12, 2e13])
    assert not figure.legends
    poor = a_frontier()
    poor.cost[:] = np.nan
    with pytest.raises(ValueError, match="no budget up to 2e"):
        figures.frontier_paths(poor, FACTORS)


def test_elasticity_by_task_shows_mean_and_interval():
    figure = figures.elasticity_by_task({"one": a_change(), "two": a_change(0.5)}, FACTORS)
    assert len(figure.axes) == 3
    low, high = a_change().interval()
    for k, axis in enumerate(figure.axes):
        _, bar, dot, _, other = axis.lines
        np.testing.assert_allclose(bar.get_xdata(), [low[k], high[k]])
        np.testing.assert_allclose(dot.get_xdata(), a_change().mean[k])
        np.testing.assert_allclose(other.get_xdata(), a_change(0.5).mean[k])
        assert (dot.get_ydata()[0], other.get_ydata()[0]) == (0, 1)


def test_vision_share_follows_equation_1(table):
    figure = figures.vision_share(PAPER, [1e9, 7.5e9], [1, 729], table)
    axis, bar = figure.axes
    lines = axis.collections[1]
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        if not len(path.vertices):
            continue
        x_N, x_V = path.vertices.T
        share = 100 * 0.43e9 * 768 / (0.43e9 * 768 + x_N * x_V)
        np.testing.assert_allclose(share, level, atol=0.1)
    assert "(%)" in bar.get_ylabel()
    shown = {text.get_text() for text in axis.texts if text.get_visible()}
    assert shown == {f"{share}%" for share in range(40, 100, 10)} | {"10%", "20%", "30%"}
    with pytest.raises(ValueError, match="needs equation 1"):
        figures.vision_share(ActualFlops(), [1, 2], [1, 2])
    with pytest.raises(ValueError, match="two values of lm_params"):
        figures.vision_share(PAPER, [1e9], [1, 2])


@pytest.mark.parametrize(("num_factors", "with_n"), [(1, True), (2, True), (2, False), (4, False)])
def test_any_number_of_factors_is_drawn_without_a_warning(num_factors, with_n):
    law = any_law(num_factors, with_n=with_n)
    z = law.runs.z
    table = table_of(
        law.runs.error, z[:, :num_factors], z[:, -1] if with_n else None, metric=law.metric
    )
    table = type(table)(**{**vars(table), "factors": law.factors})
    pairs = num_factors if with_n else num_factors * (num_factors - 1) // 2
    contours = figures.iso_performance(law, table)
    assert len(contours.axes) == pairs + 1
    runs = figures.all_runs(table, lambda x: x.prod(axis=-1))
    assert len(runs.axes) == num_factors + 1
    boxes = figures.parameter_boxes(law)
    assert sum(len(a.get_xticklabels()) for a in boxes.axes) == len(law.parameters)
    for figure in (contours, runs, boxes):
        assert to_svg(figure).startswith(b"<?xml")


def test_what_a_figure_shows_is_kept_with_it(table, law):
    predicted = law.predict(table.x, table.n)
    figure = figures.predicted_vs_actual(table, {"all": predicted})
    picture = drawn(figure, title="a$b", mark="Synthetic data: made up")
    rows = [dict(zip(picture.header, row, strict=True)) for row in picture.rows]
    kept = {row["run_id"]: (row["error"], row["predicted"], row["num_frames"]) for row in rows}
    columns = zip(table.run_id, table.error, predicted, table.x[:, 1], strict=True)
    assert kept == {name: tuple(values) for name, *values in columns}
    assert picture.svg.count("<!-- a$b · Synthetic data -->".encode()) == 1
    # The pointer finds a run where it is drawn: rightwards with its error, upwards as predicted.
    across, down = np.array([mark[:2] for mark in picture.marks]).T
    names = [mark[2].split("\n")[0] for mark in picture.marks]
    for place, value in ((across, 0), (-down, 1)):
        slope, start = np.polyfit([kept[name][value] for name in names], place, 1)
        fitted = [slope * kept[name][value] + start for name in names]
        np.testing.assert_allclose(place, fitted, atol=1e-9)
        assert slope > 0
    assert all(0 < x < 1 and 0 < y < 1 for x, y, _ in picture.marks)


def test_figures_below_one_another_are_one(table, law):
    one = drawn(figures.parameter_boxes(law))
    two = drawn(figures.all_runs(table, PAPER))
    both = stacked([one, two])
    assert both.height == pytest.approx(one.height + two.height)
    inner = [e for e in ElementTree.fromstring(both.svg) if e.tag.endswith("}svg")]
    assert [e.get("y") for e in inner] == ["0", str(round(72 * one.height))]
    assert len(both.rows) == len(one.rows) + len(two.rows)
    assert {"parameter", "run_id"} <= set(both.header)


def test_cost_groups_split_at_gaps():
    groups = figures.cost_groups(np.array([31.0, 2.0, 30.0, 2.1, 5.0]))
    assert list(groups) == [2, 0, 2, 0, 1]
