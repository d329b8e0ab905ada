"""The HTML page: escaped, self-contained, the same bytes each time."""

import re

import pytest
from matplotlib.figure import Figure

from fitting import figures
from fitting.report.assets import SCRIPT
from fitting.report.html import Report
from tests.fitting.laws import made_up_law


@pytest.mark.light
def test_a_page_stands_alone_and_escapes(tmp_path):
    report = Report("<b>Title</b>", "a & b", mark="made up: <i>all</i>")
    report.section("One & only", "<script>text</script>")
    report.figure("boxes", figures.parameter_boxes(made_up_law()), "c < d", 'an "alt"')
    with report.of("acc <&>"), report.folded("more"):
        report.table(["k", "v"], [["<x>", 1]], name="pairs")
    page = report.write(tmp_path).read_text()
    for text in ("<b>Title</b>", "acc <&>", "<x>", "c < d", "<i>all</i>"):
        assert text not in page
    assert "&lt;b&gt;Title&lt;/b&gt;" in page
    assert "acc &lt;&amp;&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert re.findall("<script.*?</script>", page, re.DOTALL) == [f"<script>{SCRIPT}</script>"]
    (source,) = re.findall(r'src="([^"]*)"', page)
    assert source.startswith("data:image/svg+xml;base64,")
    assert all(alt.strip() for alt in re.findall(r'<img alt="([^"]*)"', page))
    for anchor in re.findall(r'href="([^"]*)"', page):
        assert f'id="{anchor[1:]}"' in page
    assert (tmp_path / "figures" / "boxes.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "tables" / "pairs.csv").read_text() == "# made up: <i>all</i>\nk,v\n<x>,1\n"


def test_the_same_calls_give_the_same_bytes(tmp_path):
    pages = []
    for folder in ("a", "b"):
        report = Report("T")
        report.figure("boxes", figures.parameter_boxes(made_up_law()), "c", "alt")
        report.table(["k", "v"], [["x", 1]], "cap")
        report.warning("w")
        report.write(tmp_path / folder)
        pages.append({p.name: p.read_bytes() for p in (tmp_path / folder).rglob("*.*")})
    assert pages[0].keys() == {"report.html", "boxes.svg", "boxes.csv"}
    assert pages[0] == pages[1]


def test_report_refuses_bad_calls():
    report = Report("T")
    report.figure("a", Figure(), "c", "alt")
    for name, alt, message in (
        ("a", "x", "must be new"),
        ("../b", "x", "must be new"),
        ("b", " ", "alt"),
    ):
        with pytest.raises(ValueError, match=message):
            report.figure(name, Figure(), "c", alt)
    with pytest.raises(ValueError, match="row 2: 1 cells, 2 headers"):
        report.table(["a", "b"], [[1, 2], [1]])
