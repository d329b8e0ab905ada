"""What the adapter answers to LMMs-Eval's requests, without running a benchmark."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vvlm_jax.config import ConfigError
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.video import VideoError
from vvlm_jax.generate.video_vlm import VideoVLM

pytestmark = [pytest.mark.lmms, pytest.mark.filterwarnings("ignore")]  # of what LMMs-Eval imports

VIDEOS = Path(__file__).parents[1] / "testdata" / "videos"
CLIP, OTHER = str(VIDEOS / "h264_one_gop.mp4"), str(VIDEOS / "vp9.webm")
DOCS = [dict(video=CLIP), dict(video=OTHER), dict(video=CLIP)]
GREEDY = {"until": ["\n\n"], "do_sample": False, "max_new_tokens": 4, "temperature": 0.7}


@pytest.fixture(scope="module")
def vlm(model_folder):
    return VideoVLM.load(model_folder)


@pytest.fixture
def adapter(vlm):
    """Return adapter(…) -> VvlmJax that knows DOCS as task t, split s."""
    from vvlm_jax.eval.lmms import VvlmJax

    def make(docs=DOCS, model=vlm, **options):
        lm = VvlmJax(model, **{"batch_size": 2, **options})
        lm.task_dict = {"t": {"s": docs}}
        return lm

    return make


def visuals(doc):
    return [doc["video"]]


def asked(context, doc_id, options=GREEDY, visuals=visuals):
    return SimpleNamespace(args=(context, dict(options), visuals, doc_id, "t", "s"))


REQUESTS = [asked("Who?", 0), asked("What?", 1), asked("Why?", 2), asked("What?", 0)]


def test_replies_are_the_models_in_the_order_of_the_requests(adapter, vlm):
    expected = vlm.generate(
        [CLIP, OTHER, CLIP, CLIP], ["Who?", "What?", "Why?", "What?"], max_tokens=4
    )
    assert adapter().generate_until(REQUESTS) == [reply.strip() for reply in expected]
    assert len(set(expected)) > 2


def test_space_around_a_reply_is_cut(adapter, monkeypatch):
    monkeypatch.setattr(VideoVLM, "generate", lambda s, v, p, **o: [" A\n"] * len(p))
    assert adapter().generate_until(REQUESTS[:2]) == ["A", "A"]


def test_a_video_is_read_once_for_its_questions(adapter, vlm, monkeypatch):
    read, plain = [], FrameReader.video
    monkeypatch.setattr(FrameReader, "video", lambda s, name: read.append(name) or plain(s, name))
    vlm.encoded.clear()
    adapter(batch_size=1).generate_until(REQUESTS)
    assert sorted(read) == sorted([CLIP, OTHER])


def test_length_and_sampling_are_the_tasks(adapter, vlm):
    lm = adapter(max_new_tokens=3)
    short = {"max_new_tokens": 1, "do_sample": False}
    sampled = {"do_sample": True, "temperature": 5.0, "top_p": 0.9}
    found = lm.generate_until(
        [asked("Who?", 0, {}), asked("Who?", 0, short), asked("Who?", 0, sampled)]
    )
    assert found == [
        vlm.generate(CLIP, "Who?", max_tokens=3)[0],
        vlm.generate(CLIP, "Who?", max_tokens=1)[0],
        vlm.generate(CLIP, "Who?", max_tokens=3, temperature=5.0, top_p=0.9)[0],
    ]
    with pytest.raises(ConfigError, match="num_beams = 3: there is no beam search"):
        lm.generate_until([asked("Who?", 0, {"num_beams": 3})])


def test_text_alone_images_and_folders_are_asked_about(adapter, vlm, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for i in range(4):
        Image.fromarray(pixels + i).save(tmp_path / f"{i}.png")
    image = Image.fromarray(pixels)
    found = adapter().generate_until(
        [
            asked("Who?", 0, visuals=lambda doc: None),
            asked("Who?", 0, visuals=lambda doc: [image]),
            asked("Who?", 0, visuals=lambda doc: [str(tmp_path)]),
        ]
    )
    expected = vlm.generate([None, tmp_path / "0.png", tmp_path], ["Who?"] * 3, max_tokens=4)
    assert found == expected


def test_what_was_answered_is_not_asked_again(adapter, vlm, model_folder, tmp_path, monkeypatch):
    file = tmp_path / "replies.jsonl"
    first = adapter(replies=file).generate_until(REQUESTS[:2])
    text = file.read_text()
    file.write_text(text + text[:30])  # killed while it wrote
    seen, plain = [], VideoVLM.generate
    monkeypatch.setattr(
        VideoVLM, "generate", lambda s, v, p, **o: seen.extend(p) or plain(s, v, p, **o)
    )
    again = adapter(replies=file).generate_until(REQUESTS)
    assert again[:2] == first
    assert sorted(seen) == ["What?", "Why?"]
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 4
    adapter(replies=file, num_frames=2).generate_until(REQUESTS[:1])
    assert len(seen) == 3  # other frames are another question


def test_an_unreadable_video_has_an_empty_reply_or_stops(adapter, vlm, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    docs = [DOCS[0], dict(video=str(tmp_path / "bad.mp4")), DOCS[2]]
    lm = adapter(docs, max_unreadable=0.5)
    [good] = vlm.generate(CLIP, "Who?", max_tokens=4)
    assert lm.generate_until([asked("Who?", i) for i in range(3)]) == [good, "", good]
    assert list(lm.unreadable) == [docs[1]["video"]]
    with pytest.raises(VideoError, match=r"1 questions about unreadable videos.*bad\.mp4"):
        adapter(docs).generate_until([asked("Who?", i) for i in range(3)])


def test_a_likelihood_is_a_mean_loss(adapter, vlm):
    def likelihood(context, target, doc_id):
        return SimpleNamespace(args=(context, target, visuals, doc_id, "t", "s"))

    found = adapter().loglikelihood(
        [
            likelihood("Who?", "A", 0),
            likelihood("Who?", lambda doc: "Bee", 1),
            likelihood("Who?", " Bee", 0),
            SimpleNamespace(args=("", "Bee")),
        ]
    )
    [[a, bee]] = vlm.loglikelihoods(CLIP, "Who?", [["A", "Bee"]])
    [[other]] = vlm.loglikelihoods(OTHER, "Who?", [["Bee"]])
    [[alone]] = vlm.loglikelihoods(None, "?", [["Bee"]])
    for (loss, greedy), value in zip(found, [a, other, bee, alone], strict=True):
        assert loss == pytest.approx(-value.logprob / value.num_tokens, rel=1e-4)
        assert greedy == value.greedy
        assert 0 < loss < math.inf


def test_rounds_go_on_until_the_task_ends_them(adapter, vlm):
    def doc_to_text(doc, previous_output, round_idx, previous_round_info):
        ended = round_idx == (1 if doc["video"] == OTHER else 2)
        note = (previous_round_info or 0) + 1
        return [doc["video"]], f"round {round_idx} {note}", ended, previous_output, note

    requests = [
        SimpleNamespace(args=("Who?", dict(GREEDY), visuals, doc_to_text, i, "t", "s"))
        for i in range(2)
    ]
    found = adapter().generate_until_multi_round(requests)
    first = vlm.generate([CLIP, OTHER], ["Who?", "Who?"], max_tokens=4)
    second = vlm.generate(CLIP, "round 1 1", max_tokens=4)
    assert found == [[first[0], *second], [first[1]]]


def test_options_of_the_command_line_are_read_and_wrong_ones_named(model_folder):
    from vvlm_jax.eval.lmms import VvlmJax

    extra = {"batch_size": 3, "max_batch_size": None, "device": "cpu"}
    text = f"pretrained={model_folder},num_frames=2,max_new_tokens=7"
    lm = VvlmJax.create_from_arg_string(text, extra)
    assert (lm.batch_size, lm.max_new_tokens, lm.size["num_frames"]) == (3, 7, 2)
    with pytest.raises(ConfigError, match="model_args: no such option: frames"):
        VvlmJax.create_from_arg_string(f"pretrained={model_folder},frames=2", extra)
    with pytest.raises(ConfigError, match="pretrained=FOLDER is missing"):
        VvlmJax.create_from_arg_string("", extra)


@pytest.mark.parametrize("first", ["lmms_eval.models", "vvlm_jax.eval.lmms"])
def test_lmms_eval_finds_it_by_name(first):
    code = (
        f"import {first}; from lmms_eval.models import get_model; "
        "print(get_model('vvlm_jax').__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] == ["vvlm_jax.eval.lmms"], done.stderr[-2000:]
