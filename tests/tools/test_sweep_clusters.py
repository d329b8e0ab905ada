"""Launching on clusters, as far as that needs none: what is printed, written and refused."""

import importlib.util
import json
import logging
import os
import subprocess

import pytest

from configs.sweeps import mini
from vvlm_jax.sweep import clusters, jobs
from vvlm_jax.sweep.launch import slurm
from vvlm_jax.sweep.store.store import Job, Store

MINI = "configs/sweeps/mini.py"


def test_runs_come_after_those_that_they_need():
    jobs = [
        Job("s1/train", "train"),
        Job("s2/train", "train"),
        Job("a/train", "train", after=("s1/train",)),
        Job("a/evaluate", "evaluate", after=("a/train",)),
        Job("b/train", "train", after=("s2/train",)),
        Job("c/train", "train", after=("s1/train",)),
        Job("d/train", "train", after=("gone/train",)),  # done, so not among what is left
    ]
    first, second = clusters.waves(jobs)
    assert first == {(): {"s1": ["s1/train"], "s2": ["s2/train"], "d": ["d/train"]}}
    assert second == {
        ("s1",): {"a": ["a/train", "a/evaluate"], "c": ["c/train"]},
        ("s2",): {"b": ["b/train"]},
    }
    assert clusters.waves([]) == []


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs submitit")
def test_a_dry_run_for_slurm_prints_scripts_and_needs_no_slurm(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = ("--cluster", "partition=gpu", "nodes=2", "gpus_per_node=8")
    before = list(logging._handlerList)
    out, _ = ask("launch", MINI, "--on", "slurm", "--store", tmp_path / "s", "--dry-run", *asked)
    assert logging._handlerList[: len(before)] == before, "submitit leaves logging as it was"
    assert "# 3 runs, after stage1-study-m" in out
    assert out.count("#SBATCH --gpus-per-node=8") == 3  # stage 1, and the runs of each size
    assert list(tmp_path.iterdir()) == []


def test_files_for_tpu_pods(ask, tmp_path):
    store = tmp_path / "s"
    asked = (f"mount={tmp_path}", "project=lab", "zone=z", "image=i", "topology=v5e:4x4")
    launch = ("launch", MINI, "--on", "tpu", "--store", store)
    out, _ = ask(*launch, "--dry-run", "--cluster", *asked)
    assert "jobsets-2.json" in out
    assert not store.exists()
    out, _ = ask(*launch, "--cluster", *asked)
    assert f"bash {store}/tpu/launch.sh" in out
    items = json.loads((store / "tpu/jobsets-2.json").read_text())["items"]
    assert len(items) == 4
    scripts = {json.dumps(item) for item in items}
    assert all(f"vvlm sweep work {store} star-" in text for text in scripts)
    first = (store / "tpu/jobsets-1.json").read_text()
    assert f"work {store} stage1-study-s/train" in first
    for script in (store / "tpu").glob("*.sh"):
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    assert len(Store.open(store).states()) == 10


@pytest.mark.parametrize(
    ("on", "asked", "line"),
    [
        ("slurm", (), "error: slurm: no sbatch, "),
        ("slurm", ("partitoin=gpu",), "partitoin: no such option; did you mean 'partition'?"),
        ("slurm", ("minutes=soon",), "minutes"),
        ("tpu", ("image=i",), "not below mount=/sweeps, where hosts have the filesystem"),
        (
            "tpu",
            ("mount=/",),
            "error: tpu: give project=… and zone=… (queued resources) or",
        ),
        (
            "tpu",
            ("mount=/", "image=i", "topology=v9:2x2"),
            "topology=v9:2x2: unknown TPU generation; did",
        ),
        ("local", ("nodes=2",), "error: --cluster: is for --on slurm and --on tpu"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_changes_nothing(
    ask, tmp_path, monkeypatch, on, asked, line
):
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ("launch", MINI, "--on", on, "--store", tmp_path / "s", "--cluster", *asked)
    assert line in ask(*words, code=2)[1]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def slurm_of_files(tmp_path, monkeypatch):
    """Return scancel and squeue that record their arguments and report every job as pending."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scancel").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/cancelled\n')
    (folder / "squeue").write_text(
        "#!/bin/sh\nprintf '7_0|PENDING\\n7_1|PENDING\\n8|COMPLETED\\n'\n"
    )
    for file in folder.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path / "cancelled"


@pytest.fixture
def submitted(tmp_path):
    """Return a store of which three runs were submitted."""
    store = jobs.create(tmp_path / "s", mini.sweep())
    runs = list(dict.fromkeys(job.run for job in store.jobs.values()))
    clusters.remember(store, dict(zip(runs, ("7_0", "7_1", "8"), strict=False)))
    return store, runs


def test_cancelled_runs_leave_the_queue(ask, slurm_of_files, submitted):
    store, (a, b, *_) = submitted
    assert clusters.queued(store) == {a: "7_0", b: "7_1"}
    assert "1 jobs cancelled" in ask("cancel", store.path, a)[0]
    assert slurm_of_files.read_text() == "7_0\n"


def test_status_has_slurms_own_states_of_runs_that_have_not_ended(ask, slurm_of_files, submitted):
    store, (a, b, c, *_) = submitted
    assert store.cancel(f"{b}/train")
    *lines, last = ask("status", store.path)[0].splitlines()
    of_run = {line.split()[0]: line for line in lines}
    assert of_run["run"].endswith("Slurm")
    assert of_run[a].endswith("7_0 PENDING")
    assert "7_1" not in of_run[b]
    assert of_run[c].endswith("8 COMPLETED")
    assert last.endswith(" · Slurm: 1 COMPLETED, 1 PENDING")


def test_a_line_of_slurms_ids_that_was_cut_is_passed_over(slurm_of_files, submitted):
    store, (a, b, c, d, *_) = submitted
    file = store.path / "slurm" / "jobs.jsonl"
    file.write_text(file.read_text()[:-4])  # a driver that died while it wrote
    assert clusters.queued(store) == {a: "7_0", b: "7_1"}
    clusters.remember(store, {c: "7_1", d: "9"})
    assert clusters.submitted(store) == {a: "7_0", b: "7_1", c: "7_1", d: "9"}


def test_runs_are_done_where_paths_were_looked_at(submitted, tmp_path, monkeypatch):
    store, runs = submitted
    (store.path / "slurm" / "jobs.jsonl").unlink()
    asked = []

    def submit(commands, options, **how):
        asked.append((how["cwd"], len(commands)))
        return [f"{len(asked)}_{i}" for i in range(len(commands))]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm, "check", lambda *a: 100)
    monkeypatch.setattr(slurm, "submit", submit)
    monkeypatch.setattr(jobs, "missing_inputs", lambda config: [])
    done = clusters.launch("slurm", store.path, mini.sweep(), (), ("-m", "x"), dry_run=False)
    assert {cwd for cwd, _ in asked} == {tmp_path}
    assert sum(count for _, count in asked) == len(runs)
    assert done.startswith(f"{len(runs)} runs submitted, 0 were queued")


def test_where_no_slurm_is_status_does_without(ask, submitted, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Slurm" not in ask("status", submitted[0].path)[0]
