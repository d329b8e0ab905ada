import dataclasses
import json

import pytest

from configs.sweeps import mini
from vvlm_jax.config import ConfigError
from vvlm_jax.sweep import jobs, status
from vvlm_jax.sweep.config import Evaluation
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import Store

A, B, C, D = (p.run_id for p in mini.sweep().points)


@pytest.fixture
def store(tmp_path):
    return jobs.create(tmp_path / "s", mini.sweep())


def done(store, id, seconds=10.0, **result):
    store.end(store.claim(id), journal.DONE, seconds=seconds, result=result)


def prepare(store):
    for llm in mini.LLMS:
        done(store, f"stage1-{llm}/train", loss=1.0)


def test_the_table_says_what_each_run_does(store):
    prepare(store)
    done(store, f"{A}/train", loss=2.5)
    store.end(store.claim(f"{B}/train"), journal.FAILED, error="ValueError: no luck")
    store.claim(f"{C}/train")
    file = store.folder(C) / "metrics.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"step": 1}\n{"step": 2, "loss": 0.5, "examples_per_second": 4.0}\n{"ste')
    store.end(store.claim(f"{D}/train"), journal.STOPPED)
    (store.folder(D) / "metrics.jsonl").write_text('{"step": 1, "loss": 0.75}\n')
    found = status.overview(store, store.states())
    by_run = {r.run: r for r in found.runs}
    assert (by_run[A].phase, by_run[A].loss) == ("waiting", 2.5)
    assert by_run[A].progress == pytest.approx(1 / 1.01)
    assert (by_run[B].phase, by_run[B].error) == ("failed", "ValueError: no luck")
    assert (by_run[C].phase, by_run[C].doing, by_run[C].loss) == ("running", "train", 0.5)
    assert by_run[C].progress == pytest.approx(2 / 3 / 1.01)
    assert by_run[C].seconds_left == pytest.approx(1.0), "a step of 4 examples, 4 a second"
    assert (by_run[D].phase, by_run[D].loss) == ("waiting", 0.75), "left after a step of three"
    assert by_run[D].progress == pytest.approx(1 / 3 / 1.01)
    assert found.phases == {"done": 2, "waiting": 2, "failed": 1, "running": 1}
    assert found.workers == 1
    costs = {id: job.cost for id, job in store.jobs.items()}
    did = [*(f"stage1-{llm}/train" for llm in mini.LLMS), f"{A}/train"]
    left = sum(
        costs[f"{run}/evaluate-s3-val"] + costs[f"{run}/train"] * share
        for run, share in ((A, 0), (C, 1 / 3), (D, 2 / 3))
    )
    assert found.seconds_left == pytest.approx(left * 30 / sum(costs[id] for id in did))


def test_before_anything_is_done_nobody_knows_how_long(store):
    assert status.overview(store, store.states()).seconds_left is None
    assert status.last_metrics(store.path / "none.jsonl") == {}


def test_scores_that_are_missing_stay_missing_and_are_listed(store):
    prepare(store)
    for run in (A, B, C):
        done(store, f"{run}/train")
    done(store, f"{A}/evaluate-s3-val", scores={"cell": 40.0, "most": 60.0})
    done(store, f"{B}/evaluate-s3-val", scores={"cell": 40.0, "most": None})
    store.end(store.claim(f"{C}/evaluate-s3-val"), journal.FAILED, error="OSError: gone")
    found = status.collect(store, store.states())
    scores = {(row["run_id"], row["metric"]): row["score"] for row in found.rows}
    assert scores == {(A, "cell"): 40.0, (A, "most"): 60.0, (A, "avg"): 50.0, (B, "cell"): 40.0}
    assert found.missing == [
        (f"{B} most", "no question could be scored"),
        (f"{C}/evaluate-s3-val", "OSError: gone"),
        (f"{D}/evaluate-s3-val", "waiting"),
    ]
    assert {row["num_examples"] for row in found.rows} == {12}
    assert {row["score_se"] for row in found.rows} == {None}


def test_rows_have_the_seed_the_protocol_and_the_standard_error(store):
    prepare(store)
    done(store, f"{A}/train")
    result = {"scores": {"cell": 40.0, "most": 60.0}, "stderr": {"cell": 3.0, "most": 4.0}}
    done(store, f"{A}/evaluate-s3-val", protocol="questions", **result)
    file = store.path / "sweep.json"
    older = json.loads(file.read_text())
    for run in older["runs"]:
        del run["seed"]  # as a store of an older version
    for opened in (store, None):
        if opened is None:
            file.write_text(json.dumps(older))
            opened = Store.open(store.path)
        found = status.collect(opened, opened.states())
        assert {(row["seed"], row["protocol"]) for row in found.rows} == {(0, "questions")}
        errors = {row["metric"]: row["score_se"] for row in found.rows}
        assert errors == {"cell": 3.0, "most": 4.0, "avg": 2.5}


def test_scores_of_milestones_are_apart_from_the_table(tmp_path):
    config = mini.sweep()
    finetune = dataclasses.replace(config.finetune, checkpoint_every=1, keep_every=1)
    store = jobs.create(tmp_path / "s", dataclasses.replace(config, finetune=finetune))
    prepare(store)
    done(store, f"{A}/train")
    done(store, f"{A}/evaluate-s1-val", scores={"cell": 10.0})
    done(store, f"{A}/evaluate-s3-val", scores={"cell": 40.0})
    found = status.collect(store, store.states())
    assert [(row["metric"], row["score"]) for row in found.rows] == [("cell", 40.0), ("avg", 40.0)]
    assert found.milestones == [
        dict(run_id=A, step=1, seed=0, protocol="questions", metric="cell", score=10.0,
             score_se=None)
    ]  # fmt: skip
    assert (f"{A}/evaluate-s2-val", "ready") in found.missing


def test_a_task_of_two_evaluations_is_refused(tmp_path):
    both = (*mini.sweep().evaluations, Evaluation("more", "more.jsonl", "data"))
    store = jobs.create(tmp_path / "s", dataclasses.replace(mini.sweep(), evaluations=both))
    prepare(store)
    done(store, f"{A}/train")
    for name in ("val", "more"):
        done(store, f"{A}/evaluate-s3-{name}", scores={"cell": 40.0})
    with pytest.raises(ConfigError, match="'cell' is a task of another evaluation too"):
        status.collect(store, store.states())
