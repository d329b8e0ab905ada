"""The file of runs: exact round trips, and errors that say what to do."""

import pytest

from fitting.runs import COLUMNS, RunTable, read_runs, write_runs

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
LINE = "star-N1e9-T4-V16-n1000,star,1e9,4,16,1000,acc,51.25"


HEADER = ",".join(COLUMNS)


def csv_file(tmp_path, *lines, header=HEADER):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["# a comment", header, *lines]) + "\n")
    return path


def test_round_trip_is_exact_and_sorted(tmp_path):
    rows = [ROW | {"run_id": "b", "lm_params": 123456.5}, ROW | {"run_id": "a"}]
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    write_runs(first, rows)
    write_runs(second, read_runs(first))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().splitlines()[1:] == [
        "a,star,1000000000,4,16,1000,acc,51.2500",
        "b,star,123456.5,4,16,1000,acc,51.2500",
    ]


def test_columns_select_and_error():
    table = RunTable.from_rows([ROW, ROW | {"metric": "f1", "score": 40}, ROW | {"run_id": "z"}])
    assert table.metrics == ("acc", "f1")
    assert table.x.shape == (3, 3)
    assert list(table.select(metric="f1", sweep="star").error) == [60.0]
    with pytest.raises(ValueError, match="no runs with sweep 'isoflop'; there are star"):
        table.select(sweep="isoflop")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.replace("51.25", "high"), "line 3: column 'score' is 'high'; it must be a number"),
        (LINE.replace("51.25", "nan"), "column 'score' is 'nan'"),
        (LINE.replace("51.25", "100.5"), "'100.5'; it must be a number from 0 to 100"),
        (LINE.replace(",4,", ",0,"), "column 'num_frames' is '0'; it must be a positive number"),
        (LINE.replace("1e9,", "inf,"), "column 'lm_params' is 'inf'"),
        (LINE.replace(",star,", ", ,"), "column 'sweep' is empty"),
        (LINE + ",9", "line 3: 9 values for 8 columns"),
        (LINE + "\n" + LINE, "has metric 'acc' twice"),
    ],
)
def test_bad_rows_are_named_by_file_line_and_column(tmp_path, line, message):
    path = csv_file(tmp_path, line)
    with pytest.raises(ValueError, match=message) as caught:
        read_runs(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_frames", "num_frame", "no column 'num_frames'; is 'num_frame' misspelt?"),
        (",score", "", "no column 'score'"),
        ("score", "score,colour", "unknown column 'colour'"),
        ("metric", "sweep", "twice"),
    ],
)
def test_bad_headers_name_the_nearest_column(tmp_path, old, new, message):
    path = csv_file(tmp_path, LINE, header=HEADER.replace(old, new))
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        read_runs(path)


def test_an_empty_file_and_a_row_without_a_key(tmp_path):
    path = csv_file(tmp_path)
    with pytest.raises(ValueError, match="no runs"):
        read_runs(path)
    path.write_text("# only a comment\n")
    with pytest.raises(ValueError, match="empty"):
        read_runs(path)
    with pytest.raises(ValueError, match="row 1: no 'score'"):
        RunTable.from_rows([{k: v for k, v in ROW.items() if k != "score"}])
