"""The sweep command."""

import csv
import dataclasses
import io
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from configs.sweeps import mini, star
from fitting.runs import read_runs
from vvlm_jax.devices import parse_topology
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.config import configurations
from vvlm_jax.sweep.store import journal

STAR, MINI = "configs/sweeps/star.py", "configs/sweeps/mini.py"


def test_csv_is_a_header_and_a_row_a_run(ask):
    out, _ = ask("plan", STAR, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 39
    assert {(r["lm_params"], r["num_examples"]) for r in rows} >= {("7500000000", "250000")}
    assert all(float(r["device_hours"]) > 0 and r["cost"] == r["fits"] == "" for r in rows)


def test_json_has_the_same_rows_and_totals(ask):
    out, _ = ask("plan", STAR, "--json", "--price", "2", "--device", "TPU v5p", "--mfu", "0.5")
    found = json.loads(out)
    assert len(found["runs"]) == 39
    assert len(found["stage_1"]) == 3
    hours = sum(r["device_hours"] for r in found["runs"] + found["stage_1"])
    assert found["totals"]["cost"] == pytest.approx(2 * hours)
    assert found["assumed"] == {"device": "TPU v5p", "peak": 459e12, "mfu": 0.5, "price": 2.0,
                                "topology": None}  # fmt: skip


def test_the_text_of_a_plan_ends_with_totals_and_what_was_assumed(ask):
    out, _ = ask("plan", MINI, "--price", "2")
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["run", "x_N", "x_T", "x_V"]
    assert lines[0].split()[-1] == "cost"  # and no fits, which needs a topology
    assert "total: 4 runs and 2 stage-1 runs" in lines[-2]
    assert "40% of 9.89e+14 FLOP/s, 2 for an hour" in lines[-1]


def test_a_plan_without_the_size_of_stage_1_says_so_and_counts_it_where_it_can(ask, tmp_path):
    options = ("--set", "pretrain.data.num_examples=null")
    out, last = ask("plan", MINI, *options)
    assert "4 runs and 0 stage-1 runs" in out
    assert last.startswith("warning: stage 1 is not counted: pretrain.data.num_examples is not set")
    file = tmp_path / "captions.json"
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "red"}]
    file.write_text(json.dumps([{"image": "a.png", "conversations": turns}] * 8))
    out, last = ask("plan", MINI, *options, f"pretrain.data.annotations={file}")
    assert (out, last) == (ask("plan", MINI)[0], "")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--device", "H100"), "error: --device = 'H100': unknown; did you mean 'NVIDIA H100'?"),
        (("--mfu", "1.5"), "error: --mfu 1.5: must be a share above 0, at most 1"),
        (("--price", "0"), "error: --price 0: must be above 0"),
        (("--csv", "--json"), "error: --csv and --json: choose one"),
        (("--set", "data_size=9"), "num_examples = 12: above the 9 examples"),
        (("--set", "finetune.data.n=9"), "finetune.data.n: no such option"),
    ],
)
def test_bad_options_are_told_in_one_line(ask, options, line):
    assert line in ask("plan", MINI, *options, code=2)[1]


def test_a_budget_no_configuration_meets_is_told_in_one_line(ask, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.sweeps import table6\n"
        "from fitting import cost, sweeps\n"
        "def sweep():\n"
        "    points = sweeps.isoflop_sweep(sweeps.PAPER_DOMAIN, [1e9], 10**6, cost.PAPER)\n"
        "    return table6.config('mine', points)\n"
    )
    line = ask("plan", file, code=2)[1]
    assert line.startswith(f"error: {file}, line 4: ValueError: no configuration costs within 3.0%")
    file.write_text("def config():\n    return 1\n")
    assert ask("plan", file, code=2)[1].endswith("must define sweep() -> SweepConfig")


def test_what_was_compiled_says_which_runs_fit(ask, tmp_path, monkeypatch):
    from vvlm_jax.compile import programs as programs
    from vvlm_jax.compile import table

    def compile_one(config, target, known):  # 32 frames never fit, 16 only with some effort
        need = config.model.num_frames * (4 if target.effort == 0 else 7) * programs.GIB
        return programs.Measured(
            need < 100e9, 0, need, {"temporaries": 0.0}, {}, 1, [], 1.0, 1.0, 1.0, 1.0
        )

    options = ("--topology", "v5p:2x2x4", "--compiled", tmp_path)
    assert "has no v5p-2x2x4.jsonl; make it" in ask("plan", STAR, *options, code=2)[1]
    monkeypatch.setattr(table, "compile_step", compile_one)
    monkeypatch.setattr(programs, "prepare_environment", lambda: None)
    topology, configs = parse_topology("v5p:2x2x4"), configurations(star.sweep()).values()
    for effort, sixteen in ((-1.0, "no"), (0.0, "yes")):
        table.run("star", list(configs), programs.Target(topology, effort=effort), tmp_path)
        out, _ = ask("plan", STAR, *options, "--csv")
        rows = list(csv.DictReader(io.StringIO(out[out.index("run_id,sweep") :])))
        fits = {(int(r["num_frames"]), r["fits"]) for r in rows}
        assert fits == {(32, "no"), (16, sixteen), (12, "yes"), (8, "yes"), (4, "yes")}


