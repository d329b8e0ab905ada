"""Annotations and media to batches: seeded global order, threads that read ahead, exact resume."""

import threading
from dataclasses import dataclass, field

import grain
import numpy as np

from vvlm_jax.config import DataConfig, ModelConfig, Stopped, VisionConfig
from vvlm_jax.data import chat
from vvlm_jax.data.datasets import Medium, media_in, nested_subset, read_conversations, row_media
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.tokenizer import NEWLINE, VIDEO, Tokenizer
from vvlm_jax.data.video import VideoError
from vvlm_jax.types import Batch, Example


class TooManyUnreadable(Stopped):
    """More media files failed than `data.max_unreadable` allows; the message names some of them."""


@dataclass
class Unreadable:
    """Media that could not be read so far: counted once a file, reported, never passed off as
    black frames.
    """

    limit: int
    messages: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, error: VideoError) -> None:
        """Records a failure; raises TooManyUnreadable once more than `limit` files have failed."""
        with self._lock:
            self.messages[name] = str(error)
            if len(self.messages) > self.limit:
                shown = "; ".join(list(self.messages.values())[:3])
                raise TooManyUnreadable(
                    f"{len(self.messages)} unreadable media files, more than the {self.limit} that "
                    f"data.max_unreadable allows: {shown}"
                )


class _MediumError(Exception):
    """A file of an example could not be read: (name, the reader's error)."""


