"""The main job in miniature, end to end: killed, continued, and what one worker makes again."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

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
    return log


def trained(out):
    """Return {run of the sweep: when its training ended}."""
    found = {}
    for file in out.glob("work/*/runs/*/jobs/train.*.json"):
        run = file.parts[-3]
        if run.startswith(("star-", "isoflop-")) and '"event": "done"' in file.read_text():
            found[run] = file.stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a study that was killed once and finished by two workers, and its results at the kill.

    Returns (folder, its store, {run: when it was trained} at the kill).
    """
    out = tmp_path_factory.mktemp("studies") / "study"
    first = start(out, 2)
    while len(trained(out)) < 3:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.2)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=600)
    assert gone
    assert not alive, "workers must end with their parent"
    before = trained(out)
    finish(start(out, 2))
    (store,) = (path.parent for path in out.glob("work/*/sweep.json"))
    return out, store, before


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
    assert len(table) == len(trained(out)) == 15 + 6
    assert len(set(table.x[:, 0])) == 3
    assert len(set(table.select(sweep="star").n)) == 3
    assert table.levels("sweep") == ("isoflop", "star")


def test_every_question_has_a_kept_prediction(study):
    out, _, _ = study
    asked = len(next(out.glob("work/*/val.jsonl")).read_text().splitlines())
    files = list(out.glob("work/*/runs/*/*/predictions.jsonl"))
    assert len(files) == len(trained(out)) + 4, "of every run, and of four controls"
    for file in files:
        assert len(file.read_text().splitlines()) == asked


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
    before, table = results(store), (out / "runs.csv").read_bytes()
    again = {"data", "lm-study-m", "vision", "stage1-study-m", *interrupted(store)}
    again |= {"star-N54000-T4-V16-n16", "star-N147904-T4-V16-n64"}
    kept = {name: when for name, when in trained(out).items() if name not in again}
    assert len(kept) >= 12
    for run in again:
        (store / "runs" / run).rename(tmp_path / run)
    data = [store / name for name in ("train.json", "val.jsonl", "captions.json", "stories.json")]
    for file in data:
        file.rename(tmp_path / file.name)
    assert f"{len(before)} jobs, 1 at a time" in finish(start(out, 1))
    assert {name: trained(out)[name] for name in kept} == kept
    assert results(store) == before, "not one bit of a loss or a score"
    assert [f.read_bytes() for f in data] == [(tmp_path / f.name).read_bytes() for f in data]
    assert (out / "runs.csv").read_bytes() == table


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
