"""The model that people load and ask.

from vvlm_jax import VideoVLM

vlm = VideoVLM.load("runs/finetune")
vlm.generate(["clip.mp4"], ["What happens?"])
"""

import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vvlm_jax.config import ConfigError, TrainConfig, visual_length
from vvlm_jax.config_check import tokens_side
from vvlm_jax.data import chat
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.data.video import IMAGE_SUFFIXES
from vvlm_jax.generate.generate import laid_apart, programs, until_stop, write
from vvlm_jax.generate.likelihood import Likelihood, loglikelihoods
from vvlm_jax.generate.sampling import draws
from vvlm_jax.models import vlm
from vvlm_jax.models.vlm import VLM
from vvlm_jax.sharding import BATCH, make_mesh, param_shardings
from vvlm_jax.train.model_dir import load_model
from vvlm_jax.types import Prompts

_CHUNK = 8
"""Tokens between two pieces of a streamed reply: one wait for the device each."""
_KEPT_VIDEOS = 8

Media = str | os.PathLike | None | Sequence[str | os.PathLike]


class _Row(NamedTuple):
    """One prompt of a batch: its number, its ids, its media as (path, frames), and the ids that
    their tokens depend on; () unless they do (QueCC).
    """

    index: int
    ids: list[int]
    media: list[tuple[str, int]]
    query: tuple[int, ...]