class Examples:
    """Random access to tokenised, padded `Example`s; a grain data source.

    An example whose media cannot be read is replaced by the next readable one in the same order, so
    the replacement is the same in every run, and recorded in `unreadable`.
    """

    def __init__(
        self,
        data: DataConfig,
        model: ModelConfig,
        vision: VisionConfig,
        tokenizer: Tokenizer,
        seed: int,
    ):
        rows = read_conversations(data.annotations)
        self.row_numbers = nested_subset(len(rows), data.num_examples, seed)
        self.rows = [rows[i] for i in self.row_numbers]
        self.data, self.tokenizer = data, tokenizer
        self.reader = FrameReader(
            data.media_root,
            model.num_frames,
            vision.image_size,
            data.frame_sampling,
            data.frame_cache_mb,
        )
        self.blocks = {
            t: chat.visual_block(t, model.tokens_per_frame, model.newline, tokenizer.special)
            for t in (1, model.num_frames)
        }
        # One shape for all: rows with less than the most are padded, with black frames at the end
        # that no placeholder refers to.
        media = [media_in(row, model.num_frames) for row in self.rows]
        self.num_frames = max(sum(m.num_frames for m in row) for row in media)
        self.num_visual = max(sum(len(self.blocks[m.num_frames]) for m in row) for row in media)
        self.asks = model.resampler == "quecc"
        self.unreadable = Unreadable(int(data.max_unreadable * len(self.rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index) -> Example:
        for offset in range(len(self.rows)):
            place = (int(index) + offset) % len(self.rows)
            try:
                example = self._example(self.rows[place])
                return example._replace(index=np.int32(self.row_numbers[place]))
            except _MediumError as e:
                self.unreadable.add(*e.args)
        raise TooManyUnreadable("no example has readable media")

    def _example(self, row: dict) -> Example:
        try:
            media = row_media(row, self.reader.num_frames)
            blocks = [self.blocks[m.num_frames] for m in media]
            encoded = chat.encode(
                row["conversations"],
                self.tokenizer,
                blocks,
                self.data.prompt,
                self.data.system,
                self.data.mask,
            )
            own, room = sum(map(len, blocks)), self.data.max_text_tokens
            example = pad(encoded, self._frames(media), own, self.num_visual, room)
            return self._with_question(example, row) if self.asks else example
        except ValueError as e:
            raise ValueError(f"{self.data.annotations}: example {row.get('id')!r}: {e}") from None

    def _with_question(self, example: Example, row: dict) -> Example:
        """The question is a part of the text, so that `max_text_tokens` holds it."""
        ids, room = chat.question(row["conversations"], self.tokenizer), self.data.max_text_tokens
        if len(ids) > room:
            raise ValueError(f"has {len(ids)} tokens of questions; data.max_text_tokens = {room}")
        query_Q = np.pad(np.asarray(ids, np.int32), (0, room - len(ids)))
        return example._replace(query_Q=query_Q, query_length=np.int32(len(ids)))

    def _frames(self, media: list[Medium]) -> np.ndarray:
        if len(media) == 1 and media[0].num_frames == self.num_frames:
            return self._read(media[0])
        size = self.reader.image_size
        padding = self.num_frames - sum(m.num_frames for m in media)
        nothing = np.zeros((padding, size, size, 3), np.uint8)
        return np.concatenate([*map(self._read, media), nothing])

    def _read(self, medium: Medium) -> np.ndarray:
        try:
            if medium.kind == "video":
                return self.reader.video(medium.name)
            return self.reader.image(medium.name, medium.num_frames)
        except VideoError as e:
            raise _MediumError(medium.name, e) from e


def pad(encoded: chat.Encoded, frames_THWC, own: int, num_visual: int, max_text: int) -> Example:
    """Pads to L = num_visual + max_text and M = max_text, where `own` of the ids are visual ones.

    What is padding is known by position and weight, never by id: id 0 may be a word. ValueError
    when the text does not fit.
    """
    ids, is_answer = encoded
    if len(ids) - own > max_text:
        raise ValueError(
            f"has {len(ids) - own} text tokens; data.max_text_tokens allows {max_text}"
        )
    # Nothing predicts the first token, which LLaVA's labels include.
    answers = [i for i, flag in enumerate(is_answer) if flag and i > 0]
    if not answers:
        raise ValueError("has no answer to learn from")

    def padded(values, size, dtype):
        return np.pad(np.asarray(values, dtype), (0, size - len(values)))

    return Example(
        tokens_L=padded(ids, num_visual + max_text, np.int32),
        target_pos_M=padded([i - 1 for i in answers], max_text, np.int32),
        target_ids_M=padded([ids[i] for i in answers], max_text, np.int32),
        target_weight_M=padded([1.0] * len(answers), max_text, np.float32),
        frames_THWC=frames_THWC,
    )


def batches(
    examples: Examples,
    batch_size: int,
    epochs: int,
    seed: int,
    *,
    shard: int = 0,
    num_shards: int = 1,
) -> grain.IterDataset:
    """Shuffled batches of one host's share; an incomplete last batch of each epoch is dropped.

    The order depends on the seed alone, not on threads or hosts. The iterator's `get_state` /
    `set_state` resume it exactly.
    """
    if batch_size > len(examples):
        raise ValueError(
            f"batch_size = {batch_size}: must be at most the {len(examples)} examples there are"
        )
    if batch_size % num_shards:
        raise ValueError(f"batch_size = {batch_size}: must be divisible by the {num_shards} hosts")
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle()
    usable = len(examples) // batch_size * batch_size
    dataset = dataset[:usable].repeat(epochs)[shard::num_shards]
    dataset = dataset.batch(batch_size // num_shards, drop_remainder=True, batch_fn=_stack)
    options = grain.ReadOptions(num_threads=examples.data.read_threads, prefetch_buffer_size=8)
    return dataset.to_iter_dataset(options)


def _stack(examples) -> Batch:
    columns = zip(*examples, strict=True)
    return Batch(*(None if column[0] is None else np.stack(column) for column in columns))


def video_id(tokenizer: Tokenizer) -> int:
    """Id of the placeholder that visual tokens replace."""
    return tokenizer.special[VIDEO]


def newline_id(tokenizer: Tokenizer) -> int | None:
    """Id that newline tokens replace; None when the tokenizer reserves none."""
    return tokenizer.special.get(NEWLINE)
