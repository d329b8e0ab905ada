"""Generation with visual tokens that depend on the question, from layers that lie apart."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from vvlm_jax.data import chat
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.tokenizer import VIDEO
from vvlm_jax.generate.generate import Prompts, programs, until_stop, write
from vvlm_jax.generate.video_vlm import VideoVLM
from vvlm_jax.models import vlm as vlm_module
from vvlm_jax.override import to_json
from vvlm_jax.train.model_dir import load_params, open_model, save_params

VIDEOS = Path(__file__).parents[2] / "testdata" / "videos"
CLIP, OTHER = VIDEOS / "h264_one_gop.mp4", VIDEOS / "vp9.webm"
ASKED = [(CLIP, "What happens?"), (OTHER, "Who is that, and why?"), (CLIP, "a"), (CLIP, "b")]
NEW = 24


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory):
    """Return `model_folder` with QueCC: 4 tokens a frame, each of 2 × 2 patches."""
    folder = tmp_path_factory.mktemp("quecc")
    model, tok, config = open_model(model_folder)
    sizes = dataclasses.replace(config.model, resampler="quecc", quecc_layers=(1,))
    model = vlm_module.build(sizes, tok.special[VIDEO], tok.vocab)
    params = jax.jit(vlm_module.init, static_argnums=0)(model, jax.random.key(1))
    save_params(folder, jax.tree.map(lambda x: 3 * x, params))
    (folder / "config.json").write_text(to_json(dataclasses.replace(config, model=sizes)))
    return folder


@pytest.mark.slow(reason="compiles several programs")
def test_layers_apart_answer_as_layers_that_are_scanned(folder):
    vlm = VideoVLM.load(folder)
    model, tok, _ = open_model(folder)
    params = load_params(folder)
    assert {"layers_0", "layers_1"} <= vlm.params["llm"].keys()
    assert "layers" in params["llm"]
    run, reader, expected = programs(model, tok.stop_ids), FrameReader("", 3, 16), []
    for path, text in ASKED:
        turns = [{"from": "human", "value": f"<video>\n{text}"}]
        query = np.int32([chat.question(turns, tok)])
        asked = (reader.video(path)[None], query, np.int32([query.shape[1]]))
        visual = run.encode(params, *asked)
        np.testing.assert_allclose(run.encode(vlm.params, *asked), visual, rtol=1e-4, atol=1e-4)
        ids = np.int32([chat.encode_prompt(turns, tok, [[tok.special[VIDEO]] * 12])])
        prompts = Prompts(ids, np.int32([ids.shape[1]]))
        [(out, _)] = write(run, params, prompts, visual, NEW)
        expected.append(tok.decode(until_stop(out[0], tok.stop_ids)))
    videos, texts = zip(*ASKED, strict=True)
    assert vlm.generate(videos, texts, max_tokens=NEW) == expected
    assert len(set(expected)) == len(ASKED)


@pytest.mark.slow(reason="compiles several programs")
def test_the_question_reaches_the_reply_through_the_video_alone(folder, monkeypatch):
    """Two rows have one text and video but different questions: visual tokens differ."""
    vlm = VideoVLM.load(folder)
    same = vlm.generate([CLIP] * 2, ["a", "a"], max_tokens=NEW)
    assert same[0] == same[1]
    words = iter((("a",), ("zzzz",)))
    monkeypatch.setattr(chat, "question", lambda turns, tok: tok.encode(next(words)[0]))
    first, second = vlm.generate([CLIP] * 2, ["a", "a"], max_tokens=NEW)
    assert first != second