class VideoVLM:
    """A trained or imported model with its tokenizer, ready to answer; make one with `load`.

    A prompt's length and the number of tokens to write are rounded up to a few sizes, so that the
    programs are compiled seldom. The last eight encoded videos are kept, for more questions.
    """

    def __init__(
        self, model: VLM, params, tokenizer: Tokenizer, config: TrainConfig, mesh: Mesh | None
    ):
        self.model, self.params, self.tokenizer, self.config = model, params, tokenizer, config
        self.mesh = mesh
        self._encoded: OrderedDict = OrderedDict()

    @classmethod
    def load(cls, folder: str | Path, devices=None) -> "VideoVLM":
        """A finished stage's or an imported model.

        With several devices (all by default) the parameters lie on a mesh by the rules of
        `sharding.py`: as many tensor-parallel parts as key-value heads allow, the rest data
        parallel. Matrices are kept in the dtype they are multiplied in.

        Raises CheckpointError when the folder holds no finished model, ValueError when its
        tokenizer is missing.
        """
        devices = jax.devices() if devices is None else list(devices)
        meshes = []

        def place(model: VLM, shapes):
            meshes.append(_mesh(devices, model.llm_config.num_kv_heads))
            return _placed(shapes, model.dtype, meshes[0])

        model, params, tokenizer, config = load_model(folder, place)
        mesh = meshes[0] if len(devices) > 1 else None
        return cls(model, laid_apart(params), tokenizer, config, mesh)

    def generate(
        self,
        videos: Media | Sequence[Media],
        prompts: str | Sequence[str],
        *,
        num_frames: int | None = None,
        tokens_per_frame: int | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stream: bool = False,
        batch_size: int = 8,
    ) -> list[str] | Iterator[tuple[int, str]]:
        """Answers `prompts`, each about its video; a list of as many texts.

        Args:
          videos: for each prompt a path, a list of paths, or None; or one path (or None) for all
            prompts. A file is a video or, by its suffix, an image: alone in its prompt it is a
            video that stands still, beside others one frame. Each file is read and encoded once.
          prompts: what to ask. Videos stand before the text, unless it says `<video>` or `<image>`
            once for each of them.
          num_frames, tokens_per_frame: T and V; the model's own by default.
          max_tokens: length at which a reply is cut.
          temperature: 0 takes the likeliest token; above 0 tokens are drawn.
          top_p: draw from the likeliest tokens that hold this share of the probability.
          seed: a prompt's draws depend on it and on the prompt's place in the list alone.
          stream: hand out (number of the prompt, piece of its text) while replies are written; the
            pieces of a prompt add up to its text.
          batch_size: prompts answered at a time.

        Raises ConfigError for options that cannot work, VideoError for what cannot be read,
        ValueError for a prompt that does not fit its videos or, with `max_tokens`, the context.
        """
        rows, num_tokens = self._rows(videos, prompts, num_frames, tokens_per_frame, max_tokens)
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be at least 1")
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed = {seed}: must be from 0 to {2**32 - 1}")
        draws(seed, [0], temperature, top_p)  # says what is wrong before anything is read
        pieces = self._pieces(
            rows, num_tokens, max_tokens, (seed, temperature, top_p), stream, batch_size
        )
        if stream:
            return pieces
        texts = [""] * len(rows)
        for index, text in pieces:
            texts[index] += text
        return texts

    def loglikelihoods(
        self,
        videos: Media | Sequence[Media],
        prompts: str | Sequence[str],
        texts: Sequence[Sequence[str]],
        *,
        num_frames: int | None = None,
        tokens_per_frame: int | None = None,
        batch_size: int = 8,
    ) -> list[list[Likelihood]]:
        """How likely each prompt's texts are as beginnings of its reply; a list a prompt.

        The other arguments, and what is raised, are those of `generate`; ValueError, too, for a
        text without tokens.
        """
        longest = max(len(self.tokenizer.encode(t)) for row in texts for t in row)
        rows, num_tokens = self._rows(
            videos, prompts, num_frames, tokens_per_frame, max(1, longest)
        )
        found = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            visuals = [self._visual(row, num_tokens) for row in batch]
            count = self._round_up_rows(len(batch))
            found += loglikelihoods(
                self.model,
                self.params,
                self.tokenizer,
                self._prompts(batch, count),
                self._on_rows(_stack(visuals, count, self.model.dtype)),
                texts[start : start + batch_size],
                self.mesh,
            )
        return found

    def _rows(self, videos, prompts, num_frames, tokens_per_frame, max_tokens):
        """([_Row], tokens a frame), checked."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if videos is None or isinstance(videos, str | os.PathLike):
            videos = [videos] * len(prompts)
        if len(videos) != len(prompts):
            raise ConfigError(
                f"{len(videos)} videos for {len(prompts)} prompts: give one a prompt, or one for "
                "all"
            )
        own = self.config.model
        num_frames = own.num_frames if num_frames is None else num_frames
        num_tokens = own.tokens_per_frame if tokens_per_frame is None else tokens_per_frame
        for name, value in (("num_frames", num_frames), ("max_tokens", max_tokens)):
            if value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1")
        tokens_side(num_tokens, self.model.vision_config.grid, "tokens_per_frame")
        if own.resampler == "quecc" and num_tokens != own.tokens_per_frame:
            raise ConfigError(
                f"tokens_per_frame = {num_tokens}: a model with quecc is made for its own "
                f"{own.tokens_per_frame}"
            )
        return [
            self._row(i, video, prompt, num_frames, num_tokens, max_tokens)
            for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True))
        ], num_tokens

    def _row(self, index, video, prompt, num_frames, num_tokens, max_tokens) -> _Row:
        paths = [] if video is None else [video] if isinstance(video, str | os.PathLike) else video
        alone = len(paths) == 1
        media = [(str(p), 1 if _is_image(p) and not alone else num_frames) for p in paths]
        own, special = self.config.model, self.tokenizer.special
        context = self.model.llm_config.max_position
        long = sum(visual_length(t, num_tokens, own.newline) for _, t in media)
        if long > context:  # before a list of so many ids is made
            raise ValueError(
                f"prompt {index + 1} has {long:,} visual tokens, more than the {context:,} of the "
                "model's context: take fewer frames or tokens a frame"
            )
        blocks = [chat.visual_block(t, num_tokens, own.newline, special) for _, t in media]
        data = self.config.data
        if data.prompt != "plain" and not prompt.strip():  # a plain model captions without one
            raise ConfigError(f"prompt {index + 1} is empty: say what to ask")
        if any("\ud800" <= c <= "\udfff" for c in prompt):  # what a shell makes of other bytes
            raise ConfigError(f"prompt {index + 1} is not text in UTF-8")
        turns = [{"from": "human", "value": prompt}]
        if not chat.placeholders(turns):
            turns[0]["value"] = "<video>\n" * len(media) + prompt
        prompt_format = "plain" if data.prompt == "plain" else None
        ids = chat.encode_prompt(turns, self.tokenizer, blocks, data.system, prompt_format)
        if len(ids) + max_tokens > context:
            visual = f", {long:,} of them visual" if blocks else ""
            fewer = "fewer frames or tokens a frame, " if blocks else ""
            raise ValueError(
                f"prompt {index + 1} has {len(ids):,} tokens{visual}; with max_tokens = "
                f"{max_tokens} that is more than the {context:,} of the model's context: take "
                f"{fewer}a shorter text or less room for the reply"
            )
        query = chat.question(turns, self.tokenizer) if own.resampler == "quecc" else ()
        return _Row(index, ids, media, tuple(query))

    def _pieces(self, rows, num_tokens, max_tokens, drawing, stream, batch_size):
        """(number of the prompt, piece of its text), batch by batch."""
        run = programs(self.model, self.tokenizer.stop_ids, self.mesh)
        seed, temperature, top_p = drawing
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            visuals = [self._visual(row, num_tokens) for row in batch]
            count = self._round_up_rows(len(batch))
            indices = [row.index for row in batch] + [0] * (count - len(batch))
            texts = [_Text(self.tokenizer) for _ in batch]
            for out_BM, ended_B in write(
                run,
                self.params,
                self._prompts(batch, count),
                self._on_rows(_stack(visuals, count, self.model.dtype)),
                max_tokens,
                room=bucket(max_tokens),
                chunk=_CHUNK if stream else None,
                draws=draws(seed, indices, temperature, top_p),
            ):
                last = out_BM.shape[1] == max_tokens
                for row, text, ids, ended in zip(batch, texts, out_BM, ended_B, strict=False):
                    done = last or bool(ended)
                    if piece := text.more(until_stop(ids, self.tokenizer.stop_ids), done):
                        yield row.index, piece

    def _prompts(self, batch: list[_Row], count: int) -> Prompts:
        """Right-padded to a common bucket; what is missing to `count` repeats the first."""
        batch = batch + batch[:1] * (count - len(batch))
        lengths_B = np.array([len(row.ids) for row in batch], np.int32)
        tokens_BL = np.zeros((count, bucket(lengths_B.max())), np.int32)
        for tokens_L, row in zip(tokens_BL, batch, strict=True):
            tokens_L[: len(row.ids)] = row.ids
        return Prompts(
            self._on_rows(tokens_BL), self._on_rows(lengths_B), np.arange(count, dtype=np.int32)
        )

    def _round_up_rows(self, count: int) -> int:
        """The next power of two that the data-parallel devices can share."""
        parts = self._row_parts()
        return parts * 2 ** math.ceil(math.log2(-(-count // parts)))

    def _row_parts(self) -> int:
        """Data-parallel devices, or groups of them."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh else 1

    def _on_rows(self, x):
        """An array whose rows are shared out over the data-parallel devices."""
        return jax.device_put(x, NamedSharding(self.mesh, BATCH)) if self.mesh else x

    def _visual(self, row: _Row, num_tokens: int) -> list[jax.Array]:
        """Visual tokens [T·V, D] of each medium of a prompt, encoded now or before."""
        return [self._encode(path, t, num_tokens, row.query) for path, t in row.media]

    def _encode(self, path: str, num_frames: int, num_tokens: int, query) -> jax.Array:
        changed = os.stat(path).st_mtime_ns if os.path.exists(path) else None
        key = (path, changed, num_frames, num_tokens, query)
        if key not in self._encoded:
            size, sampling = self.model.vision_config.image_size, self.config.data.frame_sampling
            reader = FrameReader("", num_frames, size, sampling)
            frames_THWC = reader.image(path) if _is_image(path) else reader.video(path)
            frames_1THWC = frames_THWC[None]
            if self.mesh:
                over = BATCH[0] if num_frames % self._row_parts() == 0 else None
                place = NamedSharding(self.mesh, PartitionSpec(None, over))
                frames_1THWC = jax.device_put(frames_1THWC, place)
            model = self.model.clone(tokens_per_frame=num_tokens)
            run = programs(model, self.tokenizer.stop_ids, self.mesh)
            asked = ()
            if query:
                query_1Q = np.pad(
                    np.array([query], np.int32), ((0, 0), (0, bucket(len(query)) - len(query)))
                )
                asked = (query_1Q, np.array([len(query)], np.int32))
            self._encoded[key] = run.encode(self.params, frames_1THWC, *asked)[0]
        self._encoded.move_to_end(key)
        while len(self._encoded) > _KEPT_VIDEOS:
            self._encoded.popitem(last=False)
        return self._encoded[key]


