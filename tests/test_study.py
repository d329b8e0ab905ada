"""The main job in miniature, end to end: killed, continued, and equal to a run with one worker."""

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

ROOT = Path(__file__).parents[1]
COLUMNS = [
    *("run_id", "sweep", "lm_params", "num_frames", "tokens_per_frame", "num_examples"),
    *("metric", "score"),
]
pytestmark = pytest.mark.slow(reason="trains a miniature study twice: minutes")


def start(out, workers, compiled):
    command = [sys.executable, "-m", "tools.study", "--config", "configs/study_mini.py"]
    return subprocess.Popen(
        [*command, "--out", str(out), "--workers", str(workers)],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    _, log = process.communicate(timeout=1200)
    assert process.returncode == 0, log
    return log


def trained(out):
    """{run of the sweep: when its training ended}."""
    found = {}
    for file in out.glob("work/*/runs/*/jobs/train.*.json"):
        run = file.parts[-3]
        if run.startswith(("star-", "isoflop-")) and '"event": "done"' in file.read_text():
            found[run] = file.stat().st_mtime_ns
    return found


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """(folder of a study that was killed and continued, its results at the kill, folder of an
    uninterrupted one with one worker)."""
    folder = tmp_path_factory.mktemp("studies")
    killed, straight, compiled = (folder / name for name in ("killed", "straight", "compiled"))
    first = start(killed, 2, compiled)
    while len(trained(killed)) < 3:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.2)
    workers = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert gone
    assert not alive, "workers must end with their parent"
    before = trained(killed)
    finish(start(killed, 2, compiled))
    finish(start(straight, 1, compiled))
    return killed, before, straight


def test_numbers_do_not_depend_on_interruption_or_workers(studies):
    killed, _, straight = studies
    assert (killed / "runs.csv").read_bytes() == (straight / "runs.csv").read_bytes()


def test_finished_runs_are_not_repeated(studies):
    killed, before, _ = studies
    after = trained(killed)
    assert len(before) >= 3
    assert {name: after[name] for name in before} == before


def test_the_table_is_whole_and_sorted(studies):
    killed, _, _ = studies
    with (killed / "runs.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == COLUMNS
    keys = [(row["run_id"], row["metric"]) for row in rows]
    assert keys == sorted(set(keys))
    assert {row["metric"] for row in rows} == {"flash", "cell", "most", "avg"}
    table = read_runs(killed / "runs.csv").select(metric="avg")
    assert len(table) == len(trained(killed)) >= 24
    assert len(set(table.x[:, 0])) == 3
    assert len(set(table.select(sweep="star").n)) == 3
    assert table.levels("sweep") == ("isoflop", "star")


def test_every_question_has_a_kept_prediction(studies):
    killed, _, _ = studies
    asked = len(next(killed.glob("work/*/val.jsonl")).read_text().splitlines())
    files = list(killed.glob("work/*/runs/*/*/predictions.jsonl"))
    assert len(files) == len(trained(killed)) + 4, "of every run, and of four controls"
    for file in files:
        assert len(file.read_text().splitlines()) == asked


def test_the_page_stands_alone_and_says_what_it_is(studies):
    killed, _, _ = studies
    page = (killed / "report.html").read_text()
    assert "synthetic" in page
    assert "hance" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    figures = {p.stem for p in (killed / "figures").glob("*.svg")}
    assert figures >= {"clip", "runs", "isoflop", "frontier", "parameters", "predicted"}
    assert "Warning" in page, "a miniature learns little, and the page must say so"


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_the_page_opens_in_a_browser(studies, tmp_path):
    killed, _, _ = studies
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    browser = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-sync", *quiet),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path}", "--dump-dom"),
            (killed / "report.html").resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Is it learning?" in browser.stdout
    assert browser.stdout.count("<img") >= 6
    assert "CONSOLE" not in browser.stderr


def test_running_it_again_trains_nothing(studies):
    killed, _, _ = studies
    before, table = trained(killed), (killed / "runs.csv").read_bytes()
    finish(start(killed, 2, killed.parent / "compiled"))
    assert trained(killed) == before
    assert (killed / "runs.csv").read_bytes() == table


def test_the_commands_of_sweeps_work_on_its_store(studies, tmp_path):
    killed, _, _ = studies
    (store,) = (path.parent for path in killed.glob("work/*/sweep.json"))

    def ask(*words):
        command = [sys.executable, "-m", "tools.sweep", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    last = ask("status", store).splitlines()[-1]
    assert re.fullmatch(r"study: \d+ runs: \d+ done · 0 workers", last)
    ask("collect", store, "--out", tmp_path / "runs.csv")
    assert (tmp_path / "runs.csv").read_bytes() == (killed / "runs.csv").read_bytes()
