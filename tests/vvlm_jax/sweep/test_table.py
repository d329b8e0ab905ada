import dataclasses
import json

import pytest

from configs.sweeps import mini
from tests.vvlm_jax.sweep.entries import done, prepare
from vvlm_jax.config import ConfigError
from vvlm_jax.sweep import jobs, table
from vvlm_jax.sweep.config import Evaluation
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import Store

A, B, C, D = (p.run_id for p in mini.sweep().points)


@pytest.fixture
def store(tmp_path):
    return jobs.create(tmp_path / "s", mini.sweep())


def test_scores_that_are_missing_stay_missing_and_are_listed(store):
    prepare(store)
    for run in (A, B, C):
        done(store, f"{run}/train")
    done(store, f"{A}/evaluate-s3-val", scores={"cell": 40.0, "most": 60.0})
    done(store, f"{B}/evaluate-s3-val", scores={"cell": 40.0, "most": None})
    store.end(store.claim(f"{C}/evaluate-s3-val"), journal.FAILED, error="OSError: gone")
    found = table.collect(store, store.states())
    scores = {(row["run_id"], row["metric"]): row["score"] for row in found.rows}
    assert scores == {(A, "cell"): 40.0, (A, "most"): 60.0, (A, "avg"): 50.0, (B, "cell"): 40.0}
    assert found.missing == [
        (f"{B} most", "no question could be scored"),
        (f"{C}/evaluate-s3-val", "OSError: gone"),
        (f"{D}/evaluate-s3-val", "waiting"),
    ]
    assert {row["num_examples"] for row in found.rows} == {12}
    assert {row["score_se"] for row in found.rows} == {None}


@pytest.mark.light
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
        found = table.collect(opened, opened.states())
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
    found = table.collect(store, store.states())
    assert [(row["metric"], row["score"]) for row in found.rows] == [("avg", 40.0), ("cell", 40.0)]
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
        table.collect(store, store.states())
