"""Loss of masked labels and all of its gradients, as transformers has them.

Their gradients come to us by the way that their weights take: a model whose parameters are the
gradients is saved, and read.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.models.vlm import VLM
from vvlm_jax.train.loss import token_losses, weigh
from vvlm_jax.weights import sources

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread")]

T, SIDE = 3, 2
VIDEO, NEWLINE = 49, 48
LENGTHS = (45, 38)
STARTS = (4, 9)
"""Of the videos' blocks: frames, then a newline."""
ANSWERS = ((*range(25, 31), *range(39, 45)), (*range(31, 38),))
"""Where labels stand: two turns in the first row, one in the second."""


@pytest.fixture(scope="module")
def batch():
    """Return (ids, where they are, labels, frames): two rows of different lengths, padded right."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, 48, (2, max(LENGTHS)), dtype=np.int32)
    labels = np.full_like(tokens, -100)
    for row, (start, answers) in enumerate(zip(STARTS, ANSWERS, strict=True)):
        tokens[row, start : start + T * SIDE**2] = VIDEO
        tokens[row, start + T * SIDE**2] = NEWLINE
        labels[row, list(answers)] = tokens[row, list(answers)]
    there = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
    return tokens, there, labels, rng.integers(0, 256, (2, T, 18, 18, 3), dtype=np.uint8)


def theirs(model, batch, folder, videos):
    """Return (loss, {path: gradient}) of transformers' model."""
    import torch

    model = copy.deepcopy(model)
    tokens, there, labels, frames = batch
    if videos:  # theirs takes the newline for a token of the video
        tokens = np.where(tokens == NEWLINE, VIDEO, tokens)
        pixels = ((frames.astype(np.float32) / 255 - 0.5) / 0.5).transpose(0, 1, 4, 2, 3)
        videos = dict(pixel_values_videos=torch.from_numpy(pixels.copy()))
    tokens, there, labels = (torch.from_numpy(x).long() for x in (tokens, there, labels))
    out = model(input_ids=tokens, attention_mask=there, labels=labels, **(videos or {}))
    out.loss.backward()
    with torch.no_grad():
        for x in model.parameters():
            x.copy_(torch.zeros_like(x) if x.grad is None else x.grad)
    model.save_pretrained(folder)
    return out.loss, read(folder)[1]


def read(folder):
    """Return (source, {path: array})."""
    source = sources.open_source(folder)
    return source, sources.load(source, sources.like(source))


def ours(source, params, batch, videos):
    """Return (loss, {path: gradient}) of our model; without videos, of the language model."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    tokens, _, labels, frames = batch
    rows, positions = np.nonzero(labels[:, 1:] != -100)
    weight = np.zeros((2, max(map(len, ANSWERS))), np.float32)
    at = np.zeros(weight.shape, np.int32)
    for row in range(2):
        here = positions[rows == row]
        at[row, : len(here)], weight[row, : len(here)] = here, 1
    targets = np.take_along_axis(labels, at + 1, axis=1) * weight.astype(np.int32)
    newline = NEWLINE if videos else None
    model = VLM(
        source.model.vision, source.model.llm, SIDE**2, VIDEO, jnp.float32, newline_id=newline
    )
    frames = frames if videos else frames[:, :0]

    def loss(params):
        logits = model.apply({"params": params}, tokens, frames, at, method="target_logits")
        total, weights = weigh(token_losses(logits, targets), weight, "token")
        return total / weights

    value, grads = jax.jit(jax.value_and_grad(loss))(unflatten_dict(params, sep="/"))
    return value, flatten_dict(grads, sep="/")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("onevision", {"vision_feature_layer": -2}),
        pytest.param(
            "onevision-qwen2", {}, marks=pytest.mark.slow(reason="compiles a third model")
        ),
        ("qwen2", {"tie_word_embeddings": False}),
    ],
)
def test_loss_and_gradients_are_transformers(saved, batch, tmp_path, kind, options):
    """Each parameter's to 1e-4 of its largest value. The bias of SigLIP's keys has no gradient but
    rounding: it shifts all of a query's scores.
    """
    model, folder = saved(kind, **options)
    videos = kind != "qwen2"
    source, params = read(folder)
    loss, grads = ours(source, params, batch, videos)
    their_loss, their_grads = theirs(model, batch, tmp_path, videos)
    assert abs(loss - their_loss.item()) <= 1e-4 * their_loss.item()
    assert grads.keys() == their_grads.keys()
    largest = max(np.abs(x).max() for x in their_grads.values())
    for path, their in their_grads.items():
        error, scale = (
            np.abs(np.asarray(grads[path]) - np.asarray(their)).max(),
            np.abs(their).max(),
        )
        if path.startswith("vision/") and path.endswith("/key/bias"):
            assert max(error, scale) <= 1e-5 * largest, path
        else:
            assert scale > 0, path
            assert error <= 1e-4 * scale, (path, error / scale)
