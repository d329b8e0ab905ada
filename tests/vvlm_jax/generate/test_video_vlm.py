"""The model that people load: what they may ask of it, and that it reads and compiles seldom."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import vvlm_jax
from vvlm_jax.config import ConfigError
from vvlm_jax.data import chat, tokenizer
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.tokenizer import VIDEO
from vvlm_jax.data.video import VideoError
from vvlm_jax.generate import video_vlm
from vvlm_jax.generate.generate import (
    Prompts,
    ReplyText,
    bucket,
    encode_choices,
    programs,
    until_stop,
    write,
)
from vvlm_jax.generate.video_vlm import VideoVLM
from vvlm_jax.train.model_dir import CheckpointError, load_params, open_model, save_params

ROOT = Path(__file__).parents[3]
VIDEOS = ROOT / "tests" / "testdata" / "videos"
CLIP, OTHER = VIDEOS / "h264_one_gop.mp4", VIDEOS / "vp9.webm"
ASKED = ["What happens?", "Who is that, and why?", "a"]


@pytest.fixture(scope="module")
def vlm(model_folder):
    return VideoVLM.load(model_folder)


@pytest.fixture
def reads(monkeypatch):
    """Return names of the files that are read, in order."""
    seen = []

    def watch(kind, real):
        def read(self, name):
            seen.append(Path(name).name)
            return real(self, name)

        monkeypatch.setattr(FrameReader, kind, read)

    watch("video", FrameReader.video)
    watch("image", FrameReader.image)
    return seen


def test_the_package_exports_it_and_loads_no_jax_for_it():
    code = "import sys, vvlm_jax; assert 'jax' not in sys.modules; print(vvlm_jax.__all__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "['VideoVLM']"), done.stderr
    assert vvlm_jax.VideoVLM is VideoVLM
    with pytest.raises(AttributeError, match="module 'vvlm_jax' has no attribute 'VideoVML'"):
        vvlm_jax.VideoVML  # noqa: B018


def by_hand(model, params, tok, ids, frames, length):
    """Return the reply to one prompt, from stacked float32 parameters."""
    run = programs(model, tok.stop_ids)
    visual = run.encode(params, frames[None])
    prompts = Prompts(np.int32([ids]), np.int32([len(ids)]))
    [(out, _)] = write(run, params, prompts, visual, length)
    return tok.decode(until_stop(out[0], tok.stop_ids))


def test_it_answers_as_the_parts_do(vlm, model_folder):
    """Prompts of different lengths on two videos: alone, by hand, and in one batch."""
    model, tok, _ = open_model(model_folder)
    params, reader, expected = load_params(model_folder), FrameReader("", 3, 16), []
    for path, text in zip((CLIP, OTHER, CLIP), ASKED, strict=True):
        turns = [{"from": "human", "value": f"<video>\n{text}"}]
        ids = chat.encode_prompt(turns, tok, [[tok.special[VIDEO]] * 12])
        expected.append(by_hand(model, params, tok, ids, reader.video(path), 20))
    assert len(set(expected)) == 3
    assert vlm.generate([CLIP, OTHER, CLIP], ASKED, max_tokens=20) == expected


@pytest.fixture
def encodes(monkeypatch):
    """Return shapes of the frames that the vision tower is given, in order."""
    seen = []

    def watched(*of):
        run = programs(*of)

        def encode(params, frames, *asked):
            seen.append(frames.shape)
            return run.encode(params, frames, *asked)

        return run._replace(encode=encode)

    monkeypatch.setattr(video_vlm, "programs", watched)
    return seen


def test_a_video_is_read_and_encoded_once(vlm, reads, encodes):
    vlm.encoded.clear()
    vlm.generate([CLIP, OTHER, CLIP, str(CLIP)], ["a", "b", "c", "d"], max_tokens=2)
    assert reads == [CLIP.name, OTHER.name]
    vlm.generate(CLIP, ["e", "f"], max_tokens=2)
    assert reads == [CLIP.name, OTHER.name]
    assert encodes == [(1, 3, 16, 16, 3)] * 2
    vlm.generate(CLIP, "e", max_tokens=2, num_frames=2)
    assert reads[2:] == [CLIP.name]
    assert encodes[2:] == [(1, 2, 16, 16, 3)]


def test_a_changed_file_is_read_again_and_old_videos_are_let_go(vlm, reads, tmp_path):
    file = tmp_path / "a.mp4"
    shutil.copy(CLIP, file)
    before = vlm.generate(file, "What?", max_tokens=12)
    shutil.copy(OTHER, file)
    assert vlm.generate(file, "What?", max_tokens=12) != before
    for i in range(9):
        shutil.copy(CLIP, tmp_path / f"{i}.mp4")
        vlm.generate(tmp_path / f"{i}.mp4", "?", max_tokens=1)
    assert len(vlm.encoded) == 8
    assert reads == ["a.mp4", "a.mp4", *(f"{i}.mp4" for i in range(9))]


def test_programs_are_compiled_for_few_shapes(model_folder):
    """Texts from 1 to 60 letters, 1 to 8 prompts, 1 to 32 tokens: two lengths × four batches."""
    vlm = VideoVLM.load(model_folder)
    run = programs(vlm.model, vlm.tokenizer.stop_ids, None)
    begun, went_on = run.begin._cache_size(), run.go_on._cache_size()
    encoded = run.encode._cache_size()
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 5, 7, 8):
        texts = ["x" * int(n) for n in rng.integers(1, 60, count)]
        vlm.generate(CLIP, texts, max_tokens=int(rng.integers(1, 33)))
    assert run.begin._cache_size() - begun <= 8
    assert run.go_on._cache_size() - went_on <= 8
    assert run.encode._cache_size() - encoded <= 1


@pytest.mark.parametrize(("count", "size"), [(1, 32), (32, 32), (33, 64), (513, 576), (6312, 6656)])
def test_buckets(count, size):
    assert bucket(count) == size


def test_buckets_are_few_and_near():
    sizes = {n: bucket(n) for n in range(1, 10_000)}
    assert all(n <= size for n, size in sizes.items())
    assert all(size < 1.125 * n for n, size in sizes.items() if n >= 256)
    assert len(set(sizes.values())) < 60


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_pieces_add_up_to_the_text(vlm, temperature):
    options = dict(max_tokens=60, temperature=temperature, top_p=0.9, seed=3)
    whole = vlm.generate(CLIP, ASKED, **options)
    texts, pieces = [""] * 3, [0] * 3
    for index, piece in vlm.generate(CLIP, ASKED, stream=True, **options):
        texts[index] += piece
        pieces[index] += 1
    assert texts == whole
    assert max(pieces) > 3
    one_by_one = vlm.generate(CLIP, ASKED, batch_size=1, **options)
    assert one_by_one == whole


def test_a_piece_ends_with_a_whole_character(model_folder):
    tok = tokenizer.load(model_folder)
    said = "naïve 漢字 🎞️ done"
    ids = tok.encode(said)
    assert len(ids) == len(said.encode())
    text = ReplyText(tok)
    pieces = [text.more(ids[:n], n == len(ids)) for n in range(1, len(ids) + 1)]
    assert "".join(pieces) == said
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert text.more(ids, True) == ""
    cut = ReplyText(tok)  # a reply that is cut inside a character says so
    assert cut.more(ids[:3], False) + cut.more(ids[:3], True) == "na\N{REPLACEMENT CHARACTER}"


def test_draws_depend_on_the_seed_and_not_on_the_batch(vlm):
    options = dict(max_tokens=12, temperature=1.5)
    first = vlm.generate(None, ASKED, **options)
    assert vlm.generate(None, ASKED, batch_size=2, **options) == first
    assert vlm.generate(None, ASKED, seed=1, **options) != first
    assert (
        vlm.generate(None, ["a", "a"], **options)[0] != vlm.generate(None, ["a"] * 2, **options)[1]
    )


def test_frames_and_tokens_may_differ_from_the_models_own(vlm):
    replies = {
        vlm.generate(CLIP, "What?", num_frames=t, tokens_per_frame=v, max_tokens=12)[0]
        for t, v in [(3, 4), (1, 4), (5, 4), (3, 1), (3, 9), (3, 16)]
    }
    assert len(replies) == 6


def test_several_videos_images_or_none_in_one_batch(vlm, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    media = [[CLIP, OTHER], None, [], [tmp_path / "a.png"], [CLIP, tmp_path / "a.png"], CLIP]
    texts = ["x", "x", "x", "x", "first <video> then <image> last", "<image> x"]
    together = vlm.generate(media, texts, max_tokens=12)
    assert together == [
        vlm.generate([m], [t], max_tokens=12)[0] for m, t in zip(media, texts, strict=True)
    ]
    assert together[1] == together[2]
    swapped = vlm.generate([[OTHER, CLIP]], ["x"], max_tokens=12)
    assert swapped != together[:1]
    rows, _ = vlm._rows(media, texts, None, None, 1)
    video = vlm.tokenizer.special[VIDEO]
    assert [row.ids.count(video) for row in rows] == [24, 0, 0, 12, 16, 12]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((CLIP, "x" * 500), {}, r"^prompt 1 has \d+ tokens, 12 of them visual; .* the 512 of the "),
        ((CLIP, "x"), {"num_frames": 200}, "^prompt 1 has 800 visual tokens, more than the 512"),
        ((CLIP, "x"), {"max_tokens": 500}, r"with max_tokens = 500 .* fewer frames"),
        ((CLIP, "x"), {"tokens_per_frame": 5}, r"^tokens_per_frame = 5: must be a perfect square"),
        ((CLIP, "x"), {"tokens_per_frame": 25}, r"^tokens_per_frame = 25: .* 4² = 16"),
        ((CLIP, "x"), {"num_frames": 0}, "^num_frames = 0: must be at least 1"),
        ((CLIP, "x"), {"max_tokens": 0}, "^max_tokens = 0: must be at least 1"),
        ((CLIP, "x"), {"batch_size": 0}, "^batch_size = 0: must be at least 1"),
        ((CLIP, "x"), {"temperature": -1}, "^temperature = -1: must be 0"),
        (([CLIP], ["x", "y"]), {}, "^1 videos for 2 prompts"),
        (([[CLIP, CLIP]], ["<video> x"]), {}, "has 1 <image> or <video> placeholders, expected 2"),
        ((None, "<video> x"), {}, "has 1 <image> or <video> placeholders, expected 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(vlm, reads, arguments, options, message):
    with pytest.raises(ValueError, match=message) as e:
        vlm.generate(*arguments, **options)
    assert "\n" not in str(e.value)
    assert reads == []


@pytest.mark.parametrize("name", ["gone.mp4", "zero_bytes.mp4", "audio_only.m4a", "gone.png"])
def test_what_cannot_be_read_is_named_in_one_line(vlm, name):
    with pytest.raises(VideoError, match=name) as e:
        vlm.generate(VIDEOS / name, "x")
    assert "\n" not in str(e.value)


def test_a_folder_that_is_no_model_is_named(tmp_path, model_folder):
    with pytest.raises(CheckpointError, match=r"no config\.json, so not a finished model"):
        VideoVLM.load(tmp_path)
    values = json.loads((model_folder / "config.json").read_text())
    values["data"]["tokenizer"] = str(tmp_path / "gone")
    folder = shutil.copytree(model_folder, tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="m: no tokenizer: put the .*gone' is not there"):
        VideoVLM.load(folder)


def test_matrices_are_kept_in_the_dtype_of_their_products(tmp_path, model_folder):
    shutil.copytree(model_folder, tmp_path / "m")
    values = json.loads((tmp_path / "m" / "config.json").read_text())
    values["model"]["dtype"] = "bfloat16"
    (tmp_path / "m" / "config.json").write_text(json.dumps(values))
    vlm = VideoVLM.load(tmp_path / "m")
    assert vlm.params["llm"]["layers_1"]["mlp"]["up"]["kernel"].dtype == "bfloat16"
    assert vlm.params["llm"]["norm"]["scale"].dtype == "float32"
    model, tok, _ = open_model(tmp_path / "m")
    params = load_params(tmp_path / "m")
    frames = FrameReader("", 3, 16).video(CLIP)[None]
    run = programs(model, tok.stop_ids)
    for ours, theirs in zip(
        run.encode(vlm.params, frames), run.encode(params, frames), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert VideoVLM.load(tmp_path / "m", dtype="float32").model.dtype == "float32"
    with pytest.raises(ConfigError, match="model.dtype = .*float23"):
        VideoVLM.load(tmp_path / "m", dtype="float23")


def test_parameters_in_memory_answer_as_those_in_a_folder(vlm, model_folder):
    _, tok, config = open_model(model_folder)
    params = load_params(model_folder)
    ours = VideoVLM.from_params(config, params, tok)
    assert ours.generate(CLIP, ASKED, max_tokens=8) == vlm.generate(CLIP, ASKED, max_tokens=8)
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))  # they stay the caller's


def test_decoded_frames_are_a_video_encoded_once(vlm, encodes):
    vlm.encoded.clear()
    frames = FrameReader("", 3, 16).video(CLIP)
    replies = vlm.generate(frames, ASKED, max_tokens=8)
    assert encodes == [(1, 3, 16, 16, 3)]
    assert replies == vlm.generate(CLIP, ASKED, max_tokens=8)
    with pytest.raises(ConfigError, match=r"^frames of uint8 \[3, 8, 16, 3\]: must be "):
        vlm.generate(frames[:, :8], "x")


def test_choices_are_the_only_replies(vlm):
    choices = [["yes", "no"], ["a b c", "ab", "b"], ["yes"]]
    replies = vlm.generate(CLIP, ASKED, max_tokens=8, choices=choices, batch_size=2)
    assert all(reply in mine for reply, mine in zip(replies, choices, strict=True))
    assert encode_choices(choices, vlm.tokenizer, 8).shape == (3, 4, 8)  # few sizes
    with pytest.raises(ValueError, match="choice 'a b c' has 5 tokens, more than the 4"):
        vlm.generate(CLIP, ASKED, max_tokens=4, choices=choices)


@pytest.mark.parametrize(
    "newline",
    [
        *(pytest.param(x, marks=pytest.mark.slow(reason="compiles a third model"))
          for x in ("per-video", "per-frame")),
        "grid",
    ],
)  # fmt: skip
def test_newlines_are_read_where_the_model_has_them(tmp_path, model_folder, newline):
    """The reply changes with the learnt newline and equals that of the parts."""
    values = json.loads((model_folder / "config.json").read_text())
    values["model"]["newline"] = newline
    params, replies = load_params(model_folder), []
    for scale in (0.0, 1.0):
        folder = tmp_path / str(scale)
        learnt = scale * np.linspace(-3, 3, 24, dtype=np.float32)
        save_params(folder, params | {"newline": learnt})
        (folder / "config.json").write_text(json.dumps(values))
        replies += VideoVLM.load(folder).generate([CLIP, CLIP], ["What?", "?"], max_tokens=20)
    assert len(set(replies)) == 4
    model, tok, _ = open_model(folder)
    block = chat.visual_block(3, 4, newline, tok.special)
    ids = chat.encode_prompt([{"from": "human", "value": "<video>?"}], tok, [block])
    frames = FrameReader("", 3, 16).video(CLIP)
    assert [by_hand(model, load_params(folder), tok, ids, frames, 20)] == replies[3:]
