"""`vvlm plan`: answers, files, JSON, and one line for what cannot be answered."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from fitting import design
from fitting.config import FACTORS
from fitting.cost import PAPER, ActualFlops
from fitting.elasticities import elasticity
from fitting.frontiers import agreement, frontier, member_frontiers
from fitting.intervals import prediction_interval
from fitting.law import FittedRuns
from fitting.sweeps import PAPER_DOMAIN
from fitting.uncertainty import decide
from tests.fitting.laws import any_law, made_up_law
from tools import plan as command

ROOT = Path(__file__).parents[2]
SMALL = ("--domain", "lm_params=1e9,7.5e9", "num_frames=2:12", "tokens_per_frame=squares:9")
QUESTION = ("--budget-tflops", "15", "--examples", "2e6")


@pytest.fixture(scope="module")
def law():
    return made_up_law(members=20, spread=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, law):
    folder = tmp_path_factory.mktemp("law")
    law.save(folder)
    return folder


@pytest.fixture(scope="module")
def without_n(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without-n")
    any_law(2, members=9).save(folder)
    return folder


def plan(*words):
    """Run the command in this process."""
    args = [str(word) for word in words]
    command.main(tyro.cli(tyro.conf.OmitArgPrefixes[command.Args], args=args))


def answer(capsys, *words):
    plan(*words, "--json")
    return json.loads(capsys.readouterr().out)


def test_the_answer_is_the_decision_over_the_papers_domain(folder, law, capsys):
    found = answer(capsys, folder, *QUESTION, "--alternatives", 3)
    decision = decide(law, PAPER_DOMAIN, PAPER, 15e12, 2e6)
    assert found["offer"] == {"configurations": 3 * 128 * 27, "cost": "paper"}
    options = [found["plan"]["best"], *found["plan"]["next_best"]]
    assert len(options) == 4
    for i, option in enumerate(options):
        assert list(option["x"].values()) == decision.x[i].tolist()
        assert option["error"] == pytest.approx(decision.error[i])
        assert option["best_for"] == pytest.approx(decision.probability[i])
        assert option["cost"] == pytest.approx(PAPER(decision.x[i]))
        interval = np.array(prediction_interval(law, decision.x[i], 2e6)).tolist()
        assert option["interval"] == pytest.approx(interval)
    flops, x = found["plan"]["flops"], decision.x[0]
    assert flops["equation_1"] == pytest.approx(PAPER(x))
    assert flops["actual"] == pytest.approx(ActualFlops()(x))
    assert flops["actual"] == flops["vision"] + flops["projector"] + flops["lm"]
    inside = decision.x[decision.regret_set(0.5)]
    regret = found["plan"]["regret_set"]
    assert regret["configurations"] == len(inside) > 0
    assert regret["ranges"]["num_frames"] == [inside[:, 1].min(), inside[:, 1].max()]


def test_the_page_says_it_in_words(folder, law, capsys):
    plan(folder, *QUESTION, "--videos-per-day", "1e5", "--days", "365")
    page, best = capsys.readouterr().out, decide(law, PAPER_DOMAIN, PAPER, 15e12, 2e6)
    x = best.x[0]
    assert f"num_frames {x[1]:g}, tokens_per_frame {x[2]:g}, which costs" in page
    assert f"predicted error {best.error[0]:.2f}; 90% of runs fall in " in page
    assert f"the best of all for {best.probability[0]:.0%} of the members" in page
    assert "729 features, 100 text tokens, attention" in page
    assert "Serving / finetuning = videos c / (3 c n) = 36.5M / (3 x 2M)" in page
    assert "= 6.08; even after 60 days" in page
    assert "Extrapolates" not in page


def test_serving_and_finetuning_by_hand(folder, capsys):
    found = answer(capsys, folder, *QUESTION, "--videos-per-day", "1000", "--days", "30")
    serving, cost = found["plan"]["serving"], found["plan"]["best"]["cost"]
    assert serving["ratio"] == pytest.approx(30_000 / 6e6)
    assert serving["serving_flops"] == pytest.approx(30_000 * cost)
    assert serving["finetuning_flops"] == pytest.approx(6e6 * cost)
    assert serving["even_after_days"] == pytest.approx(6000)


def test_extrapolation_is_flagged(folder, capsys):
    wide = ("--domain", "lm_params=2e10", "num_frames=64", "tokens_per_frame=49")
    plan(folder, "--budget-tflops", "1000", "--examples", "1e7", *wide)
    page = capsys.readouterr().out
    assert "Extrapolates: lm_params 20B is outside the fitted 1B to 7.5B." in page
    assert "Extrapolates: num_frames 64 is outside the fitted 2 to 40." in page
    assert "Extrapolates: num_examples 10M is outside the fitted 250k to 2.192M." in page
    assert "tokens_per_frame 49 is outside" not in page
    assert "actual unknown: no model shape for lm_params 2e+10" in page


def test_other_costs(folder, capsys, tmp_path):
    found = answer(capsys, folder, *QUESTION, "--cost", "actual", "--text-tokens", 50, *SMALL)
    best = found["plan"]["best"]
    assert best["cost"] == pytest.approx(ActualFlops(text_tokens=50)(list(best["x"].values())))
    found = answer(capsys, folder, *QUESTION, "--vision-params", "1e9", "--features", 256, *SMALL)
    _, frames, tokens = (best := found["plan"]["best"])["x"].values()
    lm = best["x"]["lm_params"]
    assert best["cost"] == pytest.approx(2 * frames * (1e9 * 256 + lm * tokens))
    assert found["plan"]["flops"]["equation_1"] == pytest.approx(best["cost"])

    table = tmp_path / "latency.csv"
    table.write_text("lm_params,num_frames,tokens_per_frame,ms\n1e9,8,49,30\n7.5e9,8,49,90\n")
    words = (folder, "--examples", "2e6", "--cost", table)
    found = answer(capsys, *words, "--budget", 100, "--videos-per-day", 9, "--days", 2)
    assert found["offer"]["configurations"] == 2
    assert found["plan"]["best"]["x"]["lm_params"] == 7.5e9
    assert found["plan"]["serving"]["serving_flops"] is None
    plan(*words, "--budget", "50")
    assert "Within 50 ms and 2M examples, 1 affordable" in capsys.readouterr().out
    product = answer(capsys, *words[:3], "--cost", "6*N*T*tokens_per_frame", "--budget", "3e12")
    x, cost = product["plan"]["best"]["x"].values(), product["plan"]["best"]["cost"]
    assert cost == pytest.approx(6 * np.prod(list(x)))
    assert cost <= 3e12
    with pytest.raises(ValueError, match="latency.csv: no ms for lm_params=1e.09, num_frames=9"):
        plan(*words, "--budget", "50", "--domain", "num_frames=9")


def test_a_law_without_n_and_with_other_factors(without_n, capsys, tmp_path):
    table = tmp_path / "c.csv"
    table.write_text("x1,x2,euros,note\n1,2,3,a\n4,4,9,b\n")
    found = answer(capsys, without_n, "--cost", f"{table}:euros", "--budget", 10)
    assert found["plan"]["examples"] is None
    assert found["plan"]["flops"] is None
    assert set(found["plan"]["best"]["x"]) == {"x1", "x2"}
    words = ("--cost", f"{table}:euros", "--frontier", "2,3,9", "--out", tmp_path / "f.csv")
    plan(without_n, *words)
    assert "1 of 3 budgets are below the cheapest" in capsys.readouterr().out
    rows = read(tmp_path / "f.csv")
    assert rows[0] == {**dict.fromkeys(rows[0], ""), "budget": "2"}
    assert [row["budget"] for row in rows] == ["2", "3", "9"]
    assert "num_examples" not in rows[0]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_frontier_is_written(folder, law, capsys, tmp_path):
    out = tmp_path / "new" / "frontier.csv"
    words = (folder, "--frontier", "0.1:30:5", "--at", "1e6,2e6", "--out", out)
    found = answer(capsys, *words)
    budgets = np.linspace(0.1, 30, 5) * 1e12
    arguments = (law, PAPER_DOMAIN, PAPER, budgets, [1e6, 2e6])
    best = frontier(*arguments)
    shares = agreement(best, member_frontiers(*arguments))
    rows = read(out)
    assert len(rows) == found["frontier"]["rows"] == 10
    assert found["frontier"]["unaffordable"] == 1
    for row, (c, m) in zip(rows, np.ndindex(5, 2), strict=True):
        assert float(row["budget"]) == pytest.approx(budgets[c])
        assert float(row["num_examples"]) == [1e6, 2e6][m]
        if c == 0:
            assert set(list(row.values())[2:]) == {""}
            continue
        assert [float(row[name]) for name in law.factors] == best.x[c, m].tolist()
        assert float(row["error"]) == pytest.approx(best.error[c, m])
        assert float(row["error_low"]) < float(row["error"]) < float(row["error_high"])
        assert float(row["agreement"]) == pytest.approx(shares[c, m])
        outside = law.extrapolates(best.x[c : c + 1, m], [1e6, 2e6][m])[0]
        assert row["extrapolates"] == ("yes" if outside else "no")


def test_elasticity_with_intervals(folder, law, capsys, tmp_path):
    grid = ("--frontier", "0.1:40:9", "--at", "1e6,3e6", "--delta", "4e6")
    found = answer(capsys, folder, "--elasticity", *grid, "--out", tmp_path / "e.csv")
    budgets = np.linspace(0.1, 40, 9) * 1e12
    change = elasticity(law, PAPER_DOMAIN, PAPER, budgets, [1e6, 3e6], 4e6)
    low, high = change.interval()
    for key, values in (("mean", change.mean), ("low", low), ("high", high)):
        assert list(found["elasticity"][key].values()) == pytest.approx(values.tolist())
    assert (found["elasticity"]["undefined"], found["elasticity"]["pairs"]) == (2, 18)
    rows = read(tmp_path / "e.csv")
    assert rows[0]["elasticity_num_frames"] == ""
    values = [float(row["elasticity_num_frames"]) for row in rows[2:]]
    np.testing.assert_allclose(values, change.values[1:, :, 1].ravel(), rtol=1e-8)
    plan(folder, "--elasticity", *SMALL)
    page = capsys.readouterr().out
    assert "300 budgets, 1 TFLOPs to 100 TFLOPs; 100 data sizes, 1M to 10M; step 5M" in page
    assert "0 of 30000 pairs" in page


def test_undefined_is_a_dash_and_null(capsys, tmp_path):
    law = made_up_law(members=3)
    few = FittedRuns(*(None if column is None else column[:9] for column in law.runs))
    dataclasses.replace(law, runs=few).save(tmp_path)
    words = (tmp_path, *QUESTION, *SMALL)
    assert answer(capsys, *words)["plan"]["best"]["interval"] == [None, None]
    plan(*words)
    assert "90% of runs fall in -, the law in" in capsys.readouterr().out
    unaffordable = ("--elasticity", "--frontier", "0.1", "--at", "1e6", *SMALL)
    found = answer(capsys, tmp_path, *unaffordable)
    assert set(found["elasticity"]["mean"].values()) == {None}
    plan(tmp_path, *unaffordable)
    assert "1 of 1 pairs" in capsys.readouterr().out


MISTAKES = [
    ((), "nothing to answer: give --budget-tflops"),
    (("--budget-tflops", "-1"), "--budget-tflops must be a positive number, got -1"),
    (("--budget", "3"), "--budget is for a measured --cost"),
    (("--budget-tflops", "3", "--cost", "a.csv"), "give --budget, not --budget-tflops"),
    (("--budget-tflops", "15", "--days", "3"), "--videos-per-day and --days go together"),
    (("--frontier", "1:2:3"), "--frontier needs --out"),
    (("--frontier", "1:2:3", "--out", "gs://b/f.csv"), "--out gs://b/f.csv: must be on this"),
    (("--budget-tflops", "1", "--out", "a.csv"), "--out needs --frontier"),
    (("--budget-tflops", "15"), "--examples: the law depends on num_examples"),
    (("--frontier", "1:2:3", "--out", "a.csv"), "--frontier: the law depends on num_examples"),
    (("--budget", "3", "--cost", "gone.csv"), "gone.csv: no such file of costs"),
    (("--budget", "3", "--cost", "papr"), "--cost papr: write paper, actual, FILE.csv"),
    (("--budget", "3", "--cost", "6*N*D"), "--cost '6*N*D': no column 'D'; a formula may use"),
    (
        ("--budget", "3", "--cost", "f(N)"),
        "--cost 'f(N)' calls a function, which a formula may not",
    ),
    ((*QUESTION[2:], "--budget", "3", "--cost", "N-1e99"), "a cost must be a positive number"),
    ((*QUESTION, "--domain", "frames=2"), "(the nearest is 'num_frames')"),
    ((*QUESTION, "--domain", "num_frames=x"), "--domain num_frames=x: 'x' is no level"),
    ((*QUESTION, "--tolerance", "-1"), "--tolerance must be 0 or more, got -1"),
    ((*QUESTION, "--features", "0"), "--features must be a positive number, got 0"),
    ((*QUESTION, "--at", "1e6"), "--at needs --frontier or --elasticity"),
    ((*QUESTION, "--cost", "actual", "--vision-params", "3"), "--vision-params belongs to"),
    (
        ("--budget-tflops", "0.5", "--examples", "2e6"),
        "below the cheapest configuration, lm_params 1B, num_frames 1, tokens_per_frame 1, which "
        "costs 662.5 GFLOPs",
    ),
    (
        (*QUESTION, "--cost", "actual", "--domain", "lm_params=3e10"),
        "no model shape for lm_params 3e+10",
    ),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_are_named_in_one_line(folder, words, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        plan(folder, *words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_law_without_n_takes_no_examples(without_n, tmp_path):
    table = tmp_path / "c.csv"
    table.write_text("x1,x2,euros\n1,2,3\n")
    with pytest.raises(ValueError, match="--examples: the law has no number of examples"):
        plan(without_n, *QUESTION)
    with pytest.raises(ValueError, match="--elasticity: the law has no number"):
        plan(without_n, "--elasticity", "--cost", table, "--frontier", "1")
    with pytest.raises(ValueError, match="needs the factor 'lm_params'; the law has x1, x2"):
        plan(without_n, "--budget-tflops", "15")


def test_the_command_ends_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.plan", str(tmp_path), *QUESTION],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "fit.json: no such file" in done.stderr
    assert done.stderr.count("\n") == 1


def test_next_names_runs_within_the_purse_or_says_stop(folder, capsys):
    ask = (*QUESTION, *SMALL, "--next", 3, "--spend", 1e8)
    found = answer(capsys, folder, *ask, "--tolerance", 0)["next"]
    assert not found["stop"]
    assert 0 < len(found["runs"]) <= 3
    assert sum(run["cost"] for run in found["runs"]) <= 1e20
    plan(folder, *ask, "--tolerance", 0)
    page = capsys.readouterr().out
    assert "Go on" in page
    assert "Train next" in page
    plan(folder, *ask, "--tolerance", 90)
    assert "Stop" in capsys.readouterr().out
    grid = (folder, *SMALL, "--frontier", "5:15:2", "--at", "1e6,2e6", "--next", 1, "--spend", 1e8)
    assert answer(capsys, *grid, "--tolerance", 0)["next"]["questions"] == 4


def test_next_without_examples(without_n, tmp_path, capsys):
    costs = tmp_path / "costs.csv"
    costs.write_text("x1,x2,ms\n" + "".join(f"{a},{b},{a * b}\n" for a in (1, 4) for b in (1, 8)))
    ask = ("--cost", costs, "--budget", 8, "--next", 2, "--spend", 100, "--tolerance", 0)
    assert answer(capsys, without_n, *ask)["next"]["questions"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((*QUESTION, "--next", 3), "go together"),
        ((*QUESTION, "--spend", 3), "go together"),
        (("--elasticity", "--next", 3, "--spend", 1), "needs a budget"),
        ((*QUESTION, "--next", 3, "--spend", 1e-9, "--tolerance", 0), "cheapest costs"),
        ((*QUESTION, "--next", -1, "--spend", 1), "--next"),
    ],
)
def test_next_refuses_in_one_line(folder, words, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(folder, *words, *SMALL)
    assert "\n" not in str(caught.value)


def test_a_first_design_without_a_law(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(design, "LAWS", 2)
    monkeypatch.setattr(design, "FIT", design.FIT.replace(starts=5))
    out = tmp_path / "first.csv"
    plan("--spend", 1e8, "--budget-tflops", 8, "--examples", 1e6, *SMALL, "--out", out)
    assert "First designs for 1e+20 FLOPs" in capsys.readouterr().out
    rows = read(out)
    assert len(rows) >= 8
    x = np.array([[float(row[name]) for name in FACTORS] for row in rows])
    n = np.array([float(row["num_examples"]) for row in rows])
    assert 3 * (PAPER(x) * n).sum() <= 1e20
    assert {row["sweep"] for row in rows} <= {"star", "isoflop"}
    assert all(bool(row["budget"]) == (row["sweep"] == "isoflop") for row in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to answer"),
        (("--budget-tflops", 8), "give --spend, or DIR"),
        (("--budget-tflops", 8, "--spend", 1), "give --examples"),
        (("--budget-tflops", 8, "--spend", 1e-6, "--examples", 1e6), "can be trained"),
        (("--budget-tflops", 8, "--spend", 1, "--examples", 1e6, "--next", 2), "needs DIR"),
    ],
)
def test_a_first_design_refuses_in_one_line(words, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(*words, *SMALL)
    assert "\n" not in str(caught.value)
