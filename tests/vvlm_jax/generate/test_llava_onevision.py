"""From an mp4 to the words of the reply, as transformers' LlavaOnevision: 64 greedy tokens."""

import av
import numpy as np
import pytest
from PIL import Image

from tools import convert
from vvlm_jax.data.tokenizer import BOS, EOT, HEADER_END, HEADER_START, VIDEO, word_level
from vvlm_jax.data.video import write_video
from vvlm_jax.generate.video_vlm import VideoVLM

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

WORDS = ["user", "assistant", *(f"w{i}" for i in range(60))]
FIRST = 8
"""Id of the first word; below are special tokens and line breaks, and the newline is the last."""
T, GRID, SIDE, NEW = 3, 5, 3, 64
CLIPS = {"short.mp4": (12, 4), "long.mp4": (20, 2)}
"""Frames and frames a second: three seconds, and ten."""
CHOSEN = {"short.mp4": (0, 4, 8), "long.mp4": (0, 9, 19)}
"""One a second; or, where those are too many, spread evenly (LLaVA-NeXT)."""
ASKED = [
    ("short.mp4", "w3 w14 w15"),
    ("long.mp4", "w9 w2 w6 w5 w35 w8 w9 w7 w9"),
    ("long.mp4", "w3"),
    ("short.mp4", "w27 w18 w28 w18 w28 w4 w59"),
]


@pytest.fixture(scope="module")
def backend():
    return word_level(WORDS)


@pytest.fixture(scope="module")
def theirs(backend):
    """Return a random model that says words alone, so that a reply's text tells its ids."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    tower = tf.SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        image_size=4 * GRID + 2, patch_size=4, vision_use_head=False,
    )  # fmt: skip
    vocab = backend.get_vocab_size()
    text = tf.LlamaConfig(
        vocab_size=vocab, hidden_size=40, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, max_position_embeddings=512,
        rope_parameters=dict(rope_type="default", rope_theta=1e4), eos_token_id=1,
    )  # fmt: skip
    video = backend.token_to_id(VIDEO)
    config = tf.LlavaOnevisionConfig(
        vision_config=tower, text_config=text, image_token_index=video, video_token_index=video,
        vision_feature_layer=-2, attn_implementation="eager",
    )  # fmt: skip
    model = tf.LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for x in model.parameters():
            x += 0.2 * torch.randn_like(x)
        head = model.lm_head.weight
        head[:FIRST], head[-1] = 0, 0
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the videos."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(1)
    for name, (num_frames, fps) in CLIPS.items():
        blocks = rng.integers(0, 256, (num_frames, 4, 6, 3), dtype=np.uint8)
        frames = blocks.repeat(12, axis=1).repeat(12, axis=2)
        write_video(folder / name, frames, fps)
    return folder


def pixels(file):
    """Return float32 [1, T, 3, S, S]: every frame decoded, those of CHOSEN resized by PIL."""
    with av.open(file) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == CLIPS[file.name][0]
    size = (4 * GRID + 2,) * 2
    chosen = [Image.fromarray(frames[i]).resize(size, Image.BICUBIC) for i in CHOSEN[file.name]]
    x = np.stack([np.asarray(image) for image in chosen]).astype(np.float32)
    return ((x / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)[None].copy()


def written_out(backend, text):
    """Return the ids of Llama 3's chat format; theirs counts the newline as a visual token."""
    names = [BOS, HEADER_START, "user", HEADER_END, "\n\n"] + [VIDEO] * (T * SIDE**2 + 1)
    names += ["\n", *text.split(), EOT, HEADER_START, "assistant", HEADER_END, "\n\n"]
    return [backend.token_to_id(name) for name in names]


def their_reply(model, backend, file, text):
    """Return (words, by how much the likeliest word led at the closest step, in parts of the
    largest)
    """
    import torch

    ids = torch.tensor([written_out(backend, text)])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
        pixel_values_videos=torch.from_numpy(pixels(file)), pad_token_id=0,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    logits = torch.stack(out.logits)[:, 0]
    first, second = logits.topk(2).values.T
    words = [backend.id_to_token(int(i)) for i in out.sequences[0, ids.shape[1] :]]
    return words, float(((first - second) / logits.abs().max()).min())


def test_replies_to_videos_are_transformers(theirs, backend, folder, tmp_path):
    """Questions of different lengths share a batch; no choice is close enough for rounding to
    matter.
    """
    theirs.save_pretrained(tmp_path / "hf")
    backend.save(str(tmp_path / "hf/tokenizer.json"))
    convert.main(convert.Args(str(tmp_path / "hf"), tmp_path / "ours"))
    vlm = VideoVLM.load(tmp_path / "ours")
    videos, texts = [folder / name for name, _ in ASKED], [text for _, text in ASKED]
    replies = vlm.generate(videos, texts, num_frames=T, max_tokens=NEW)
    expected = [
        their_reply(theirs, backend, video, text)
        for video, text in zip(videos, texts, strict=True)
    ]  # fmt: skip
    for reply, (words, margin) in zip(replies, expected, strict=True):
        assert len(words) == NEW
        assert len(set(words)) > 8
        assert margin > 1e-4  # of float32's 1e-7, and what 64 steps add to it
        assert reply.split() == words
    assert len(set(replies)) == len(ASKED)
    swapped = vlm.generate(videos[1], texts[0], num_frames=T, max_tokens=NEW)
    assert swapped[0] != replies[0]  # the video is seen
