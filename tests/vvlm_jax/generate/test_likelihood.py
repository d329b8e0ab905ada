"""Likelihoods of given replies beside one teacher-forced pass over prompt and reply."""

from pathlib import Path

import jax
import numpy as np
import pytest

from vvlm_jax.data import chat
from vvlm_jax.data.media import FrameReader
from vvlm_jax.generate.video_vlm import VideoVLM

VIDEOS = Path(__file__).parents[2] / "testdata" / "videos"
CLIP, OTHER = VIDEOS / "h264_one_gop.mp4", VIDEOS / "vp9.webm"
TEXTS = [["A", "Bee", "ab"], ["A", "!"]]


@pytest.fixture(scope="module")
def vlm(model_folder):
    return VideoVLM.load(model_folder)


def teacher_forced(vlm, forward, video, prompt, text):
    """Return (sum of log-probabilities, whether each token is the likeliest), token by token."""
    config, tok = vlm.config, vlm.tokenizer
    size = config.model
    block = chat.visual_block(size.num_frames, size.tokens_per_frame, "none", tok.special)
    turns = [{"from": "human", "value": f"<video>\n{prompt}"}]
    begun = chat.encode_prompt(turns, tok, [block], config.data.system)
    ids = tok.encode(text)
    tokens_1L = np.zeros((1, 128), np.int32)  # what stands behind is not seen
    tokens_1L[0, : len(begun) + len(ids)] = begun + ids
    reader = FrameReader("", size.num_frames, vlm.model.vision_config.image_size)
    positions_1M = len(begun) - 1 + np.arange(3)[None]
    logits_Mv = forward(vlm.params, tokens_1L, reader.video(str(video))[None], positions_1M)[0]
    logprob_Mv = np.asarray(jax.nn.log_softmax(logits_Mv[: len(ids)]))
    greedy = bool((logprob_Mv.argmax(axis=1) == ids).all())
    return sum(logprob_Mv[m, i] for m, i in enumerate(ids)), greedy


def test_they_are_those_of_a_teacher_forced_pass(vlm):
    asked = ["What happens?", "Who is that, and why?"]
    found = vlm.loglikelihoods([CLIP, OTHER], asked, TEXTS)
    forward = jax.jit(
        lambda params, *x: vlm.model.apply({"params": params}, *x, method="target_logits")
    )
    for video, prompt, texts, values in zip([CLIP, OTHER], asked, TEXTS, found, strict=True):
        assert len(values) == len(texts)
        for text, value in zip(texts, values, strict=True):
            logprob, greedy = teacher_forced(vlm, forward, video, prompt, text)
            assert value.logprob == pytest.approx(logprob, rel=1e-5)
            assert value.greedy == greedy
            assert value.num_tokens == len(vlm.tokenizer.encode(text))


def test_what_the_model_writes_is_greedy_and_nothing_else_is(vlm):
    asked = [f"What happens {i}?" for i in range(16)]
    written = vlm.generate(CLIP, asked, max_tokens=1)  # some are parts of characters
    whole = [(p, t) for p, t in zip(asked, written, strict=True) if t.isascii() and t]
    assert len(whole) > 1
    texts = [[text, "z" if text != "z" else "y"] for _, text in whole]
    for [mine, other] in vlm.loglikelihoods(CLIP, [p for p, _ in whole], texts):
        assert mine.greedy
        assert not other.greedy
        assert other.logprob < mine.logprob < 0


def test_a_text_without_tokens_is_refused(vlm):
    with pytest.raises(ValueError, match="'' has no tokens"):
        vlm.loglikelihoods(CLIP, "What happens?", [["A", ""]])
