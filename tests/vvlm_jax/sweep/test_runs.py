import dataclasses
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from vvlm_jax.config import first_difference
from vvlm_jax.sweep import store
from vvlm_jax.sweep.runs import run_spec, table_rows

POINT = SimpleNamespace(
    run_id="p1", sweep="star", lm_params=12345, num_frames=3, tokens_per_frame=9, num_examples=8
)


@pytest.fixture
def spec(stage):
    return run_spec(
        POINT, stage("base"), "runs/p1", "study-m", (("llm", "lm/m"),),
        cost=7.0, questions="val.jsonl", eval_media_root="media", max_new_tokens=5,
    )  # fmt: skip


def test_a_point_fills_in_what_it_names_and_nothing_else(spec, stage):
    assert (spec.run_id, spec.sweep, spec.lm_params, spec.cost) == ("p1", "star", 12345, 7.0)
    assert (spec.questions, spec.eval_media_root, spec.max_new_tokens) == ("val.jsonl", "media", 5)
    base, train = stage("base"), spec.train
    expected = stage(
        "runs/p1", "model.llm=study-m", "model.num_frames=3", "model.tokens_per_frame=9",
        "data.num_examples=8", init=(("llm", "lm/m"),),
    )  # fmt: skip
    assert first_difference(train, expected) is None
    assert base == stage("base")


def test_a_spec_crosses_process_borders(spec):
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_a_result_becomes_one_row_a_metric(spec):
    rows = table_rows(spec, {"scores": {"flash": 50.0, "avg": 42.5}, "loss": 1.0})
    common = dict(run_id="p1", sweep="star", lm_params=12345, num_frames=3,
                  tokens_per_frame=9, num_examples=8)  # fmt: skip
    assert rows == [
        {**common, "metric": "flash", "score": 50.0},
        {**common, "metric": "avg", "score": 42.5},
    ]


def test_rows_are_what_the_fits_read(spec, tmp_path):
    from fitting.runs import read_runs, write_runs

    write_runs(tmp_path / "runs.csv", table_rows(spec, {"scores": {"avg": 42.5}}))
    table = read_runs(tmp_path / "runs.csv")
    assert len(table.select(metric="avg")) == 1


def test_a_result_is_read_back(tmp_path):
    assert store.read_result(tmp_path / "run") is None
    store.write_result(tmp_path / "run", {"scores": {"avg": 1.5}})
    assert store.read_result(tmp_path / "run") == {"scores": {"avg": 1.5}}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["result.json"]


@pytest.mark.parametrize("earlier", [None, {"scores": {"avg": 1.0}}])
def test_a_write_that_is_cut_short_leaves_what_was_there(tmp_path, monkeypatch, earlier):
    if earlier:
        store.write_result(tmp_path, earlier)
    plain = Path.write_text

    def half(self, text, *args, **kwargs):
        plain(self, text[: len(text) // 2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space left"):
        store.write_result(tmp_path, {"scores": {"avg": 2.0}})
    monkeypatch.undo()
    assert store.read_result(tmp_path) == earlier


def test_what_json_cannot_hold_leaves_what_was_there(tmp_path):
    store.write_result(tmp_path, {"loss": 1.0})
    with pytest.raises(TypeError):
        store.write_result(tmp_path, {"loss": object()})
    assert json.loads((tmp_path / "result.json").read_text()) == {"loss": 1.0}


def test_specs_cannot_be_changed(spec):
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.cost = 1.0
