"""QueCC in training, evaluation and generation: visual tokens depend on the question."""

import json

import jax
import numpy as np
import pytest

from vvlm_jax import VideoVLM
from vvlm_jax.config import ConfigError
from vvlm_jax.data import pipeline
from vvlm_jax.eval.runner import evaluate, read_questions
from vvlm_jax.models import variants
from vvlm_jax.train.loop import train
from vvlm_jax.train.model_dir import load_params, open_model

OPTIONS = (
    "model.resampler=quecc",
    "model.quecc_layers=[1,2]",
    'optim.learning_rates=[["vision/.*",1e-3],["(projector|quecc|llm)/.*",5e-3]]',
)


@pytest.fixture(scope="module")
def trained(stage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quecc") / "run"
    train(stage(folder, *OPTIONS, epochs=4))
    return folder


def test_the_loss_of_a_small_run_falls(trained):
    lines = (trained / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_examples_carry_their_questions(stage, tok):
    config = stage("unused", *OPTIONS)
    vision = variants.VISION["study/12"]
    examples = pipeline.Examples(config.data, config.model, vision, tok, 0)
    row, example = examples.rows[0], examples[0]
    said = " ".join(t["value"] for t in row["conversations"] if t["from"] == "human")
    text = tok.decode(example.query_Q[: example.query_length])
    assert text.split() == said.replace("<video>", "").split()
    assert not example.query_Q[example.query_length :].any()
    config = stage("unused")
    assert pipeline.Examples(config.data, config.model, vision, tok, 0)[0].query_Q is None


@pytest.mark.slow(reason="models/test_quecc.py holds it for random parameters")
def test_visual_tokens_depend_on_the_question(trained, world):
    model, params = open_model(trained)[0], load_params(trained)
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 48, 48, 3), dtype=np.uint8)
    frames[1] = frames[0]
    encode = jax.jit(lambda *args: model.apply({"params": params}, *args, method="encode"))
    query, lengths = np.array([[3, 9, 0], [3, 10, 0]], np.int32), np.array([2, 2], np.int32)
    first, second = encode(frames, query, lengths)
    assert np.abs(first - second).max() > 1e-3
    padded = np.pad(query, ((0, 0), (0, 3)), constant_values=7)
    np.testing.assert_allclose(encode(frames, padded, lengths)[0], first, atol=1e-5)


@pytest.mark.slow(reason="compiles QueCC's programs; test_sharded.py compares both ways in")
def test_evaluation_and_generation_give_the_same_replies(trained, world, tmp_path):
    vlm = VideoVLM.load(trained)
    questions = [dict(q) for q in read_questions(world / "val.jsonl")]
    for question in questions:
        question.pop("choices", None)
    file = tmp_path / "predictions.jsonl"
    evaluate(vlm, questions, file, media_root=world, max_new_tokens=3)
    by_id = {p["id"]: p["reply"] for p in map(json.loads, file.read_text().splitlines())}
    some = questions[:6]
    told = vlm.generate(
        [world / q["video"] for q in some], [q.get("prompt", q["question"]) for q in some],
        max_tokens=3,
    )  # fmt: skip
    assert len(by_id) == len(questions)
    assert told == [by_id[q["id"]] for q in some]


def test_its_tokens_a_frame_cannot_be_changed(trained):
    with pytest.raises(ConfigError, match="made for its own 4"):
        VideoVLM.load(trained).generate(None, ["a"], tokens_per_frame=1)
