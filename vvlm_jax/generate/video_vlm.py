"""The engine that answers questions about videos: in generation, evaluation and LMMs-Eval.

from vvlm_jax import VideoVLM

vlm = VideoVLM.load("runs/finetune")
vlm.generate(["clip.mp4"], ["What happens?"])
"""

import dataclasses
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vvlm_jax.config import ConfigError, TrainConfig, visual_length
from vvlm_jax.config_check import tokens_side
from vvlm_jax.data.chat import Assembler
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.data.video import IMAGE_SUFFIXES
from vvlm_jax.generate.generate import (
    Prompts,
    ReplyText,
    bucket,
    encode_choices,
    programs,
    until_stop,
    write,
)
from vvlm_jax.generate.likelihood import Likelihood, loglikelihoods
from vvlm_jax.generate.placement import inference_mesh, laid_apart, place, placed_shapes
from vvlm_jax.generate.sampling import draws
from vvlm_jax.models.vlm import VLM
from vvlm_jax.sharding import BATCH
from vvlm_jax.train.model_dir import build_model, load_params, open_model

_CHUNK = 8
"""Tokens between two pieces of a streamed reply: one wait for the device each."""
_KEPT_VIDEOS = 8

Medium = str | os.PathLike | np.ndarray
Media = Medium | None | Sequence[Medium]


class _Row(NamedTuple):
    """One prompt of a batch."""

    index: int
    ids: list[int]
    media: list[tuple[str | np.ndarray, int]]
    """(path or frames, number of frames) of each video or image."""
    query: list[int]
    """Ids that the visual tokens depend on (QueCC), else empty."""


