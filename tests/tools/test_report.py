"""`vvlm report`: a page that stands alone, opened in a browser; one line for bad input."""

import csv
import dataclasses
import gc
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import tyro

from fitting.run_files import COLUMNS
from fitting.runs import write_runs
from tests.browser import CHROMIUM, browser
from tests.fitting.report.tables import COST, HEADER, POINTS, STAR, UNITS, lines_of, write
from tests.fitting.synthetic import synthetic_table
from tools import report as command
from tools.common import die_in_one_line
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import Job, Store
from vvlm_jax.sweep.table import collect

EVIL = 'acc $x^{ <img src="x" onerror="window.pwned=1">'
METRICS = ("Metrics/Avg", EVIL, "vqa")
QUICK = ("--form", "add", "--resamples", "5", "--starts", "8", "--workers", "1")
EQUATION = ("--vision-params", "60000", "--features", "16")


def report(*words):
    """Run the command in this process."""
    command.main(tyro.cli(command.Args, args=[str(word) for word in words]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a report of three metrics with the appendix, of two forms and two variations."""
    from fitting import ablations

    folder = tmp_path_factory.mktemp("report")
    lines = [line for seed, m in enumerate(METRICS) for line in lines_of(POINTS, m, seed)]
    first = next(line for line in lines if ",star," in line and '"vqa"' in line)
    lines[lines.index(first)] = first.rsplit(",", 1)[0] + ","  # a score that is missing
    runs = write(folder / "runs.csv", lines)
    with pytest.MonkeyPatch.context() as patch:
        whole, some = command.settings_of, ablations.variations
        few = dict(forms=("mult", "add"))  # the others compile for long
        patch.setattr(command, "settings_of", lambda *a: dataclasses.replace(whole(*a), **few))
        patch.setattr(ablations, "variations", lambda c: dict(list(some(c).items())[2:4]))
        report(runs, "--out", folder / "out", *QUICK, *EQUATION, "--skip-missing")
    return folder


def rows_of(path):
    with path.open() as file:
        first = file.readline()
        return first, list(csv.DictReader(file))


def test_every_figure_and_table_of_the_paper_is_there(made):
    page = (made / "out" / "report.html").read_text()
    for number in (1, 2, "3a", "3b", "3c", 4, 5, 6, 7):
        assert f"As the paper&#x27;s Figure {number}:" in page
    for number in (8, 9, 10):
        assert f"The paper&#x27;s Figure {number} shows this figure for every task" in page
        assert len([*(made / "out" / "figures").glob(f"figure{number}_*_by_task.svg")]) == 1
    for number in (2, 8, 9, 10):
        assert f"As the paper&#x27;s Table {number}" in page
        assert (made / "out" / "tables" / f"table{number}.csv").is_file()
    drawn = sorted(path.stem for path in (made / "out" / "figures").glob("*.svg"))
    assert drawn == sorted(path.stem for path in (made / "out" / "figures").glob("*.csv"))
    assert len(drawn) == 6 * len(METRICS) + 3 + 3
    assert page.count("Computed for Metrics/Avg alone") == 2 * 2  # Tables 8 and 9, Table 10
    assert "1 rows have no score" in page


def test_a_csv_holds_what_its_figure_shows(made):
    first, rows = rows_of(made / "out" / "figures" / "figure7_runs-vqa.csv")
    assert first == "# Synthetic data: made up by a program, not measured.\n"
    shown = {row["run_id"]: float(row["error"]) for row in rows}
    table = synthetic_table("add", POINTS, noise=0.01, seed=2, units=UNITS, metric="vqa")
    true = {f"<b>{i}</b>": e for i, e in zip(table.run_id, table.error, strict=True)}
    assert len(shown) == len(true) - 1  # one has no score
    assert shown == pytest.approx({name: true[name] for name in shown}, abs=1e-5)
    _, rows = rows_of(made / "out" / "figures" / "figure8_runs_by_task.csv")
    assert {row["metric"] for row in rows} == set(METRICS)
    _, rows = rows_of(made / "out" / "tables" / "table2.csv")
    assert [(row["metric"], row["form"]) for row in rows[:2]] == [
        ("Metrics/Avg", "mult"),
        ("Metrics/Avg", "add"),
    ]
    assert all(float(row["isoFLOP E%"]) > 0 for row in rows)
    assert float(rows[1]["CV MSE"]) < float(rows[0]["CV MSE"])  # the truth is add
    _, rows = rows_of(made / "out" / "tables" / "table10.csv")
    assert len(rows) == 6 + 5 + 6 + 12


def test_what_is_read_is_escaped_and_synthetic_is_said(made):
    page = (made / "out" / "report.html").read_text()
    assert EVIL not in page
    assert "<b>star" not in page
    assert "acc $x^{ &lt;img src=&quot;x&quot;" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert 'class="banner" role="note">Synthetic data' in page
    svg = (made / "out" / "figures" / "figure7_runs-vqa.svg").read_text()
    plain = (made / "out" / "figures" / "figure8_runs_by_task.svg").read_text()
    assert svg.count("Synthetic data -->") == 1
    assert plain.count("Synthetic data -->") == len(METRICS)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_works_in_a_browser(made, tmp_path):
    page = made / "out" / "report.html"
    with browser(tmp_path) as b:
        b.open(page, 1200)
        shown = "[...new Set([...document.querySelectorAll('[data-metric]')]"
        shown += ".filter((e) => !e.hidden).map((e) => e.dataset.metric))]"
        assert b.ask(shown) == ["Metrics/Avg"]
        assert b.ask("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        pick = "(() => {{ const s = document.getElementById('metric'); s.value = {};"
        pick += " s.dispatchEvent(new Event('change')); }})()"
        b.ask(pick.format(json.dumps(EVIL)))
        assert b.ask(shown) == [EVIL]
        b.ask(pick.format("''"))
        assert b.ask(shown) == list(METRICS)
        b.ask(pick.format("'vqa'"))
        b.point("[data-metric=vqa] .marks circle")
        tip = b.ask("document.getElementById('tip').textContent")
        assert re.match(r"<b>star-.*</b>\nvqa: error \d+\.\d\n.*frames \d+", tip), tip
        b.open(page, 1200, fragment="#metric=vqa")
        assert b.ask(shown) == ["vqa"]
        b.open(page, 360, 740, phone=True)
        b.ask(pick.format("''"))
        assert b.ask("[document.documentElement.scrollWidth, window.innerWidth]") == [360, 360]
        opened = "document.querySelectorAll('details[open]').length"
        b.ask(f"addEventListener('beforeprint', () => {{ window.printed = {opened}; }})")
        b.pdf(tmp_path / "page.pdf")
        assert b.ask("window.printed") == b.ask("document.querySelectorAll('details').length") > 0
        assert b.ask(opened) == 0
        b.screenshot(tmp_path / "page.png")
        assert b.ask("window.pwned") is None
        assert b.complaints == []
        assert {a for a in b.requests if not a.startswith("data:")} <= {
            page.resolve().as_uri() + fragment for fragment in ("", "#metric=vqa")
        }
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def laws(folder):
    """Return {file: (bytes, when it was written)} of the laws of a report."""
    files = sorted((folder / "laws").rglob("fit.json"))
    return {file.parent.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_laws_are_reused_and_what_the_runs_do_not_support_is_said(made, tmp_path):
    """Run it again for one metric from a folder; then with one n and no isoFLOP; then with few
    runs.
    """
    again = shutil.copytree(made / "out", tmp_path / "again")
    before = laws(again)
    report(
        made,
        "--out",
        again,
        *QUICK,
        *EQUATION,
        "--appendix",
        "none",
        "--metric",
        "vqa",
        "--skip-missing",
    )
    assert laws(again) == before
    assert len(before) == len(METRICS)
    assert (made / "out" / "tables" / "table8.csv").exists()
    assert not (again / "tables" / "table8.csv").exists()  # of the report before
    page = (again / "report.html").read_text()
    assert page.count("Left out by --appendix none.") == 2 + 2

    lone = [line for line in lines_of(STAR, "acc") if ",1000," in line]
    few = [line for line in lines_of(STAR, "few", 1) if ",1000," in line][:4]
    runs = write(tmp_path / "lone.csv", lone + few, comment="")
    report(runs, "--out", tmp_path / "out", *QUICK, *EQUATION, "--appendix", "none")
    assert set(laws(tmp_path / "out")) == {"acc"}
    page = (tmp_path / "out" / "report.html").read_text()
    for text in (
        r"<b>Figure 2</b>: not shown\. .*no runs with sweep &#x27;isoflop&#x27;",
        r"<b>Elasticity to the number of examples</b>: not shown\. All runs have n = 1k\.",
        r"<b>Figure 5</b>: not shown\. No metric has a law, known costs, and runs of several n\.",
        r"<b>A law of few</b>: not shown\. 4 runs do not determine the 7 parameters",
        r"<b>Figure 4</b>: not shown\. 4 runs do not",
    ):
        assert re.search(text, page), text
    assert "ynthetic" not in page


def half_done(path):
    """Return a store of six runs: five have scores, one has failed."""
    points = STAR[:6]
    rows = [{name: getattr(p, name) for name in HEADER.split(",")[:-2]} for p in points]
    asked = [Job(f"{p.run_id}/evaluate", "evaluate") for p in points]
    store = Store.create(path, "star", asked, rows, encoder=dataclasses.asdict(COST))
    for i, job in enumerate(asked[:-1]):
        result = {"scores": {"acc": 50 + i / 7, "vqa": 0.25}}
        store.end(store.claim(job.id), journal.DONE, result=result)
    store.end(store.claim(asked[-1].id), journal.FAILED, error="\x1b[2J<b>no luck</b>")
    return store, asked


def test_a_store_is_collected_as_far_as_it_is(tmp_path, capsys):
    store, asked = half_done(tmp_path / "star")
    out = tmp_path / "out"
    report(store.path, "--out", out, *QUICK, "--appendix", "none", "--metric", "acc")
    told, page = capsys.readouterr(), (out / "report.html").read_text()
    assert "star: 5 runs, 1 metrics" in page
    assert f"1 scores are missing, the first is {asked[-1].id}: " in page
    assert "No law fits these runs, so nothing can be recommended." in page
    best = "the 700k language model, 2 frames, 9 visual tokens a frame and 1k examples"
    assert f"measured error of 5 runs is 49.4, with {best}: {asked[4].run}." in page
    assert "<b>Figure 8</b>: not shown. It is Figure 7 of every metric, and there is one." in page
    assert "<b>no luck</b>" not in page
    assert "&lt;b&gt;no luck&lt;/b&gt;" in page
    assert f"missing: {asked[-1].id}: �[2J<b>no luck</b>\n" in told.err
    assert "\x1b" not in told.err
    write_runs(tmp_path / "all.csv", collect(store, store.states()).rows)
    assert "a vision model of 60k parameters and 16 features a frame" in page
    lines = [s for s in (tmp_path / "all.csv").read_text().splitlines() if ",acc," in s]
    assert (out / "runs.csv").read_text().splitlines() == [",".join(COLUMNS), *lines]


# A broken connection is left to the collector by requests and its urllib3.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
    "ignore:unclosed <socket:ResourceWarning",
)
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_store_in_a_bucket_gives_the_report_that_it_gives_here(scheme, tmp_path, server):
    url = f"{scheme}://bucket/of-report/star"
    for place, out in ((url, "there"), (tmp_path / "star", "here")):
        half_done(place)
        report(place, "--out", tmp_path / out, *QUICK, "--appendix", "none", "--metric", "acc")
    here, there = (
        {
            path.relative_to(folder): path.read_text()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        for folder in (tmp_path / "here", tmp_path / "there")
    )
    page = Path("report.html")
    assert f"{url}: 1 scores are missing" in there[page]
    assert there.pop(page).replace(url, f"{tmp_path}/star") == here.pop(page)
    assert there == here
    assert {str(name) for name in here} >= {"runs.csv", "figures/figure7_runs-acc.svg"}
    gc.collect()  # else another test would be blamed


def test_scores_up_to_1_are_taken_as_shares_when_that_is_said(tmp_path):
    lines = [line.rpartition(",") for line in lines_of(STAR[:6], "acc")]
    shares = [f"{head},{float(score) / 100}" for head, _, score in lines]
    runs = write(tmp_path / "runs.csv", shares)
    words = (runs, "--out", tmp_path / "out", *QUICK, "--appendix", "none")
    with pytest.raises(ValueError, match="say scale 1 if 1 is the best score"):
        report(*words)
    report(*words, "--scale", "1")
    _, rows = rows_of(tmp_path / "out" / "figures" / "figure7_runs-acc.csv")
    errors = {head.partition(",")[0]: 100 - float(score) for head, _, score in lines}
    shown = {row["run_id"]: float(row["error"]) for row in rows}
    assert shown == pytest.approx(errors, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        (None, (), "nowhere.csv: no such file"),
        ("store", (), "star: no run has a score yet"),
        ("folder", (), "has neither a sweep's store nor runs.csv"),
        (lambda t: t.replace("num_frames,", "frames,", 1), (), "no column 'num_frames' (the near"),
        (lambda t: HEADER + "\n", (), "no runs; at least one row is needed"),
        (
            lambda t: re.sub(r",[\d.]+\n", ",\n", t),
            ("--skip-missing",),
            "no runs; at least one row is needed",
        ),
        (
            lambda t: re.sub(r",[\d.]+\n", ",\n", t),
            (),
            "column 'score' is ''; it must be a number from 0 to 100; skip_missing",
        ),
        (lambda t: t, ("--metric", "vqb"), "no runs with metric 'vqb' (the nearest is 'vqa')"),
        (lambda t: t, ("--form", "add-intract"), "add-interact"),
        (lambda t: t, ("--form", "li"), "--form li has no number of examples; choose one of mult"),
        (lambda t: t, ("--starts", "0"), "--starts must be an integer >= 1"),
        (lambda t: t, ("--resampling", "none"), "--resampling none: "),
        (lambda t: t, ("--out", "gs://b/r"), "--out gs://b/r: must be on this machine, not in a"),
        (lambda t: t, ("--scale", "10"), "it must be a number from 0 to 10"),
        (lambda t: t, ("--features", "0"), "--features must be a positive number, got 0"),
        (lambda t: t, ("--workers", "-1"), "--workers must be 0 or more, got -1"),
    ],
)
def test_bad_input_ends_with_one_line_and_nothing_written(tmp_path, capsys, change, words, message):
    runs = write(tmp_path / "runs.csv", lines_of(STAR, "vqa"))
    if callable(change):
        runs.write_text(change(runs.read_text()))
    (tmp_path / "empty").mkdir()
    Store.create(tmp_path / "star", "star", [])
    others = {None: "nowhere.csv", "folder": "empty", "store": "star"}
    first = tmp_path / others[change] if change in others else runs
    with pytest.raises(SystemExit) as ended:
        die_in_one_line(lambda: report(first, "--out", tmp_path / "out", *words))
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert (shown.startswith("error: "), shown.count("\n")) == (True, 1)
    assert message in shown
    assert not (tmp_path / "out").exists()


def test_parquet_without_its_reader_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"runs\.parquet: needs pyarrow: pip install pyarrow"):
        report(tmp_path / "runs.parquet", "--out", tmp_path / "out")


def test_parquet_reads_as_the_csv_does(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from fitting.runs import read_runs

    runs = write(tmp_path / "runs.csv", lines_of(STAR, "vqa"), comment="")
    with runs.open() as file:
        rows = list(csv.DictReader(file))
    rows[3]["score"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "runs.parquet")
    table = read_runs(tmp_path / "runs.parquet", skip_missing=True)
    assert len(table) == len(rows) - 1
    assert table.error.sum() == pytest.approx(
        sum(100 - float(row["score"]) for row in rows if row["score"])
    )