def test_a_closed_pipe_ends_the_command_without_a_message():
    code = "from tools.common import die_in_one_line\ndie_in_one_line(lambda: print('x' * 2**20))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(3) == b"xxx"
        process.stdout.close()  # as `head` does
        assert process.stderr.read() == b""
    assert process.returncode == 141


# A store that is there.


@pytest.fixture
def store(tmp_path):
    """Return the miniature's store with one run done, one failed, two to do."""
    store = jobs.create(tmp_path / "s", mini.sweep())
    for id in ("stage1-study-s/train", "stage1-study-m/train", f"{RUNS[0]}/train"):
        store.end(store.claim(id), journal.DONE, seconds=1.0, result={"loss": 1.5})
    scores = {"scores": {"cell": 40.0, "most": 60.0}}
    store.end(store.claim(f"{RUNS[0]}/evaluate-s3-val"), journal.DONE, result=scores)
    store.end(store.claim(f"{RUNS[1]}/train"), journal.FAILED, error="ValueError: \x1b[2Jno luck")
    return store


RUNS = [p.run_id for p in mini.sweep().points]


def test_status_shows_progress_and_what_failed(ask, store):
    lines = ask("status", store.path)[0].splitlines()
    assert lines[0].split() == ["run", "state", "progress", "loss", "left"]
    assert [RUNS[0], "done", "100%", "1.5000"] in [line.split() for line in lines]
    (failed,) = [line for line in lines if line.startswith(RUNS[1])]
    assert failed.endswith("train: ValueError: �[2Jno luck"), "nothing moves the cursor"
    assert lines[-1].startswith("mini: 6 runs: 3 done, 1 failed, 2 waiting · 0 workers")
    listed = ask("status", store.path, "--jobs")[0].splitlines()
    assert f"failed    {RUNS[1]}/train" in listed
    assert f"blocked   {RUNS[1]}/evaluate-s3-val" in listed


def test_watching_ends_when_everything_has(ask, store, monkeypatch):
    waits = []

    me, real = threading.get_ident(), time.sleep

    def sleep(seconds):
        if threading.get_ident() != me:  # of another test
            return real(seconds)
        waits.append(seconds)
        store.cancel(f"{RUNS[len(waits) + 1]}/train")

    monkeypatch.setattr(time, "sleep", sleep)
    lines = ask("status", store.path, "--watch")[0].splitlines()
    assert [line.split(" · ")[0] for line in lines if line.startswith("mini:")] == [
        "mini: 6 runs: 3 done, 1 failed, 2 waiting",
        "mini: 6 runs: 1 cancelled, 3 done, 1 failed, 1 waiting",
        "mini: 6 runs: 2 cancelled, 3 done, 1 failed",
    ]
    assert all(seconds >= 2 for seconds in waits)


def test_retry_and_cancel(ask, store):
    assert ask("retry", store.path)[0] == "1 jobs ready again\n"
    assert store.state(f"{RUNS[1]}/train").phase == "ready"
    assert ask("cancel", store.path, RUNS[1], f"{RUNS[2]}/eval*")[0] == "3 jobs cancelled\n"
    assert store.state(f"{RUNS[2]}/train").phase == "ready"
    assert ask("retry", store.path, RUNS[1])[0] == "2 jobs ready again\n"
    assert "cancel: name runs or jobs; '*' is" in ask("cancel", store.path, code=2)[1]
    line = ask("retry", store.path, "star-N5400-T2-V4-n12", code=2)[1]
    assert "no such run or job; did you mean 'star-N54000-T2-V4-n12'?" in line


