"""`vvlm fit`: from a CSV to a report and files, and one line for what cannot be read."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

import fitting
from fitting.runs import LI2024, write_runs
from fitting.sweeps import Domain, star_sweep
from tests.fitting.synthetic import synthetic_table
from tools import fit as command
from tools.common import die_in_one_line
from tools.fit_flags import READERS
from vvlm_jax.progress import live

ROOT = Path(__file__).parents[2]
POINTS = star_sweep((1e9, 8, 49), Domain((1e9, 4e9), (2, 4, 8), (4, 16, 49)), (1e5, 1e6))
QUICK = ("--resamples", "3", "--starts", "8", "--form", "add")


@pytest.fixture(scope="module")
def table():
    return synthetic_table("add", POINTS, noise=0.01, metric="avg")


@pytest.fixture
def runs(tmp_path, table):
    write_runs(tmp_path / "runs.csv", table)
    return tmp_path / "runs.csv"


def fit(*words):
    """Run the command in this process."""
    args = [str(word) for word in words]
    command.main(tyro.cli(tyro.conf.OmitArgPrefixes[command.Args], args=args, registry=READERS))


@pytest.mark.light
def test_a_fit_is_printed_written_and_read_back(runs, table, tmp_path, capsys):
    fit(runs, "--examples", "num_examples", *QUICK, "--out", tmp_path / "law")
    shown = capsys.readouterr()
    assert "avg" in shown.out
    assert str(tmp_path / "law" / "fit.json") in shown.out
    assert shown.err == ""  # no terminal, no progress
    law = fitting.BaggedFit.load(tmp_path / "law")
    assert (law.config.form, law.config.resamples) == ("add", 3)
    np.testing.assert_allclose(law.predict(table.x, table.n), table.error, rtol=0.05)
    assert [p.name for p in (tmp_path / "law").iterdir()] == ["fit.json"]


def test_a_report_is_a_page_with_figures_and_warnings(runs, tmp_path, capsys):
    words = ("--examples", "num_examples", *QUICK, "--out", tmp_path / "law")
    fit(runs, *words, "--report", "--vision-params", "1e8", "--features", "64")
    page = (tmp_path / "law" / "report.html").read_text()
    assert "a vision model of 100M parameters and 64 features" in page
    assert "No run was left out to test the law" in page
    names = {path.stem for path in (tmp_path / "law" / "figures").glob("*.svg")}
    assert "figure2_isoflop-avg" not in names  # a star alone has no isoFLOP curves
    assert {name.partition("_")[0] for name in names} == {
        f"figure{number}" for number in ("1", "3a", "3b", "4", "5", "6", "7")
    }
    assert re.search(r"report.html \(\d+ warnings\)", capsys.readouterr().out)
    with pytest.raises(ValueError, match="--features must be a positive number, got 0"):
        fit(runs, *words, "--report", "--features", "0")


def test_any_columns_with_a_score_out_of_one(tmp_path, table, capsys):
    path = tmp_path / "mine.csv"
    lines = [
        f"{x[0] / 1e9},{x[1]},{1 - e / 100:.6f}" for x, e in zip(table.x, table.error, strict=True)
    ]
    path.write_text("# synthetic\nsize,depth,acc\n" + "\n".join(lines) + "\n")
    words = ("--factors", "size,depth", "--score", "acc", *QUICK[:4], "--out", tmp_path / "law")
    fit(path, *words, "--form", "add", "--scale", "1", "--units", "size=2,depth=8")
    law = fitting.BaggedFit.load(tmp_path / "law")
    assert (law.factors, law.examples, law.scale) == (("size", "depth"), None, 1.0)
    predicted = law.predict(np.array([1.0, 8.0]))
    assert 0.1 < predicted < 0.9


def test_groups_are_fitted_each_into_its_folder(tmp_path, table, capsys):
    path = tmp_path / "runs.csv"
    other = synthetic_table("add", POINTS, noise=0.01, seed=1, metric="vqa / open")
    rows = [(t, i) for t in (table, other) for i in range(len(t))]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run_id", *table.factors, "n", "task", "score"])
        for t, i in rows:
            writer.writerow([t.run_id[i], *t.x[i], t.n[i], t.metric[i], 100 - t.error[i]])
    words = ("--examples", "n", *QUICK, "--out", tmp_path / "laws")
    fit(path, *words, "--group", "task")
    folders = sorted(p.name for p in (tmp_path / "laws").iterdir())
    assert folders == ["avg", "vqa_open"]
    laws = [fitting.BaggedFit.load(tmp_path / "laws" / name) for name in folders]
    assert [law.metric for law in laws] == ["avg", "vqa / open"]
    alone = fitting.fit(table, laws[0].config)
    np.testing.assert_allclose(
        laws[0].predict(table.x, table.n), alone.predict(table.x, table.n), rtol=1e-4
    )
    with pytest.raises(ValueError, match="run_id .* again"):
        fit(path, *words)


def test_compare_and_ablate_print_and_write_tables(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "PAPER_FORMS", ("mult", "add"))  # the others compile for long
    split = ("--train", "num_examples=100000", "--test", "num_examples=1000000")
    words = (runs, "--examples", "num_examples", *QUICK[:4], "--out", tmp_path / "law", *split)
    fit(*words, "--form", "mult", "--compare", "--ablate")
    shown = capsys.readouterr().out
    for name in ("mult", "add", "huber", "zero init", "not in log space"):
        assert re.search(rf"^{name} ", shown, re.MULTILINE)
    with (tmp_path / "law" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows[:: len(rows) // 2]] == ["mult", "add"]
    splits = {row["split"] for row in rows}
    assert {"all runs", "5-fold", "without a level of num_frames"} <= splits
    assert {"num_examples=100000 → num_examples=1000000", "without the largest n"} <= splits
    assert all(float(row["mse"]) > 0 for row in rows)
    best = [row for row in rows if row["split"] == "5-fold" and float(row["mse_above_best"]) == 0]
    assert len(best) == 1
    with (tmp_path / "law" / "ablate.csv").open() as file:
        names = {row["name"] for row in csv.DictReader(file)}
    assert {"exponents bounded", "3 resamples, mean", "1 resamples, median"} <= names


def test_a_split_alone_is_scored(runs, tmp_path, capsys):
    split = ("--train", "n<=1e5", "--test", "num_examples>1e5")
    fit(runs, "--examples", "num_examples", *QUICK, "--out", tmp_path, *split)
    assert "n<=1e5 → num_examples>1e5: 6 runs predict 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere.csv",), "nowhere.csv: no such file"),
        (("--metric", "acg"), "no runs with metric 'acg' (the nearest is 'avg'); there are avg"),
        (("--examples", "num_example"), "no column 'num_example' (the nearest is 'num_examples')"),
        (("--factors", "lm_param"), "no column 'lm_param' (the nearest is 'lm_params')"),
        (("--form", "add-intract"), "add-interact"),
        (("--resampling", "idd"), "--resampling must be one of iid, stratified"),
        (("--exponent-cap", "big"), "--exponent-cap must be a positive number or none, got 'big'"),
        (("--units", "lm_params"), "--units must be none, 'geomean' or COLUMN=NUMBER"),
        (("--units", "lm_params=x"), "--units['lm_params'] must be a positive number, got 'x'"),
        (("--form", "li", "--examples", "num_examples"), "form 'li' has no number of examples"),
        (("--exponent-cap", "0"), "--exponent-cap must be a positive number or none"),
        (("--free-floor",), "--free-floor needs"),
        (("--train", "sweep=star"), "--train and --test go together"),
        (
            ("--form", "add-interact"),
            "runs.csv: form 'add-interact' needs the number of examples: give --examples COLUMN",
        ),
    ],
)
def test_bad_words_end_with_one_line_before_any_work(runs, tmp_path, capsys, words, message):
    first = [] if words and words[0].endswith(".csv") else [runs]
    with pytest.raises(SystemExit) as ended:
        die_in_one_line(lambda: fit(*first, *words, "--out", tmp_path / "out"))
    shown = capsys.readouterr().err
    assert ended.value.code == 2
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert message in shown
    assert not (tmp_path / "out").exists()


WITHOUT_JAX = """
import runpy, sys
sys.modules['jax'] = None
sys.argv = ['tools.fit', *sys.argv[1:]]
runpy.run_module('tools.fit', run_name='__main__', alter_sys=True)
"""


def test_a_bucket_is_not_mistaken_for_a_folder(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--out s3://bucket/law: must be on this machine"):
        fit(runs, "--out", "s3://bucket/law")
    assert not (tmp_path / "s3:").exists()


def test_a_bad_table_is_known_without_jax(runs):
    runs.write_text(runs.read_text().replace(",4,", ",four,", 1))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, str(runs)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        rf"error: {runs}, row \d+ \(line \d+\): column 'num_frames' is 'four'; it must be a "
        "positive number\n",
        done.stderr,
    )


def test_several_metrics_and_a_bad_folder(runs, tmp_path):
    text = runs.read_text()
    more = tmp_path / "more.csv"
    more.write_text(text + text.split("\n", 1)[1].replace(",avg,", ",vqa,"))
    with pytest.raises(ValueError, match="metrics avg, vqa; choose one with --metric, or fit each"):
        fit(more, *QUICK)
    with pytest.raises(ValueError, match="--out .*runs.csv/law: Not a directory"):
        fit(runs, *QUICK, "--out", runs / "law")
    split = ("--train", "sweep=star", "--test", "sweep=isoflop")
    with pytest.raises(ValueError, match="no runs with sweep 'isoflop'; there are star"):
        fit(runs, *QUICK, "--out", tmp_path, *split)
    with pytest.raises(ValueError, match=r"never above 1; say scale 1"):
        fit(LI2024, "--factors", "lm_params,visual_tokens", "--error", "error", "--out", tmp_path)


def test_progress_is_one_line_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with live("compare") as say:
        say("1/2: add", 0, 4)
        say("1/2: add", 4, 4)
        say("2/2: mult", 4, 4)
    shown = capsys.readouterr().err
    assert "compare 1/2: add 4/4" in shown
    assert shown.endswith("\r\x1b[K")
    assert "\n" not in shown


def test_what_an_earlier_fit_left_goes_with_it(runs, tmp_path):
    out, words = tmp_path / "law", ("--examples", "num_examples", *QUICK)
    (out / "figures").mkdir(parents=True)
    for name in ("report.html", "compare.csv", "figures/runs.png"):
        (out / name).write_text("of another law")
    fit(runs, *words, "--out", out)
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["fit.json"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda out: (out / "fit.json").mkdir(), "fit.json is a folder there"),
        (lambda out: (out / "figures").write_text(""), "figures is a file there"),
    ],
)
def test_an_out_folder_that_cannot_be_written_is_known_before_the_work(
    runs, tmp_path, monkeypatch, make, message
):
    (tmp_path / "law").mkdir()
    make(tmp_path / "law")
    monkeypatch.setattr(sys.modules["fitting.fits"], "fit_many", None)
    with pytest.raises(ValueError, match=message):
        fit(runs, "--examples", "num_examples", *QUICK, "--out", tmp_path / "law")


def test_few_runs_and_odd_rows_are_warned_of(runs, tmp_path, capsys):
    runs.write_text(runs.read_text() + "# end\n")
    split = ("--train", "num_examples=100000", "--test", "num_examples=1000000")
    fit(runs, "--examples", "num_examples", *QUICK, "--out", tmp_path / "law", *split)
    shown = capsys.readouterr().err
    assert "1 line that starts with # was passed over" in shown
    assert "num_examples=100000: 6 runs for 9 parameters" in shown


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (1, "1 run of avg cannot determine the 9 parameters of 'add'; add runs, no form does"),
        (8, "8 runs of avg cannot determine the 9 parameters of 'add'; add runs, or choose a "),
    ],
)
def test_fewer_runs_than_parameters_are_refused(runs, tmp_path, rows, message):
    few = tmp_path / "few.csv"
    few.write_text("\n".join(runs.read_text().splitlines()[: rows + 1]) + "\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(few, "--examples", "num_examples", *QUICK, "--out", tmp_path / "law")
    assert not (tmp_path / "law").exists()


def test_scores_of_several_protocols_need_a_word(runs, tmp_path, table):
    rows = [row | {"protocol": f"p{int(i > 9)}"} for i, row in enumerate(table.rows())]
    write_runs(runs, rows)
    words = (runs, "--examples", "num_examples", *QUICK, "--out", tmp_path / "law")
    fit(*words, "--where", "protocol=p0 and N>0")
    assert fitting.BaggedFit.load(tmp_path / "law").num_runs == 10
    with pytest.raises(ValueError, match="no run is left where N<1"):
        fit(*words, "--where", "N<1")
    with pytest.raises(ValueError, match="2 protocols .*--where protocol=p0.*--mixed-protocols"):
        fit(*words)
    fit(*words, "--mixed-protocols")
    assert (tmp_path / "law" / "fit.json").is_file()


def test_a_form_of_a_file_with_ties_and_fixed_values(runs, tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from fitting.forms import N, Term\n"
        "def mine(labels):\n"
        "    falls = (Term(f'c_{s}', ((f'p_{s}', -1, k),)) for k, s in enumerate(labels))\n"
        "    return (*falls, Term('data', (('d', -1, N),)), Term('floor'))\n"
    )
    words = (runs, "--examples", "num_examples", *QUICK[:4], "--out", tmp_path / "law")
    more = ("--tie", "p_T=p_V", "--fix", "floor=20", "--report")
    fit(*words, "--form", f"{tmp_path / 'own.py'}:mine", *more)
    law = fitting.BaggedFit.load(tmp_path / "law")
    assert law.parameters == ("c_N", "c_T", "c_V", "data", "floor", "p_N", "p_T", "d")
    np.testing.assert_allclose(law.values[:, 4], 20)
    assert "own.py:mine#" in (tmp_path / "law" / "report.html").read_text()
    for flags, message in (
        (("--form", "own.py:gone"), "own.py:gone: No such file"),
        (("--form", "add", "--fix", "epsilon"), "--fix must be none or NAME=NUMBER"),
        (("--form", "add", "--fix", "epsilon=200"), "epsilon fixed at 200 is outside its bounds"),
        (("--form", "add", "--tie", "a_T=alpha_V"), "'alpha_V' is no exponent of 'add'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(*words, *flags)


def test_a_comparison_needs_its_folds(runs, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("\n".join(runs.read_text().splitlines()[:4]) + "\n")
    with pytest.raises(ValueError, match=r"few\.csv: 3 runs of avg; --compare and --ablate need 5"):
        fit(few, "--examples", "num_examples", *QUICK, "--compare", "--out", tmp_path / "law")


def test_noise_clusters_and_profiles_are_flags(runs, tmp_path, capsys):
    with runs.open() as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "noisy.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "draw"])
        writer.writeheader()
        for i, row in enumerate(rows):
            writer.writerow(row | {"score_se": 0.4 + 0.1 * (i % 3), "draw": f"draw {i // 2}"})
    words = ("--examples", "num_examples", "--out", tmp_path / "law", "--resamples", "4")
    words += ("--starts", "8", "--form", "mult", "--noise", "score_se", "--cluster", "draw")
    split = ("--train", "num_examples=1e5", "--test", "num_examples=1e6")
    fit(path, *words, "--profile", "d", *split)
    shown = capsys.readouterr().out
    assert "clusters " in shown
    assert "profile low" in shown
    assert "half-width" in shown
    law = fitting.BaggedFit.load(tmp_path / "law")
    np.testing.assert_allclose(law.runs.noise[:3], [0.4, 0.5, 0.6])
    assert len(set(law.runs.cluster)) > 3
    header = (tmp_path / "law" / "profile.csv").read_text().splitlines()[0]
    assert header.startswith("parameter,value,deviance")
    assert "low_90" in (tmp_path / "law" / "test.csv").read_text()
    assert (tmp_path / "law" / "figures" / "profile.svg").stat().st_size > 1000