class _Text:
    """A reply's text as its ids grow, handed out in pieces that end with whole characters."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.given, self.done = tokenizer, "", False

    def more(self, ids, done: bool) -> str:
        """What is new. The bytes of a character that is not whole yet wait for the rest."""
        if self.done:
            return ""
        self.done = done
        text = self.tokenizer.decode(ids)
        if not done:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip()
        piece = text[len(self.given) :]
        self.given += piece
        return piece


def bucket(count: int) -> int:
    """`count` rounded up to a multiple of 32, or of a sixteenth of the next power of two: few
    sizes, and from 256 on less than an eighth more than was asked for.
    """
    step = max(32, 2 ** math.ceil(math.log2(count)) // 16)
    return step * math.ceil(count / step)


def _is_image(path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def _stack(visuals: list[list[jax.Array]], count: int, dtype):
    """[B, most tokens, D] of the rows' media one after another; [B, 0, 1] when there are none."""
    rows = [jnp.concatenate(media) if media else None for media in visuals]
    there = [row for row in rows if row is not None]
    if not there:
        return jnp.zeros((count, 0, 1), dtype)
    most, width = max(len(row) for row in there), there[0].shape[1]
    nothing = jnp.zeros((most, width), there[0].dtype)
    rows = [
        nothing if row is None else jnp.pad(row, ((0, most - len(row)), (0, 0))) for row in rows
    ]
    return jnp.stack(rows + [rows[0]] * (count - len(rows)))


def _mesh(devices, num_kv_heads: int) -> Mesh:
    tensor = math.gcd(len(devices), num_kv_heads)
    return make_mesh((("data", len(devices) // tensor), ("tensor", tensor)), devices)


def _placed(shapes, dtype, mesh: Mesh):
    """Where parameters go, and matrices in the dtype they are multiplied in."""
    flat, places = flatten_dict(shapes), flatten_dict(param_shardings(shapes, mesh))
    matrices = ("kernel", "embedding")
    return unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(
                x.shape, dtype if path[-1] in matrices else x.dtype, sharding=places[path]
            )
            for path, x in flat.items()
        }
    )


def abstract_params(model: VLM, devices) -> tuple[dict, Mesh]:
    """What `VideoVLM.load` would place on `devices`: parameters as `ShapeDtypeStruct`s with their
    shardings, and the mesh they lie on. Nothing is allocated.
    """
    mesh = _mesh(list(devices), model.llm_config.num_kv_heads)
    return laid_apart(_placed(vlm.shapes(model), model.dtype, mesh)), mesh