class VideoVLM:
    """A trained or imported model with its tokenizer, placed on devices and ready to answer.

    Make one with `load` or `from_params`. Prompt lengths, row counts and numbers of tokens to write
    are rounded up to a few sizes, so that programs are compiled seldom. The last eight encoded
    videos are kept for further questions.
    """

    def __init__(
        self, model: VLM, params, tokenizer: Tokenizer, config: TrainConfig, mesh: Mesh | None
    ):
        self.model, self.params, self.tokenizer, self.config = model, params, tokenizer, config
        self.mesh = mesh
        self.encoded: OrderedDict = OrderedDict()  # visual tokens of the last videos, by file

    @classmethod
    def load(
        cls, folder: str | Path, devices=None, *, dtype: str | None = None, read=load_params
    ) -> "VideoVLM":
        """Load the model of a finished stage or an import, onto a mesh of `devices`.

        The mesh has as many tensor-parallel parts as key-value heads allow; the rest is data
        parallel. Parameters are placed by the rules of `sharding.py`, and matrices are kept in the
        dtype in which they are multiplied.

        Args:
          devices: all devices of this host by default.
          dtype: compute dtype in place of the model's own (`model.dtype` of its config).
          read: function (folder, shapes with shardings) → parameters.

        Raises CheckpointError when the folder holds no finished model or no tokenizer.
        """
        model, tokenizer, config = open_model(folder, dtype)
        devices = jax.local_devices() if devices is None else list(devices)
        mesh = inference_mesh(model, devices)
        params = laid_apart(read(folder, placed_shapes(model, mesh)))
        return cls(model, params, tokenizer, config, mesh if len(devices) > 1 else None)

    @classmethod
    def from_params(
        cls, config: TrainConfig, params: dict, tokenizer: Tokenizer, devices=None
    ) -> "VideoVLM":
        """Place parameters that are in memory, stacked as trained, as `load` does. They are copied.

        Raises ConfigError and ValueError as `vlm.build`.
        """
        model = build_model(config, tokenizer)
        devices = jax.local_devices() if devices is None else list(devices)
        mesh = inference_mesh(model, devices)
        params = laid_apart(place(model, params, mesh))
        return cls(model, params, tokenizer, config, mesh if len(devices) > 1 else None)

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
        choices: Sequence[Sequence[str]] | None = None,
    ) -> list[str] | Iterator[tuple[int, str]]:
        """Answer `prompts`, each about its video; return a list of as many texts.

        Args:
          videos: for each prompt a medium, a list of media, or None; or one medium (or None) for
            all prompts. A medium is a path, or decoded frames, uint8 [T, H, H, 3]. A file is a
            video or, by its suffix, an image: alone in its prompt it is a still video, beside
            others one frame. Each medium is read and encoded once.
          prompts: what to ask. Videos stand before the text, unless it says `<video>` or `<image>`
            once for each of them.
          num_frames, tokens_per_frame: T and V; the model's own by default.
          max_tokens: length at which a reply is cut.
          temperature: 0 takes the likeliest token; above 0 tokens are drawn.
          top_p: draw from the likeliest tokens that hold this share of the probability.
          seed: a prompt's draws depend on it and on the prompt's place in the list alone.
          stream: yield (number of the prompt, piece of its text) while replies are written; the
            pieces of a prompt add up to its text.
          batch_size: prompts answered at a time.
          choices: the only replies allowed to each prompt; the likeliest next token that leads to
            one of them is taken.

        Raises ConfigError for options that cannot work, VideoError for a file that cannot be read,
        ValueError for a prompt that does not fit its videos or, with `max_tokens`, the context, and
        for a choice of more than `max_tokens` tokens.
        """
        rows, num_tokens = self._rows(videos, prompts, num_frames, tokens_per_frame, max_tokens)
        if batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size}: must be at least 1")
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed = {seed}: must be from 0 to {2**32 - 1}")
        draws(seed, [0], temperature, top_p)  # raises for bad values before anything is read
        drawing = seed, temperature, top_p
        pieces = self._pieces(rows, num_tokens, max_tokens, drawing, stream, batch_size, choices)
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
        """Return how likely each prompt's texts are as beginnings of its reply; a list a prompt.

        Other arguments and errors are those of `generate`; ValueError also for a text without
        tokens.
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

    def check(self, name: str, prompt: str, max_tokens: int, num_videos: int = 1) -> None:
        """Raise ValueError, naming the prompt `name`, unless it fits the model's context together
        with `num_videos` videos of the model's own size and a reply of `max_tokens`.
        """
        model = self.config.model
        self._row(
            0, name, self._assembler(), [("", model.num_frames)] * num_videos, prompt, max_tokens
        )

    def _assembler(self, num_tokens: int | None = None) -> Assembler:
        model = self.config.model
        if num_tokens is not None:
            model = dataclasses.replace(model, tokens_per_frame=num_tokens)
        return Assembler(self.config.data, model, self.tokenizer)

    def _rows(self, videos, prompts, num_frames, tokens_per_frame, max_tokens):
        """Return ([_Row], tokens a frame), checked."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if videos is None or _is_medium(videos):
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
        assembler = self._assembler(num_tokens)
        return [
            self._row(
                i, f"prompt {i + 1}", assembler, self._media(video, num_frames), prompt, max_tokens
            )
            for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True))
        ], num_tokens

    def _media(self, video: Media, num_frames: int) -> list[tuple[str | np.ndarray, int]]:
        """Return (path or frames, number of frames) of each medium of a prompt."""
        media = [] if video is None else [video] if _is_medium(video) else list(video)
        alone, size = len(media) == 1, self.model.vision_config.image_size
        found: list[tuple[str | np.ndarray, int]] = []
        for medium in media:
            if not isinstance(medium, np.ndarray):
                found.append((str(medium), 1 if _is_image(medium) and not alone else num_frames))
                continue
            if medium.dtype != np.uint8 or medium.shape[1:] != (size, size, 3):
                raise ConfigError(
                    f"frames of {medium.dtype} {list(medium.shape)}: must be uint8 [T, {size}, "
                    f"{size}, 3]"
                )
            found.append((medium, len(medium)))
        return found

    def _row(self, index, name, assembler: Assembler, media, prompt, max_tokens) -> _Row:
        """Return a prompt's row; `name` is what errors call it."""
        sizes, model = [t for _, t in media], assembler.model
        context = self.model.llm_config.max_position
        long = sum(visual_length(t, model.tokens_per_frame, model.newline) for t in sizes)
        if long > context:  # before a list of so many ids is made
            raise ValueError(
                f"{name} has {long:,} visual tokens, more than the {context:,} of the model's "
                "context: take fewer frames or tokens a frame"
            )
        if assembler.data.prompt != "plain" and not prompt.strip():  # a caption may start empty
            raise ConfigError(f"{name} is empty: say what to ask")
        if any("\ud800" <= c <= "\udfff" for c in prompt):  # a shell's stand-in for other bytes
            raise ConfigError(f"{name} is not text in UTF-8")
        said = assembler.prompt(prompt, sizes)
        if len(said.ids) + max_tokens > context:
            visual = f", {long:,} of them visual" if sizes else ""
            fewer = "fewer frames or tokens a frame, " if sizes else ""
            raise ValueError(
                f"{name} has {len(said.ids):,} tokens{visual}; with max_tokens = {max_tokens} that "
                f"is more than the {context:,} of the model's context: take {fewer}a shorter text "
                "or less room for the reply"
            )
        return _Row(index, said.ids, media, said.query)

    def _pieces(self, rows, num_tokens, max_tokens, drawing, stream, batch_size, choices):
        """Yield (number of the prompt, piece of its text), batch by batch."""
        stop_ids, room = self.tokenizer.stop_ids, bucket(max_tokens)
        run = programs(self.model, stop_ids, self.mesh)
        seed, temperature, top_p = drawing
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            count = self._round_up_rows(len(batch))
            choices_BCM = None
            if choices is not None:
                mine = [choices[row.index] for row in batch]
                mine += mine[:1] * (count - len(batch))
                choices_BCM = encode_choices(mine, self.tokenizer, max_tokens, room)
            visuals = [self._visual(row, num_tokens) for row in batch]
            indices = [row.index for row in batch] + [0] * (count - len(batch))
            texts = [ReplyText(self.tokenizer) for _ in batch]
            for out_BM, ended_B in write(
                run,
                self.params,
                self._prompts(batch, count),
                self._on_rows(_stack(visuals, count, self.model.dtype)),
                max_tokens,
                room=room,
                chunk=_CHUNK if stream else None,
                draws=draws(seed, indices, temperature, top_p),
                choices_BCM=choices_BCM,
            ):
                last = out_BM.shape[1] == max_tokens
                for row, text, ids, ended in zip(batch, texts, out_BM, ended_B, strict=False):
                    if piece := text.more(until_stop(ids, stop_ids), last or bool(ended)):
                        yield row.index, piece

    def _prompts(self, batch: list[_Row], count: int) -> Prompts:
        """Return prompts padded on the right to a common bucket; the first is repeated to fill up
        `count` rows.
        """
        batch = batch + batch[:1] * (count - len(batch))
        lengths_B = np.array([len(row.ids) for row in batch], np.int32)
        tokens_BL = np.zeros((count, bucket(lengths_B.max())), np.int32)
        for tokens_L, row in zip(tokens_BL, batch, strict=True):
            tokens_L[: len(row.ids)] = row.ids
        return Prompts(self._on_rows(tokens_BL), self._on_rows(lengths_B))

    def _round_up_rows(self, count: int) -> int:
        """Return the next power of two that the data-parallel devices can share."""
        parts = self._row_parts()
        return parts * 2 ** math.ceil(math.log2(-(-count // parts)))

    def _row_parts(self) -> int:
        """Return the number of data-parallel devices, or groups of them."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"] if self.mesh else 1

    def _on_rows(self, x):
        """Return an array with its rows spread over the data-parallel devices."""
        return jax.device_put(x, NamedSharding(self.mesh, BATCH)) if self.mesh else x

    def _visual(self, row: _Row, num_tokens: int) -> list[jax.Array]:
        """Return visual tokens [T·V, D] of each medium of a prompt, encoded now or before."""
        return [self._encode(medium, t, num_tokens, row.query) for medium, t in row.media]

    def _encode(self, medium: str | np.ndarray, num_frames: int, num_tokens: int, query):
        if isinstance(medium, np.ndarray):
            content = id(medium)  # unique while the entry below keeps the array alive
        else:
            content = medium, os.stat(medium).st_mtime_ns if os.path.exists(medium) else None
        key = content, num_frames, num_tokens, tuple(query)
        if key not in self.encoded:
            frames_THWC = medium
            if not isinstance(medium, np.ndarray):
                frames_THWC = self._read(medium, num_frames)
            self.encoded[key] = medium, self._run_encoder(frames_THWC, num_tokens, query)
        self.encoded.move_to_end(key)
        while len(self.encoded) > _KEPT_VIDEOS:
            self.encoded.popitem(last=False)
        return self.encoded[key][1]

    def _read(self, path: str, num_frames: int) -> np.ndarray:
        size, sampling = self.model.vision_config.image_size, self.config.data.frame_sampling
        reader = FrameReader("", num_frames, size, sampling)
        return reader.image(path) if _is_image(path) else reader.video(path)

    def _run_encoder(self, frames_THWC: np.ndarray, num_tokens: int, query) -> jax.Array:
        frames_1THWC = frames_THWC[None]
        if self.mesh:
            over = BATCH[0] if len(frames_THWC) % self._row_parts() == 0 else None
            on = NamedSharding(self.mesh, PartitionSpec(None, over))
            frames_1THWC = jax.device_put(frames_1THWC, on)
        model = self.model.clone(tokens_per_frame=num_tokens)
        run, asked = programs(model, self.tokenizer.stop_ids, self.mesh), ()
        if query:
            query_1Q = np.zeros((1, bucket(len(query))), np.int32)
            query_1Q[0, : len(query)] = query
            asked = query_1Q, np.array([len(query)], np.int32)
        return run.encode(self.params, frames_1THWC, *asked)[0]


def _is_medium(x) -> bool:
    return isinstance(x, str | os.PathLike | np.ndarray)


def _is_image(path) -> bool:
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def _stack(visuals: list[list[jax.Array]], count: int, dtype):
    """Return [B, most tokens, D]: each row's media one after another; [B, 0, 1] without any."""
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
