import itertools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.data import pipeline
from vvlm_jax.models import vlm
from vvlm_jax.models.variants import VISION
from vvlm_jax.override import from_json
from vvlm_jax.sharding import make_mesh
from vvlm_jax.train import loop, model_dir, optim
from vvlm_jax.train.compiled import compiled_step, initial_state
from vvlm_jax.train.log import TrainingDiverged
from vvlm_jax.train.loop import train
from vvlm_jax.train.model_dir import CheckpointError, load_params, open_model


class Stopped(Exception):
    pass


def lines(folder):
    file = Path(folder) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def flat(tree):
    return {
        jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def params_of(folder):
    return flat(load_params(folder))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for path, x in a.items():
        np.testing.assert_array_equal(x, b[path], err_msg=path)


SPEEDS = ("examples_per_second", "tokens_per_second", "tflops", "mfu", "waiting")
"""Prefixes of the metrics that measure time, which differ between runs of the same config."""


def assert_same_run(folder, other):
    """Assert equal parameters, bit by bit, and equal lines of metrics except for the speeds."""
    assert_equal(params_of(folder), params_of(other))
    a, b = (
        [{k: v for k, v in m.items() if not k.startswith(SPEEDS)} for m in lines(f)]
        for f in (folder, other)
    )
    assert a == b


def stop_after(stop, seen=None):
    def on_step(step, num_steps, metrics):
        if seen is not None:
            seen.append((step, num_steps, metrics["loss"]))
        if step == stop:
            raise Stopped

    return on_step


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    """Return the folder of an uninterrupted run of two epochs of six steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(stage(folder, epochs=2))
    return folder


def state_of(config, tok):
    return initial_state(
        config, vlm.build(config.model, pipeline.video_id(tok)), make_mesh(config.mesh)
    )


# A whole run.


@pytest.mark.light
def test_every_step_is_a_line_of_metrics(whole):
    rows = lines(whole)
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row in rows:
        assert set(row) >= {"loss", "grad_norm", "rate_share", "examples_per_second", "unreadable"}
        step, warm = row["step"] - 1, 1
        share = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / 11))
        assert row["rate_share"] == pytest.approx(share, abs=1e-6)
        assert row["unreadable"] == 0
    assert rows[0]["loss"] == pytest.approx(math.log(192), abs=1)  # a guess among all words
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3


def test_a_finished_run_is_read_back_whole(whole, stage, tok):
    config = stage(whole, epochs=2)
    assert from_json(TrainConfig, (whole / "config.json").read_text()) == config
    model, again, read = open_model(whole)
    params = load_params(whole)
    assert (read, again.special) == (config, tok.special)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, vlm.shapes(model))
    summary = json.loads((whole / "summary.json").read_text())
    assert summary == dict(steps=12, examples=48, loss=lines(whole)[-1]["loss"], unreadable=[])
    assert not (whole / "checkpoints").exists()


def test_a_finished_stage_is_not_trained_again(whole, stage, monkeypatch):
    before = {
        p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != "config.json"
    }
    monkeypatch.setattr(loop, "compiled_step", None)
    summary = train(stage(whole, epochs=2), on_step=stop_after(1))
    assert summary["steps"] == 12
    after = {
        p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != "config.json"
    }
    assert after == before


def test_another_config_in_the_same_folder_is_one_line_that_names_the_difference(whole, stage):
    other = stage(whole, "optim.warmup=0.5", "seed=3", epochs=2)
    with pytest.raises(ConfigError, match=r"holds a run with optim\.warmup = 0\.03, not 0\.5") as e:
        train(other)
    assert "\n" not in str(e.value)
    assert from_json(TrainConfig, (whole / "config.json").read_text()) == stage(whole, epochs=2)


def test_a_run_that_could_not_start_does_not_claim_its_folder(stage, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.num_examples = 25: must be from 1 to 24"):
        train(stage(tmp_path, "data.num_examples=25"))
    with pytest.raises(Stopped):
        train(stage(tmp_path, "data.num_examples=8"), on_step=stop_after(1))
    with pytest.raises(ConfigError, match=r"holds a run with data\.num_examples = 8, not 4"):
        train(stage(tmp_path, "data.num_examples=4"))


def test_options_without_effect_on_results_may_change_between_calls(stage, tmp_path):
    """Otherwise an interrupted run could not continue with a higher limit of unreadable files."""
    train(stage(tmp_path))
    others = ("log_every=3", "checkpoint_every=1", "data.max_unreadable=0.5", "data.read_threads=1")
    train(stage(tmp_path, *others))


def test_a_broken_config_is_named(stage, tmp_path):
    train(stage(tmp_path))
    (tmp_path / "config.json").write_text("")
    with pytest.raises(
        ConfigError, match=r"config\.json: .*; remove .*, or choose another out_dir"
    ):
        train(stage(tmp_path))


def test_only_logged_steps_are_reported_and_always_the_last(stage, tmp_path):
    seen = []
    summary = train(stage(tmp_path, "log_every=4"), on_step=stop_after(None, seen))
    assert [row["step"] for row in lines(tmp_path)] == [4, 6]
    assert seen == [(row["step"], 6, row["loss"]) for row in lines(tmp_path)]
    assert summary["loss"] == seen[-1][-1]


# Steps that are skipped.


@pytest.fixture
def poison(monkeypatch):
    """Return poison(rows), after which batches with any of these rows (None: all) have NaN loss."""

    def those_with(rows):
        stack = pipeline.stack_examples

        def stacked(examples):
            batch = stack(examples)
            if rows is None or set(rows) & set(batch.index_B.tolist()):
                batch.target_weight_BM[:] = math.nan
            return batch

        monkeypatch.setattr(pipeline, "stack_examples", stacked)

    return those_with


def test_a_skipped_step_has_a_line_and_the_run_goes_on(stage, tmp_path, poison):
    poison([7])
    train(stage(tmp_path, "log_every=6", epochs=2))
    rows = {row["step"]: row for row in lines(tmp_path)}
    skipped = [step for step, row in rows.items() if row["skipped"]]
    assert len(skipped) == 2  # the row comes once an epoch
    assert set(rows) == {*skipped, 6, 12}
    for step in skipped:
        assert rows[step]["loss"] is None
        assert rows[step]["skips_in_row"] == 1
    assert all(np.isfinite(x).all() for x in params_of(tmp_path).values())


def test_groups_have_rates_and_norms_in_the_lines(whole):
    for row in lines(whole):
        assert row["rate/vision/.*"] == pytest.approx(1e-3 * row["rate_share"])
        assert row["rate/(projector|llm)/.*"] == pytest.approx(5e-3 * row["rate_share"])
        norms = row["grad_norm/vision/.*"], row["grad_norm/(projector|llm)/.*"]
        assert math.hypot(*norms) == pytest.approx(row["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("log_every", [1, 100])
def test_too_many_skips_in_a_row_stop_the_run_and_leave_their_batches(
    stage, tmp_path, poison, log_every
):
    poison(None)
    config = stage(tmp_path, "optim.max_skipped=3", f"log_every={log_every}", epochs=8)
    with pytest.raises(TrainingDiverged, match=r"steps 1 to 3 were skipped.*loss nan.*npz") as e:
        train(config)
    assert "\n" not in str(e.value)
    assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3]
    assert not model_dir.is_finished(tmp_path)
    steps = json.loads((tmp_path / "diverged.json").read_text())
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert [step["skips_in_row"] for step in steps] == [1, 2, 3]
    assert {"loss", "grad_norm", "grad_norm/vision/.*", "loss_mean"} <= set(steps[0])
    with np.load(tmp_path / "diverged.npz") as arrays:
        for step in steps:
            assert arrays[f"{step['step']}/index_B"].tolist() == step["rows"]
            assert np.isnan(arrays[f"{step['step']}/target_weight_BM"]).all()
            assert arrays[f"{step['step']}/tokens_BL"].shape == (4, 168)


def test_skips_are_counted_over_an_interruption(stage, tmp_path, poison):
    """The count is in the state; otherwise a run that restarts in time would never end."""
    poison(None)
    config = stage(tmp_path, "optim.max_skipped=5", checkpoint_every=2, epochs=2)
    with pytest.raises(Stopped):
        train(config, on_step=stop_after(3))
    with pytest.raises(TrainingDiverged, match=r"steps 3 to 5 were skipped"):
        train(config)


# One compile a bucket.


@pytest.mark.slow(reason="compiles several programs")
def test_one_compile_a_bucket_and_none_more_after_a_resume(stage, uneven, tok, tmp_path):
    texts = [f"data.annotations={uneven}", "data.text_buckets=[115]", "optim.eps=1e-7"]
    config = stage(tmp_path / "run", *texts, epochs=2, checkpoint_every=3)
    examples = pipeline.Examples(config.data, config.model, VISION["study/12"], tok, 0)
    lengths = {b.tokens_BL.shape[1] for b in pipeline.batches(examples, 4, 2, 0)}
    assert lengths == {8 + 115, 8 + 160}
    model, mesh = vlm.build(config.model, pipeline.video_id(tok)), make_mesh(config.mesh)
    step = compiled_step(model, config.optim, mesh, 1, "token", 0)
    with pytest.raises(Stopped):
        train(config, on_step=stop_after(8))
    train(config)
    assert step._cache_size() == 2
    train(stage(tmp_path / "whole", *texts, epochs=2))
    assert step._cache_size() == 2
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_left_over_checkpoints_of_a_finished_run_are_removed(stage, tmp_path):
    """A kill after the parameters are written leaves checkpoints behind."""
    summary = train(stage(tmp_path))
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    assert train(stage(tmp_path)) == summary
    assert not (tmp_path / "checkpoints").exists()


# Interrupted runs.


@pytest.mark.parametrize(
    "stops", [(1, 5, 8), pytest.param((12,), marks=pytest.mark.slow(reason="trains twice"))]
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(stage, whole, tmp_path, stops):
    folder = tmp_path / "run"
    config = stage(folder, epochs=2, checkpoint_every=2)
    for stop in stops:
        seen = []
        with pytest.raises(Stopped):
            train(config, on_step=stop_after(stop, seen))
        assert seen[-1][0] == stop
    seen = []
    train(config, on_step=stop_after(None, seen))
    assert seen[0][0] == (stops[-1] - 1) // 2 * 2 + 1  # after the newest checkpoint
    assert_same_run(folder, whole)


def test_without_checkpoints_a_run_starts_again(stage, whole, tmp_path):
    config = stage(tmp_path / "run", epochs=2)
    with pytest.raises(Stopped):
        train(config, on_step=stop_after(5))
    train(config)
    assert_same_run(tmp_path / "run", whole)


def test_unreadable_files_are_still_reported_after_an_interruption(stage, world, tmp_path):
    rows = json.loads((world / "train.json").read_text())
    for row in rows[:3]:
        row["video"] = f"missing/{row['id']}.mp4"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    reports = {}
    for name, stop in (("whole", None), ("stopped", 5)):
        config = stage(
            tmp_path / name, f"data.annotations={tmp_path}/rows.json", "data.max_unreadable=0.2",
            checkpoint_every=5,
        )  # fmt: skip
        if stop:
            with pytest.raises(Stopped):
                train(config, on_step=stop_after(6))
        reports[name] = train(config)["unreadable"]
        assert lines(tmp_path / name)[-1]["unreadable"] == 3
    assert len(reports["whole"]) == 3
    assert reports["stopped"] == reports["whole"]


# Parts of other runs.


def test_parts_start_from_finished_runs(stage, whole, tok):
    config = stage(init=(("llm", str(whole)), ("vision", str(whole))))
    start = flat(optim.merge(*state_of(config, tok)[1:3]))
    random = flat(optim.merge(*state_of(stage(), tok)[1:3]))
    there = params_of(whole)
    assert start.keys() == there.keys()
    for path, x in start.items():
        from_run = not path.startswith("['projector']")
        np.testing.assert_array_equal(x, (there if from_run else random)[path], err_msg=path)
    assert any((there[p] != random[p]).any() for p in there if "projector" in p)


def test_an_unknown_part_is_an_error(stage, whole, tok):
    with pytest.raises(ConfigError, match=r"init: unknown part 'visoin'; did you mean 'vision'\?"):
        state_of(stage(init=(("visoin", str(whole)),)), tok)


def test_a_missing_model_is_named(stage, tok, tmp_path):
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: no finished model here"):
        state_of(stage(init=(("llm", str(tmp_path)),)), tok)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}: no config\.json"):
        open_model(tmp_path)


def test_a_part_of_another_size_is_named_with_both_shapes(stage, whole, tok):
    config = stage("unused", "model.llm=study-m", init=(("llm", str(whole)),))
    with pytest.raises(
        CheckpointError, match=r"llm/\S+ has shape \(.*32.*\), this model needs .*48"
    ):
        state_of(config, tok)


def test_a_parameter_that_is_not_there_is_named(whole):
    like = {"llm": {"extra": jax.ShapeDtypeStruct((2,), np.float32)}}
    with pytest.raises(CheckpointError, match=r"has no parameter llm/extra"):
        model_dir.load_params(whole, like)


# The tokenizer and the model.


def test_a_tokenizer_larger_than_the_embedding_is_an_error(stage, tmp_path):
    from vvlm_jax.data.tokenizer import word_level

    word_level(map("".join, itertools.product("abcdef", repeat=3))).save(
        str(tmp_path / "tokenizer.json")
    )
    config = stage(tmp_path / "run", f"data.tokenizer={tmp_path}")
    with pytest.raises(ValueError, match=r"225 ids but study-s embeds 192"):
        train(config)
