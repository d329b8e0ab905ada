"""The main job in miniature, end to end: killed, continued, and what one worker makes again."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fitting.runs import read_runs
from tests.processes import FAST_TO_COMPILE
from vvlm_jax.sweep.store.store import Store

ROOT = Path(__file__).parents[1]
COLUMNS = [
    *("run_id", "sweep", "lm_params", "num_frames", "tokens_per_frame", "num_examples"),
    *("seed", "protocol", "metric", "score", "score_se"),
]
SWEEPS = ("star-", "isoflop-", "decision-", "replicate-")
pytestmark = pytest.mark.slow(reason="trains a miniature study: minutes")

# The driver fits laws, which takes three times as long when little is optimised.
WORKERS_COMPILE_QUICKLY = f"""
import os, sys
if "work" in sys.orig_argv:
    os.environ["XLA_FLAGS"] = {FAST_TO_COMPILE!r}
"""


def start(out, workers):
    command = [sys.executable, "-m", "tools.study", "--config", "configs/study_mini.py"]
    (out.parent / "sitecustomize.py").write_text(WORKERS_COMPILE_QUICKLY)
    environ = {
        "JAX_COMPILATION_CACHE_DIR": str(out.parent / "compiled"),
        "PYTHONPATH": f"{out.parent}:{ROOT}",
    }
    return subprocess.Popen(
        [*command, "--out", str(out), "--workers", str(workers)],
        cwd=ROOT, env=os.environ | environ, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    _, log = process.communicate(timeout=1200)
    assert process.returncode == 0, log
    assert "fork" not in log, "workers are forked from a process without jax"
    return log


def kill(process, workers):
    process.send_signal(signal.SIGKILL)
    process.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=600)
    assert gone
    assert not alive, "workers must end with their parent"


def trained(out):
    """Return {run of the sweep: when its training ended}."""
    found = {}
    for file in out.glob("work/*/runs/*/jobs/train.*.json"):
        run = file.parts[-3]
        if (
            run.startswith(("star-", "isoflop-", "decision-", "replicate-"))
            and '"event": "done"' in file.read_text()
        ):
            found[run] = file.stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a study of two workers, killed in the sweep and in the decision test, and finished.

    Returns (folder, its store, {run: when it was trained} at the first kill).
    """
    out = tmp_path_factory.mktemp("studies") / "study"
    before = {}
    for runs in (3, 21 + 2):
        process = start(out, 2)
        while len(trained(out)) < runs:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.2)
        kill(process, psutil.Process(process.pid).children(recursive=True))
        before = before or trained(out)
    chosen = next(out.glob("work/*/decision.json")).read_bytes()
    log = finish(start(out, 2))
    assert next(out.glob("work/*/decision.json")).read_bytes() == chosen
    assert_progress(log)
    (store,) = (path.parent for path in out.glob("work/*/sweep.json"))
    return out, store, before


def assert_progress(log):
    """Phases are named, and what is trained is counted up to all runs."""
    assert "— law" in log
    assert "— decision test" in log
    counts = [
        tuple(map(int, c)) for c in re.findall(r"^run (\d+) of (\d+) \(\d+ trained", log, re.M)
    ]
    assert counts == sorted(counts)
    assert all(k <= of for k, of in counts)


def test_finished_runs_are_not_repeated(study):
    out, _, before = study
    after = trained(out)
    assert len(before) >= 3
    assert {name: after[name] for name in before} == before