def test_collect_writes_the_table_and_lists_what_is_missing(ask, store, tmp_path):
    file = tmp_path / "new" / "runs.csv"
    out, last = ask("collect", store.path, "--out", file)
    assert out == f"{file}: 3 scores, 3 missing\n"
    assert last.startswith(f"missing: {RUNS[3]}/evaluate-s3-val")
    table = read_runs(file)
    assert list(zip(table.metric, 100 - table.error, strict=True)) == [
        ("avg", 50.0), ("cell", 40.0), ("most", 60.0),
    ]  # fmt: skip
    assert set(table.run_id) == {RUNS[0]}
    for file, line in (
        ("x.h5", "must end with .csv or .parquet"),
        ("gs://b/runs.csv", "must be on this machine, not in a bucket"),
    ):
        assert line in ask("collect", store.path, "--out", file, code=2)[1]


def test_collect_writes_parquet_where_pyarrow_is_installed(ask, store):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    scores = {"scores": {"cell": 100 / 3, "most": 200 / 3}, "stderr": {"cell": 1.5, "most": 2}}
    for name, result in (("train", {"loss": 1.0}), ("evaluate-s3-val", scores)):
        store.end(store.claim(f"{RUNS[2]}/{name}"), journal.DONE, result=result)
    ask("collect", store.path)
    rows = parquet.read_table(store.path / "runs.parquet").to_pylist()
    with (store.path / "runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(rows[0]) == list(lines[0])
    assert "33.3333" in {line["score"] for line in lines}
    for row, line in zip(rows, lines, strict=True):
        assert (row["run_id"], row["metric"]) == (line["run_id"], line["metric"])
        assert row["score"] == float(line["score"])
        assert row["num_examples"] == int(line["num_examples"])
        assert row["seed"] == int(line["seed"]) == 0
        assert row["protocol"] == line["protocol"] == "questions"
        assert row["score_se"] == (float(line["score_se"]) if line["score_se"] else None)
    assert {line["score_se"] for line in lines} == {"", "1.2500", "1.5000", "2.0000"}
    kinds = {
        field.name: str(field.type) for field in parquet.read_schema(store.path / "runs.parquet")
    }
    assert (kinds["seed"], kinds["protocol"], kinds["score_se"]) == ("int64", "string", "double")


def test_collect_writes_scores_of_milestones_into_a_file_of_their_own(ask, tmp_path):
    config = mini.sweep()
    stage = dataclasses.replace(config.finetune, checkpoint_every=1, keep_every=2)
    config = dataclasses.replace(config, finetune=stage, pretrain=None)
    store, out = jobs.create(tmp_path / "s", config), tmp_path / "runs.csv"
    for name, score in (("train", None), ("evaluate-s2-val", 10.0), ("evaluate-s3-val", 40.0)):
        result = {"scores": {"cell": score}}
        store.end(store.claim(f"{RUNS[0]}/{name}"), journal.DONE, result=result)
    told, _ = ask("collect", store.path, "--out", out)
    assert f"{tmp_path / 'milestones.csv'}: 1 scores before the end of a run" in told
    lines = (tmp_path / "milestones.csv").read_text().splitlines()
    assert lines == [
        "run_id,step,seed,protocol,metric,score,score_se",
        f"{RUNS[0]},2,0,questions,cell,10.0,",
    ]
    assert [line.split(",")[-2] for line in out.read_text().splitlines()[1:]] == ["40.0000"] * 2


def test_a_dry_run_writes_nothing(ask, store, tmp_path):
    new = ask("launch", MINI, "--dry-run", "--workers", "2", "--store", tmp_path / "new")[0]
    assert new.startswith("mini: 10 jobs (4 evaluate, 6 train), 0 done")
    assert (
        "runs/mini-sweep-data/train.json: no such file or folder (finetune.data.annotations)" in new
    )
    assert not (tmp_path / "new").exists()
    assert "4 done" in ask("launch", MINI, "--dry-run", "--store", store.path)[0]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--workers", "-1"), "--workers -1: must be 0 (all there is) or above"),
        (("--set", "finetune.seed=3"), "holds a sweep with shared.finetune.seed = 0, not 3"),
        (("--set", "points=[]"), "points: none; a sweep needs at least one run"),
        (("--store", "az://bucket/s"), "az://bucket/s: unknown scheme; must be a folder, gs://"),
        ((), "runs/mini-sweep-data/tokenizer.json: no such file or folder ("),
    ],
)
def test_a_launch_that_cannot_be_changes_nothing(ask, store, options, line):
    before = {p: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    options = options if "--store" in options else ("--store", store.path, *options)
    assert line in ask("launch", MINI, *options, code=2)[1]
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*")} == before


def test_work_asks_for_a_store_and_a_job_that_are_there(ask, store, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert "no sweep here" in ask("work", tmp_path, code=2)[1]
    assert "no job 'x/train'" in ask("work", store.path, "x/train", code=2)[1]
    assert signal.getsignal(signal.SIGTERM) == before
