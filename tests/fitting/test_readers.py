"""Files and data frames that hold a table of runs, and what of them is a comment."""

import gzip
import re
import sys
import zipfile

import pandas
import pyarrow
import pytest

from fitting import readers
from fitting.runs import read_runs

HEADER = "run_id,size,score,remark"
ROWS = ["a,1e6,50,", "b,2e6,51.5,wide"]
OPTIONS = dict(factors="size", score="score")


def written(path, *lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def fails(source, **options) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        read_runs(source, **OPTIONS | options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def workbook(path, *rows, sheets=("runs",)):
    """Return a workbook of inline texts and numbers, as few parts as a reader needs."""

    def cell(value):
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        return f"<c><v>{value!r}</v></c>"

    names = enumerate(sheets, start=1)
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    lines = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    link = '<Relationship Id="rId{0}" Type="' + office + '/{1}" Target="{2}"/>'
    sheet_links = "".join(link.format(1, "worksheet", "worksheets/sheet1.xml") for _ in sheets[:1])
    listed = "".join(f'<sheet name="{name}" sheetId="{i}" r:id="rId1"/>' for i, name in names)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("[Content_Types].xml", f'<Types xmlns="{package}/content-types"/>')
        file.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships">'
            + link.format(1, "officeDocument", "xl/workbook.xml")
            + "</Relationships>",
        )
        file.writestr(
            "xl/workbook.xml",
            f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{listed}</sheets></workbook>',
        )
        file.writestr(
            "xl/_rels/workbook.xml.rels",
            f'<Relationships xmlns="{package}/relationships">{sheet_links}</Relationships>',
        )
        file.writestr(
            "xl/worksheets/sheet1.xml",
            f'<worksheet xmlns="{main}"><sheetData>{lines}</sheetData></worksheet>',
        )
    return path


def test_every_kind_of_file_holds_the_same_table(tmp_path):
    plain = read_runs(written(tmp_path / "a.csv", *ROWS), **OPTIONS)
    text = "\n".join([HEADER, *ROWS])
    marked = tmp_path / "b.csv"
    marked.write_bytes(("\ufeffsep=;\r\n" + text.replace(",", ";")).encode())
    tabbed = tmp_path / "c.csv"
    tabbed.write_text("sep=\t\n" + text.replace(",", "\t"))
    packed = tmp_path / "d.csv.gz"
    with gzip.open(packed, "wt") as file:
        file.write(text)
    rows = ["a", 1e6, 50.0, ""], ["b", 2e6, 51.5, "wide"]
    book = workbook(tmp_path / "e.xlsx", ["# synthetic"], [], HEADER.split(","), *rows)
    for path in (marked, tabbed, packed, book):
        table = read_runs(path, **OPTIONS)
        assert table.x.tolist() == plain.x.tolist() == [[1e6], [2e6]]
        assert table.error.tolist() == [50, 48.5]
        assert table.run_id.tolist() == ["a", "b"]
        assert table.columns["remark"].tolist() == ["", "wide"]
        assert table.notes == ()
    assert readers.comments(book) == ["# synthetic"]
    assert readers.comments(tmp_path / "nowhere.csv") == []


def test_a_data_frame_is_a_table(tmp_path):
    columns = dict(run_id=["a", "b"], size=[1e6, 2e6], score=[50, 51.5], remark=[None, "wide"])
    for frame in (pandas.DataFrame(columns), pyarrow.table(columns), columns):
        table = read_runs(frame, **OPTIONS)
        assert table.x.tolist() == [[1e6], [2e6]]
        assert table.columns["remark"].tolist() == ["", "wide"]
        assert table.source == type(frame).__name__
    holes = pandas.DataFrame(columns | {"score": [50, float("nan")]})
    assert fails(holes).startswith("DataFrame, row 2: column 'score' is ''; it must be a number")
    assert len(read_runs(holes, **OPTIONS, skip_missing=True)) == 1
    assert "different lengths" in fails({"size": [1], "score": [1, 2]})
    assert "every column must be a list" in fails({"size": 1})
    assert "a path, a data frame or a mapping of columns; got int" in fails(7)


def test_names_that_start_with_the_mark_of_comments(tmp_path):
    path = written(tmp_path / "a.csv", "#12,1e6,50,", "# 13,1e6,50,", "#14,2e6,51,", "#end")
    table = read_runs(path, **OPTIONS)
    assert table.run_id.tolist() == ["#12", "#14"]
    assert table.notes[0].endswith(
        "2 lines that start with # were passed over, the first is line 3"
    )
    mixed = read_runs(written(tmp_path / "b.csv", "a,1e6,50,", "#14,2e6,51,"), **OPTIONS)
    assert mixed.run_id.tolist() == ["a"]
    assert "a run whose name starts with # needs quotes around the name" in mixed.notes[0]
    quoted = read_runs(written(tmp_path / "c.csv", "a,1e6,50,", '"#14",2e6,51,'), **OPTIONS)
    assert quoted.run_id.tolist() == ["a", "#14"]
    assert quoted.notes == ()


def test_a_mark_inside_a_quoted_cell_begins_no_comment(tmp_path):
    path = written(tmp_path / "a.csv", 'a,1e6,50,"two', '# lines"', '# a "remark', ROWS[1])
    table = read_runs(path, **OPTIONS)
    assert table.columns["remark"].tolist() == ["two\n# lines", "wide"]
    assert "1 line that starts with # was passed over, the first is line 4" in table.notes[0]


def test_files_that_are_not_what_their_name_says(tmp_path, monkeypatch):
    packed, book = tmp_path / "a.csv.gz", tmp_path / "a.xlsx"
    packed.write_text(HEADER)
    book.write_text(HEADER)
    assert f"{packed}: not a whole gzip file" in fails(packed)
    assert f"{book}: not a workbook" in fails(book)
    packed.write_bytes(gzip.compress(HEADER.encode() * 50)[:-12])
    assert "not a whole gzip file" in fails(packed)
    with pytest.raises(FileNotFoundError, match=r"b\.xlsx: no such file"):
        read_runs(tmp_path / "b.xlsx")
    sheets = workbook(book, HEADER.split(","), ["a", 1e6, 50, ""], sheets=("runs", "old"))
    assert "sheet 'runs' is read, of 2: runs, old" in read_runs(sheets, **OPTIONS).notes[0]
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    assert "pip install python-calamine; or save it as CSV" in fails(book)


def test_exact_copies_are_named_and_left_out_on_request(tmp_path):
    path = written(tmp_path / "a.csv", *ROWS, "a,1000000,50.0,", "b,2e6,51.5,wide")
    message = fails(path)
    assert (
        "row 3 (line 4): run_id 'a' with metric 'score' again, first in row 1 (line 2)" in message
    )
    assert message.endswith("skip_duplicates (--skip-duplicates) leaves out exact copies")
    table = read_runs(path, **OPTIONS, skip_duplicates=True)
    assert table.run_id.tolist() == ["a", "b"]
    assert re.search(
        r"2 rows are exact copies .* first is row 3 \(line 4\), of row 1 \(line 2\)", table.notes[0]
    )
    other = written(tmp_path / "b.csv", *ROWS, "a,1e6,49,")
    assert "skip_duplicates" not in fails(other)
    assert "run_id 'a'" in fails(other, skip_duplicates=True)


def test_a_standard_error_that_is_no_number_is_unknown_and_told(tmp_path):
    lines = ["a,s,1e9,4,16,1000,m,50,0.5", "b,s,1e9,8,16,1000,m,51,nan", "c,s,1e9,9,16,9,m,51,"]
    header = "run_id,sweep,lm_params,num_frames,tokens_per_frame,num_examples,metric,score,score_se"
    table = read_runs(written(tmp_path / "a.csv", *lines, header=header))
    assert [str(se) for se in table.score_se] == ["0.5", "nan", "nan"]
    assert "score_se is no number in 1 of 3 runs: unknown there" in table.notes[0]
