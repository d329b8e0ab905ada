"""Annotations and media to batches: seeded global order, threads that read ahead, exact resume."""

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

import grain
import numpy as np

from vvlm_jax.config import DataConfig, ModelConfig, Stopped, VisionConfig
from vvlm_jax.data import chat
from vvlm_jax.data.datasets import Medium, media_in, nested_subset, row_media
from vvlm_jax.data.media import FrameReader, within
from vvlm_jax.data.rows import Chosen, open_rows
from vvlm_jax.data.tokenizer import NEWLINE, VIDEO, Tokenizer
from vvlm_jax.data.video import VideoError
from vvlm_jax.types import Batch, Example


class TooManyUnreadable(Stopped):
    """More media files failed than `data.max_unreadable` allows; the message names some of them."""


@dataclass
class Unreadable:
    """Media that could not be read so far: counted once a file, reported, never passed off as
    black frames. A file that failed is not tried again, also not after a resume: what stands in
    for its example stays the same.

    Of several hosts each replaces what it could not read itself, and all together stop at the
    `limit`: `gathered` is then called with what each has found, at the same step everywhere.
    """

    limit: int
    messages: dict[str, str] = field(default_factory=dict)
    """{file: what is wrong with it}, of this host."""
    everywhere: dict[str, str] | None = None
    """Of all hosts, when they last told one another; None for a host by itself."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, error: VideoError) -> None:
        """Records a failure. Raises TooManyUnreadable once a host by itself has more than `limit`
        files that failed.
        """
        with self._lock:
            self.messages.setdefault(name, str(error))
            if self.everywhere is None:
                self._check(self.messages)

    def found(self) -> dict[str, str]:
        """A copy of `messages`, which other threads add to."""
        with self._lock:
            return dict(self.messages)

    def gathered(self, found: list[dict[str, str]]) -> None:
        """Takes note of what each host has found. Raises TooManyUnreadable, on all of them."""
        self.everywhere = {name: text for one in reversed(found) for name, text in one.items()}
        self._check(self.everywhere)

    def resume(self, found: list[dict[str, str]], host: int, num_hosts: int) -> None:
        """Goes on from what each host had found. Where there were more or fewer, examples are
        spread otherwise, and each takes what all of them had.
        """
        everywhere = {name: text for one in found for name, text in one.items()}
        self.messages.update(found[host] if len(found) == num_hosts else everywhere)

    def _check(self, messages: dict[str, str]) -> None:
        if len(messages) > self.limit:
            shown = "; ".join(list(messages.values())[:3])
            raise TooManyUnreadable(
                f"{len(messages)} unreadable media files, more than the {self.limit} that "
                f"data.max_unreadable allows: {shown}"
            )


class _MediumError(Exception):
    """A file of an example could not be read: (name, the reader's error)."""


class Examples:
    """Random access to tokenised, padded `Example`s.

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
        rows = open_rows(data.annotations)
        self.row_numbers = nested_subset(len(rows), data.num_examples, seed)
        self.rows = Chosen(rows, self.row_numbers)
        self.data, self.assembler = data, chat.Assembler(data, model, tokenizer)
        self.reader = FrameReader(
            data.media_root,
            model.num_frames,
            vision.image_size,
            data.frame_sampling,
            data.frame_cache_mb,
        )
        # One shape for all: rows with less than the most are padded, with black frames at the end
        # that no placeholder refers to.
        media = [media_in(row, model.num_frames) for row in self.rows.kinds()]
        self.num_frames = max(sum(m.num_frames for m in row) for row in media)
        self.num_visual = max(
            sum(len(self.assembler.block(m.num_frames)) for m in row) for row in media
        )
        self.asks = model.resampler == "quecc"
        self.unreadable = Unreadable(int(data.max_unreadable * len(self.rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> list[int]:
        """[examples, checksum of their order]: a data position is a place in just these."""
        return [len(self.rows), self.rows.checksum()]

    def __getitem__(self, index) -> Example:
        return self._at(index, self.data.max_text_tokens)

    def load(self, places_B, share: slice = slice(None)) -> Batch:
        """One host's share of a global batch, its text padded to the smallest bucket that holds the
        longest of the whole batch. That needs no media, so that every host finds the same one.
        """
        room = self._room(places_B)
        return _stack([self._at(place, room) for place in places_B[share]])

    def _room(self, places_B) -> int:
        """The longest is looked for among those with the most bytes, and no further than a longer
        one could be: a host need not read or tokenise what the other hosts will.
        """
        rooms = (*self.data.text_buckets, self.data.max_text_tokens)
        if len(rooms) == 1:
            return rooms[0]
        room, bounds = 0, self.rows.most_tokens(places_B, self.data.system)
        for i in np.argsort(bounds)[::-1]:
            if bounds[i] <= room or room == rooms[-1]:
                break
            length = self._text(self.rows[places_B[i]]).length
            room = max(room, next(room for room in rooms if length <= room))
        return room

    def _at(self, index, room: int) -> Example:
        """The example at a place, or where its media cannot be read the next readable one whose
        text fits.
        """
        for offset in range(len(self.rows)):
            place = (int(index) + offset) % len(self.rows)
            text = self._text(self.rows[place])
            if offset and text.length > room:
                continue
            try:
                frames_THWC = self._frames(text.media)
            except _MediumError as e:
                self.unreadable.add(*e.args)
                continue
            example = pad(text.said, frames_THWC, self.num_visual, room)
            if self.asks:
                query = text.said.query
                query_Q = np.pad(np.asarray(query, np.int32), (0, room - len(query)))
                example = example._replace(query_Q=query_Q, query_length=np.int32(len(query)))
            return example._replace(index=np.int32(self.row_numbers[place]))
        raise TooManyUnreadable("no example has readable media")

    def _text(self, row: dict) -> "_Text":
        """Raises ValueError naming the row when it is no example, or longer than the room there
        is.
        """
        turns, room = row["conversations"], self.data.max_text_tokens
        try:
            media = row_media(row, self.reader.num_frames)
            said = self.assembler.conversation(turns, [m.num_frames for m in media])
            num_text, num_query = len(said.ids) - said.num_visual, len(said.query)
            for count, kind in ((num_text, "text tokens"), (num_query, "tokens of questions")):
                if count > room:
                    raise ValueError(f"has {count} {kind}; data.max_text_tokens allows {room}")
            _answers(said)
        except ValueError as e:
            raise ValueError(f"{self.data.annotations}: example {row.get('id')!r}: {e}") from None
        return _Text(said, media, max(num_text, num_query))

    def _frames(self, media: list[Medium]) -> np.ndarray:
        if len(media) == 1 and media[0].num_frames == self.num_frames:
            return self._read(media[0])
        size = self.reader.image_size
        padding = self.num_frames - sum(m.num_frames for m in media)
        nothing = np.zeros((padding, size, size, 3), np.uint8)
        return np.concatenate([*map(self._read, media), nothing])

    def _read(self, medium: Medium) -> np.ndarray:
        name, seconds = medium.name, self.data.max_read_seconds
        if name in self.unreadable.messages:
            raise _MediumError(name, VideoError(self.unreadable.messages[name]))
        try:
            if medium.kind == "video":
                return within(seconds, name, self.reader.video, name)
            return within(seconds, name, self.reader.image, name, medium.num_frames)
        except VideoError as e:
            raise _MediumError(name, e) from e


class _Text(NamedTuple):
    """An example without its pixels."""

    said: chat.Assembled
    media: list[Medium]
    length: int
    """Text tokens, of the conversation or of the query, whichever are more."""


def _answers(said: chat.Assembled) -> list[int]:
    """Positions of the tokens to predict. Nothing predicts the first, which LLaVA's labels
    include.
    """
    found = [i for i, flag in enumerate(said.is_answer) if flag and i > 0]
    if not found:
        raise ValueError("has no answer to learn from")
    return found


def pad(said: chat.Assembled, frames_THWC, num_visual: int, room: int) -> Example:
    """Return an Example padded to L = num_visual + room and M = room, which the text must fit.

    Padding is told apart by position and weight, never by id: id 0 may be a word.
    """
    ids, answers = said.ids, _answers(said)

    def padded(values, size, dtype):
        return np.pad(np.asarray(values, dtype), (0, size - len(values)))

    return Example(
        tokens_L=padded(ids, num_visual + room, np.int32),
        target_pos_M=padded([i - 1 for i in answers], room, np.int32),
        target_ids_M=padded([ids[i] for i in answers], room, np.int32),
        target_weight_M=padded([1.0] * len(answers), room, np.float32),
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
    order = global_order(len(examples), batch_size, epochs, seed)
    share = slice(shard, None, num_shards)
    dataset = order.map(lambda places_B: examples.load(places_B, share))
    options = grain.ReadOptions(num_threads=examples.data.read_threads, prefetch_buffer_size=8)
    return dataset.to_iter_dataset(options)


def global_order(
    num_examples: int, batch_size: int, epochs: int, seed: int
) -> grain.MapDataset[np.ndarray]:
    """Places of the examples of each global batch, int [B]."""
    order = grain.MapDataset.range(num_examples).seed(seed).shuffle()
    usable = num_examples // batch_size * batch_size
    return order[:usable].repeat(epochs).batch(batch_size, drop_remainder=True)


def _stack(examples) -> Batch:
    columns = zip(*examples, strict=True)
    return Batch(*(None if column[0] is None else np.stack(column) for column in columns))


def video_id(tokenizer: Tokenizer) -> int:
    """Id of the placeholder that visual tokens replace."""
    return tokenizer.special[VIDEO]


def newline_id(tokenizer: Tokenizer) -> int | None:
    """Id that newline tokens replace; None when the tokenizer reserves none."""
    return tokenizer.special.get(NEWLINE)
