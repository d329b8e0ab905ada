"""Tables of runs: exact round trips, anyone's CSV, and errors that say what to do."""

import csv
import math
import re
import string

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fitting.run_files import COLUMNS
from fitting.runs import FACTORS, LI2024, RunTable, add_runs, read_runs, write_runs

ROW = {
    "run_id": "star-N1e9-T4-V16-n1000",
    "sweep": "star",
    "lm_params": 1e9,
    "num_frames": 4,
    "tokens_per_frame": 16,
    "num_examples": 1000,
    "metric": "acc",
    "score": 51.25,
}
LINE = "star-N1e9-T4-V16-n1000,star,1e9,4,16,1000,,,acc,51.25,"
HEADER = ",".join(COLUMNS)
OLD_HEADER = "run_id,sweep,lm_params,num_frames,tokens_per_frame,num_examples,metric,score"


def csv_file(tmp_path, *lines, header=HEADER):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["# a comment", header, *lines]) + "\n", encoding="utf-8")
    return path


def fails(path, **options) -> str:
    """Return the one line that reading the file ends with."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_runs(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Tables with the default columns.


def test_round_trip_is_exact_and_sorted(tmp_path):
    known = {"seed": 3, "protocol": "questions", "score_se": 1.23456}
    rows = [ROW | {"run_id": "b", "lm_params": 123456.5} | known, ROW | {"run_id": "a"}]
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    write_runs(first, rows)
    write_runs(second, read_runs(first))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().splitlines()[1:] == [
        "a,star,1000000000,4,16,1000,,,acc,51.2500,",
        "b,star,123456.5,4,16,1000,3,questions,acc,51.2500,1.2346",
    ]
    assert list(tmp_path.glob(".partial*")) == []


def test_tables_with_other_columns_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="only tables with the columns run_id, sweep"):
        write_runs(tmp_path / "out.csv", li2024())
    assert not list(tmp_path.iterdir())


def test_columns_select_levels_and_error():
    table = RunTable.from_rows([ROW, ROW | {"metric": "f1", "score": 40}, ROW | {"run_id": "z"}])
    assert table.metrics == ("acc", "f1")
    assert (table.factors, table.examples, table.scale) == (FACTORS, "num_examples", 100.0)
    assert table.x.shape == (3, 3)
    assert list(table.weights) == [1, 1, 1]
    assert list(table.select(metric="f1", sweep="star").error) == [60.0]
    assert len(table.select(metric=None, num_frames="4.0", num_examples=1e3)) == 3
    assert table.levels("lm_params") == (1e9,)
    assert table.levels("sweep") == ("star",)
    with pytest.raises(ValueError, match="no runs with sweep 'isoflop'; there are star"):
        table.select(sweep="isoflop")
    with pytest.raises(ValueError, match=r"no column 'swep' \(the nearest is 'sweep'\)"):
        table.select(swep="star")
    with pytest.raises(ValueError, match="metric 'f1' and run_id 'z' together"):
        table.select(metric="f1", run_id="z")


def test_a_table_of_an_older_version_reads_as_before(tmp_path):
    line = "star-N1e9-T4-V16-n1000,star,1e9,4,16,1000,acc,51.25"
    table = read_runs(csv_file(tmp_path, line, header=OLD_HEADER))
    assert (table.seed, table.score_se, table.protocol) == (None, None, None)
    assert list(table.columns) == ["sweep"]
    assert table.notes == ()
    assert table.rows() == [ROW | {"seed": None, "protocol": None, "score_se": None}]
    write_runs(tmp_path / "new.csv", table)
    again = read_runs(tmp_path / "new.csv")
    assert (again.seed, again.score_se, again.protocol) == (None, None, None)


def test_seeds_protocols_and_standard_errors_are_read(tmp_path):
    first = ROW | {"seed": 1, "protocol": "questions", "score_se": 0.5}
    rows = [first, first | {"protocol": "lmms-eval-0.3.0", "score": 40, "score_se": None}]
    for table in (RunTable.from_rows(rows), written(tmp_path, rows)):
        np.testing.assert_array_equal(table.select(protocol="questions").score_se, [0.5])
        assert set(table.seed) == {1}
        assert set(table.protocol) == {"questions", "lmms-eval-0.3.0"}
        assert np.isnan(table.score_se).sum() == 1
        assert len(table.select(seed=1)) == 2
        (note,) = table.notes
        assert "scores of acc come from 2 protocols" in note
    with pytest.raises(ValueError, match="'questions' again"):
        RunTable.from_rows([first, first])


def written(tmp_path, rows) -> RunTable:
    write_runs(tmp_path / "runs.csv", rows)
    return read_runs(tmp_path / "runs.csv")


def test_a_foreign_column_of_the_same_name_may_hold_anything(tmp_path):
    path = csv_file(tmp_path, "3,wild,50", header="size,seed,score")
    table = read_runs(path, factors="size")
    assert table.seed is None
    assert list(table.column("seed")) == ["wild"]


def test_rows_are_taken_by_mask_and_by_index():
    table = RunTable.from_rows([ROW | {"run_id": name} for name in "abc"])
    assert list(table.take([2, 0]).run_id) == ["c", "a"]
    assert list(table.take(table.run_id != "b").column("run_id")) == ["a", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("51.25", "high"), r"row 1 \(line 3\): column 'score' is 'high'; it must be"),
        (LINE.replace("51.25", "nan"), "column 'score' is 'nan'"),
        (LINE.replace("51.25", "-1"), "'-1'; it must be a number from 0 to 100"),
        (LINE.replace("51.25", "100.5"), "'100.5'; it must be a number from 0 to 100"),
        (LINE.replace(",4,", ",0,"), "column 'num_frames' is '0'; it must be a positive number"),
        (LINE.replace(",4,", ",-4,"), "column 'num_frames' is '-4'"),
        (LINE.replace(",1000,", ",,"), "column 'num_examples' is ''"),
        (LINE.replace("1e9,", "inf,"), "column 'lm_params' is 'inf'"),
        (LINE.replace(",acc,", ", ,"), "column 'metric' is empty"),
        (LINE.replace(",,,", ",1.5,,"), "column 'seed' is '1.5'; it must be a whole number"),
        (LINE.replace(",,,", ",-1,,"), "column 'seed' is '-1'; it must be a whole number"),
        (LINE + "-1", "column 'score_se' is '-1'; it must be 0 or a positive number, or empty"),
        (LINE + "wide", "column 'score_se' is 'wide'"),
        (LINE + ",9", r"row 1 \(line 3\): 12 values for 11 columns"),
        (LINE + "\n\n" + LINE, r"row 2 \(line 5\): run_id 'star.*' with metric 'acc' again, first"),
        ("# nothing else", "no runs"),
    ],
)
def test_bad_rows_are_named_by_file_row_column_and_value(tmp_path, line, message):
    assert re.search(message, fails(csv_file(tmp_path, line)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_frames", "num_frame", "no column 'num_frames' (the nearest is 'num_frame')"),
        ("num_examples", "n_examples", "no column 'num_examples' (the nearest is 'n_examples')"),
        ("score", "Score", "no column 'score' (the nearest is 'Score')"),
        (",score,", ",", "no column 'score'"),
        ("metric", "sweep", "line 2: column 'sweep' appears twice"),
    ],
)
def test_bad_headers_name_the_nearest_column(tmp_path, old, new, message):
    line = LINE if new != "," else LINE.replace(",51.25", "")
    assert message in fails(csv_file(tmp_path, line, header=HEADER.replace(old, new)))


def test_rows_without_a_key_or_with_a_hole():
    with pytest.raises(ValueError, match="row 1: no 'score'"):
        RunTable.from_rows([{k: v for k, v in ROW.items() if k != "score"}])
    with pytest.raises(ValueError, match="mine, row 1: column 'score' is 'None'"):
        RunTable.from_rows([ROW | {"score": None}], "mine")


# Files that are no table.


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "runs.csv"
    assert "no such file" in fails(path)
    assert "a folder" in fails(tmp_path)
    for content, message in (
        (b"", "empty"),
        (b"# only a comment\n\n", "empty"),
        (HEADER.encode(), "no runs"),
        (b"run_id\n\xff\xfe\n", "not UTF-8"),
        (HEADER.encode("utf-16"), "not UTF-8"),
        (b'lm_params\n"' + b"x" * 200_000, "line 2: not CSV"),
    ):
        path.write_bytes(content)
        assert message in fails(path)


def test_a_spreadsheets_file_reads(tmp_path):
    path = tmp_path / "runs.csv"
    text = f'\ufeff{HEADER},remark\r\n{LINE},"two\r\nlines"\r\n\r\n# end\r\n'
    path.write_bytes(text.encode())
    table = read_runs(path)
    assert len(table) == 1
    assert table.columns["remark"][0] == "two\r\nlines"


# Anyone's table.


MINE = """# not measured: synthetic
seed, params ,layers,loss,acc,count,lr
0,1e6,4,0.5,0.25,1,a
1,1e6,4,0.5,0.26,2,a
0,1e7,8,0.25,0.5,3,b
"""


def mine(tmp_path, **options):
    path = tmp_path / "mine.csv"
    path.write_text(MINE)
    return read_runs(path, **{"factors": ("params", "layers"), "scale": 1} | options)


def test_any_columns_serve(tmp_path):
    table = mine(tmp_path, error="loss", weights="count")
    assert table.factors == ("params", "layers")
    assert (table.examples, table.n, table.scale) == (None, None, 1.0)
    assert table.x.tolist() == [[1e6, 4], [1e6, 4], [1e7, 8]]
    assert table.error.tolist() == [0.5, 0.5, 0.25]
    assert table.weights.tolist() == [1, 2, 3]
    assert table.metrics == ("loss",)
    assert table.run_id.tolist() == ["row 1", "row 2", "row 3"]
    assert sorted(table.columns) == ["acc", "lr", "seed"]
    assert table.select(lr="b").error.tolist() == [0.25]
    scored = mine(tmp_path, factors="params", examples="layers", score="acc")
    assert (scored.factors, scored.examples) == (("params",), "layers")
    assert scored.n.tolist() == [4, 4, 8]
    assert scored.error.tolist() == [0.75, 0.74, 0.5]
    grouped = mine(tmp_path, error="loss", group="lr")
    assert grouped.metrics == ("a", "b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"error": "loss", "scale": None},
            "'loss' has values from 0.25 to 0.5, never above 1; say",
        ),
        ({"score": "acc", "scale": None}, "say scale 1"),
        ({"error": "los"}, "no column 'los' (the nearest is 'loss')"),
        ({}, "no column 'score'"),
        ({"error": "loss", "factors": ()}, "at least one factor"),
        ({"error": "loss", "factors": ("params", "params")}, "'params' has two parts"),
        ({"error": "loss", "factors": ("params", "loss")}, "'loss' has two parts"),
        ({"error": "loss", "factors": ("params", "lr")}, "row 1 (line 3): column 'lr' is 'a'"),
        ({"error": "loss", "weights": "lr"}, "column 'lr' is 'a'; it must be 0 or a positive"),
        ({"error": "loss", "weights": "wait"}, "no column 'wait'"),
        ({"error": "count"}, "row 2 (line 4): column 'count' is '2'; it must be a number from 0"),
        ({"error": "loss", "metric": "a"}, "no column 'metric'"),
        ({"error": "loss", "group": "metrics"}, "no column 'metrics'"),
        ({"error": "loss", "factors": ("params", "layer")}, "(the nearest is 'layers')"),
        ({"error": "loss", "examples": "num_examples"}, "no column 'num_examples'"),
    ],
)
def test_options_that_do_not_fit_the_file(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        mine(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_options_that_fit_no_file(tmp_path):
    with pytest.raises(ValueError, match="not both"):
        mine(tmp_path, error="loss", score="acc")
    with pytest.raises(ValueError, match="scale must be a positive number, got 0"):
        mine(tmp_path, error="loss", scale=0)


def test_errors_of_at_most_one_are_points_when_that_is_said(tmp_path):
    table = mine(tmp_path, error="loss", scale=100)
    assert (table.scale, table.error.max()) == (100.0, 0.5)


def test_a_metric_is_chosen_before_anything_else_is_checked(tmp_path):
    rank = LINE.replace(",acc,51.25", ",rank,1500")
    path = csv_file(tmp_path, LINE, rank)
    assert len(read_runs(path, metric="acc")) == 1
    assert "'1500'" in fails(path)
    assert "no runs with metric 'ac' (the nearest is 'acc'); there are acc, rank" in fails(
        path, metric="ac"
    )


def test_equal_rows_without_names_are_one_run_too_many(tmp_path):
    path = csv_file(tmp_path, "1e9,2,50", "1e9,2,51", "1000000000,2,50.0", header="a,b,score")
    message = fails(path, factors=("a", "b"))
    assert "row 3 (line 5): the same values in all columns again, first in row 1" in message


def li2024():
    return read_runs(LI2024, factors=("lm_params", "visual_tokens"), error="error", scale=1)


def test_the_published_grid_of_li():
    table = li2024()
    assert LI2024.read_text().startswith("# Li et al.")
    assert len(table) == 28
    assert table.levels("lm_params") == (5e8, 1.8e9, 4e9, 7e9)
    assert table.levels("visual_tokens") == (1, 4, 16, 36, 64, 144, 576)
    error = {tuple(x): error for x, error in zip(table.x, table.error, strict=True)}
    corners = {(5e8, 1): 0.3855, (5e8, 576): 0.4320, (7e9, 1): 0.4810, (7e9, 576): 0.5354}
    for x, accuracy in (corners | {(1.8e9, 16): 0.4528, (4e9, 64): 0.5023}).items():
        assert error[x] == pytest.approx(1 - accuracy, abs=1e-12)
    assert table.error.mean() == pytest.approx(1 - 13.0982 / 28, abs=1e-6)


positive = st.floats(1e-12, 1e15)
names = st.text(string.ascii_letters + "é_ ,;\"'#", min_size=1, max_size=8).filter(
    lambda name: name.strip() == name and not name.startswith("#")
)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(data=st.data())
def test_whatever_is_written_is_read_back(tmp_path_factory, data):
    """Names, K and column order vary; values and texts come back exactly."""
    columns = data.draw(st.lists(names, min_size=3, max_size=6, unique=True), "columns")
    hypothesis.assume(not {"run_id", "metric", "num_examples"} & set(columns))
    *factors, error, text = columns
    size = data.draw(st.integers(1, 5), "runs")
    rows = [
        {
            **{name: repr(data.draw(positive)) for name in factors},
            error: repr(data.draw(st.floats(0, 100))),
            text: f"{i}{data.draw(names)}",
        }
        for i in range(size)
    ]
    path = tmp_path_factory.mktemp("any") / "a.csv"
    order = data.draw(st.permutations(columns), "order")
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write("# synthetic\n")
        writer = csv.DictWriter(file, order)
        writer.writeheader()
        writer.writerows(rows)
    table = read_runs(path, factors=factors, error=error, scale=100)
    assert table.x.tolist() == [[float(row[name]) for name in factors] for row in rows]
    assert table.error.tolist() == [float(row[error]) for row in rows]
    assert table.columns[text].tolist() == [row[text].strip() for row in rows]
    assert table.n is None


printable = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=6)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(column=st.sampled_from([*FACTORS, "num_examples", "score"]), text=printable)
def test_a_cell_is_a_good_number_or_named(tmp_path_factory, column, text):
    """A text in a number column is parsed, or the error shows it."""
    path = tmp_path_factory.mktemp("cell") / "runs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(ROW), list({**ROW, column: text}.values())])
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if 0 < value < math.inf and not (column == "score" and value > 100):
        table = read_runs(path)
        found = 100 - table.error[0] if column == "score" else table.column(column)[0]
        assert found == pytest.approx(value, rel=1e-12, abs=1e-12)
    elif not (column == "score" and value == 0):
        assert f"column {column!r} is {text.strip()!r}" in fails(path)


@hypothesis.settings(deadline=None)
@hypothesis.given(order=st.permutations(range(5)))
def test_the_same_runs_give_the_same_bytes(tmp_path_factory, order):
    rows = [ROW | {"run_id": f"r{i // 2}", "metric": f"m{i % 2}", "score": i} for i in range(5)]
    folder = tmp_path_factory.mktemp("order")
    write_runs(folder / "a.csv", rows)
    write_runs(folder / "b.csv", read_runs(folder / "a.csv").take(np.array(order)))
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()


def test_what_is_passed_over_or_looks_doubled_is_counted(tmp_path):
    other = LINE.replace("star-N1e9", "again-N1e9")
    table = read_runs(csv_file(tmp_path, LINE, f"#{LINE}", "  # a note", other))
    path = tmp_path / "runs.csv"
    assert len(table) == 2
    assert table.notes == (
        f"{path}: 2 lines that start with # were passed over, the first is line 4; a run "
        "whose name starts with # needs quotes around the name",
        f"{path}: 1 rows have the configuration, examples and value of another row; each counts",
    )
    assert read_runs(csv_file(tmp_path, LINE)).notes == ()
    header = HEADER + ",weight"
    idle = csv_file(tmp_path, LINE + ",1", LINE.replace("T4", "T5") + ",0", header=header)
    assert "1 runs have weight 0" in read_runs(idle, weights="weight").notes[0]


def test_groups_are_those_of_the_column_that_was_named(tmp_path):
    iso = LINE.replace("star", "isoflop")
    table = read_runs(csv_file(tmp_path, LINE, iso), group="sweep")
    assert table.metrics == ("isoflop", "star")
    assert table.where("sweep", "star").tolist() == [True, False]
    mixed = csv_file(tmp_path, LINE, iso, LINE.replace(",acc,", ",f1,"))
    assert "would mix the metrics acc, f1; choose one metric" in fails(mixed, group="sweep")
    assert read_runs(mixed, group="sweep", metric="acc").metrics == ("isoflop", "star")


def test_scores_of_at_most_one_are_refused_under_their_usual_name_too(tmp_path):
    path = csv_file(tmp_path, LINE.replace("51.25", "0.5"))
    assert "never above 1; say scale 1" in fails(path)
    assert read_runs(path, scale=1).error.tolist() == [0.5]


@pytest.mark.parametrize("text", ["1_000", "1e-320", "1e300"])
def test_numbers_that_no_power_survives_are_refused(tmp_path, text):
    assert f"column 'lm_params' is '{text}'" in fails(
        csv_file(tmp_path, LINE.replace("1e9,", text + ","))
    )


def test_other_marks_between_columns_are_named(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("a;b\n1;2\n")
    assert "parted by semicolons; save it with commas" in fails(path)


def test_rows_are_added_to_a_file_and_replace_those_of_the_same_run(tmp_path):
    run = dict(
        run_id="a", sweep="single", lm_params=1e9, num_frames=8, tokens_per_frame=4,
        num_examples=100, seed=0, protocol="p", metric="PT", score=50.0, score_se=1.5,
    )  # fmt: skip
    add_runs(tmp_path / "runs.csv", [run, {**run, "metric": "NQA"}])
    add_runs(tmp_path / "runs.csv", [{**run, "score": 60.0}, {**run, "protocol": "q"}])
    rows = read_runs(tmp_path / "runs.csv").rows()
    found = {(row["protocol"], row["metric"]): (row["score"], row["score_se"]) for row in rows}
    assert found == {("p", "NQA"): (50, 1.5), ("p", "PT"): (60, 1.5), ("q", "PT"): (50, 1.5)}


def test_an_error_of_writing_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write_runs(tmp_path / "gone" / "runs.csv", RunTable.from_rows([ROW]))
    assert raised.value.filename == f"{tmp_path}/gone/runs.csv"