def test_the_table_is_whole_and_sorted(study):
    out, _, _ = study
    with (out / "runs.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == COLUMNS
    keys = [(row["run_id"], row["metric"]) for row in rows]
    assert keys == sorted(set(keys))
    assert {row["metric"] for row in rows} == {"flash", "cell", "most", "avg"}
    table = read_runs(out / "runs.csv").select(metric="avg")
    law = np.isin(table.columns["sweep"], ["star", "isoflop"])
    assert law.sum() == 15 + 6
    assert len(table) == len(trained(out))
    assert len(set(table.x[:, 0])) == 3
    assert len(set(table.select(sweep="star").n)) == 3
    assert table.levels("sweep") == ("decision", "isoflop", "replicate", "star")
    assert (table.columns["sweep"] == "replicate").sum() == 2


def test_every_question_has_a_kept_prediction(study):
    out, _, _ = study
    files = list(out.glob("work/*/runs/*/*/predictions.jsonl"))
    assert len(files) == len(trained(out)) + 4, "of every run, and of four controls"
    for file in files:
        kind = "test" if file.parent.name.endswith("-test") else "val"
        asked = len(next(out.glob(f"work/*/{kind}.jsonl")).read_text().splitlines())
        assert len(file.read_text().splitlines()) == asked


def test_the_decision_is_tested_and_said(study):
    out, _, _ = study
    verdict = json.loads((out / "verdict.json").read_text())
    assert list(verdict)[-1] == "seconds"
    assert {"law", "decision test", "report"} <= verdict["seconds"].keys()
    assert all(s["wall"] >= 0 and s["cpu"] > 0 for s in verdict["seconds"].values())
    between, above = verdict["decision"]
    assert 12e6 < between["budget"] < 24e6 < above["budget"]
    for test in verdict["decision"]:
        assert [p["rule"] for p in test["tested"]] == ["x*", "outside", "add"]
        assert all(len(p["errors"]) == 2 for p in test["tested"])
        assert test["outcome"] in ("confirmed", "refuted", "not resolved")
    table = read_runs(out / "runs.csv").select(metric="avg", sweep="decision")
    tested = {tuple(p["x"].values()): p["error"] for t in (between, above) for p in t["tested"]}
    assert set(map(tuple, table.x.tolist())) == set(tested)
    for x, error in tested.items():
        rows = (table.x == x).all(axis=1)
        assert table.error[rows].mean() == pytest.approx(error, abs=1e-3)
    page = (out / "report.html").read_text()
    assert between["outcome"].upper() in page[page.index("<main>") :][:1500]


def test_the_page_stands_alone_and_says_what_it_is(study):
    out, _, _ = study
    page = (out / "report.html").read_text()
    assert "synthetic" in page
    assert "hance" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    figures = {p.stem for p in (out / "figures").glob("*.svg")}
    numbers = {name.partition("_")[0] for name in figures}
    assert numbers >= {"clip", *(f"figure{n}" for n in ("2", "3a", "3b", "3c", "4", "6", "7"))}
    assert "Warning" in page, "a miniature learns little, and the page must say so"


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_the_page_opens_in_a_browser(study, tmp_path):
    out, _, _ = study
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    browser = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path}", "--dump-dom"),
            (out / "report.html").resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "Is it learning?" in browser.stdout
    assert browser.stdout.count("<img") >= 6
    assert "CONSOLE" not in browser.stderr


def test_one_worker_without_interruption_gives_the_same_numbers(study, tmp_path):
    """Jobs of every kind, among them those that were interrupted and all that some runs rest on,
    are undone and made again by one worker; the rest stays.
    """
    out, store, _ = study
    before, table, said = results(store), (out / "runs.csv").read_bytes(), verdict(out)
    again = {"data", "lm-study-m", "vision", "stage1-study-m", *interrupted(store)}
    again |= {"star-N54000-T4-V16-n16", "star-N147904-T4-V16-n64"}
    again |= {min(name for name in trained(out) if name.startswith("decision-"))}
    kept = {name: when for name, when in trained(out).items() if name not in again}
    assert len(kept) >= 12
    for run in again:
        (store / "runs" / run).rename(tmp_path / run)
    names = ("train.json", "val.jsonl", "test.jsonl", "captions.json", "stories.json")
    data = [store / name for name in names]
    for file in data:
        file.rename(tmp_path / file.name)
    assert f"{len(before)} jobs, 1 at a time" in finish(start(out, 1))
    assert verdict(out) == said, "all but seconds"
    assert {name: trained(out)[name] for name in kept} == kept
    assert results(store) == before, "not one bit of a loss or a score"
    assert [f.read_bytes() for f in data] == [(tmp_path / f.name).read_bytes() for f in data]
    assert (out / "runs.csv").read_bytes() == table


def verdict(out):
    """Return the text of verdict.json before its seconds."""
    text = (out / "verdict.json").read_text()
    return text[: text.index('"seconds"')]


def results(store):
    """Return {job: its result}."""
    states = Store.open(store).states()
    return {id: state.entry.body["result"] for id, state in states.items()}


def interrupted(store):
    """Return runs with a job that had to be claimed twice."""
    claims = [f for f in store.glob("runs/*/jobs/*.json") if '"event": "claim"' in f.read_text()]
    jobs = [(f.parts[-3], f.name.split(".")[0]) for f in claims]
    return {run for run, name in jobs if jobs.count((run, name)) > 1}


def test_the_commands_of_sweeps_work_on_its_store(study, tmp_path):
    out, store, _ = study

    def ask(*words):
        command = [sys.executable, "-m", "tools.sweep", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    last = ask("status", store).splitlines()[-1]
    assert re.fullmatch(r"study: \d+ runs: \d+ done · 0 workers", last)
    ask("collect", store, "--out", tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_bytes() == (out / "runs.csv").read_bytes()
