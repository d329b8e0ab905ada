"""Turn annotations and media into batches: seeded global order, prefetching, exact resume."""

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
    """Media files that could not be read so far, counted once a file.

    A file that failed is not tried again, nor after a resume, so that the replacement of its
    example stays the same. With several hosts, each replaces what it could not read itself, and
    all stop together above `limit`: at the same step each calls `gathered` with the failures of
    all hosts.
    """

    limit: int
    messages: dict[str, str] = field(default_factory=dict)
    """{file: error message}, of this host."""
    everywhere: dict[str, str] | None = None
    """The same of all hosts, when last gathered; None for a single host."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, error: VideoError) -> None:
        """Record a failure. Raises TooManyUnreadable once a single host has more than `limit`."""
        with self._lock:
            self.messages.setdefault(name, str(error))
            if self.everywhere is None:
                self._check(self.messages)

    def found(self) -> dict[str, str]:
        """Return a copy of `messages`, which other threads add to."""
        with self._lock:
            return dict(self.messages)

    def gathered(self, found: list[dict[str, str]]) -> None:
        """Merge the failures of all hosts. Raises TooManyUnreadable on all hosts above `limit`."""
        self.everywhere = {name: text for one in reversed(found) for name, text in one.items()}
        self._check(self.everywhere)

    def resume(self, found: list[dict[str, str]], host: int, num_hosts: int) -> None:
        """Restore the failures of an earlier run: this host's own, or those of all hosts if their
        number has changed, because examples are then spread differently.
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
    """A file of an example that could not be read: (name, the reader's error)."""


class Examples:
    """A random-access sequence of tokenised, padded `Example`s.

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
        # All rows have one shape: those with fewer media get black frames at the end, to which no
        # placeholder refers.
        media = [media_in(row, model.num_frames) for row in self.rows.kinds()]
        self.num_frames = max(sum(m.num_frames for m in row) for row in media)
        self.num_visual = max(
            sum(len(self.assembler.block(m.num_frames)) for m in row) for row in media
        )
        self.has_query = model.resampler == "quecc"
        self.unreadable = Unreadable(int(data.max_unreadable * len(self.rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> list[int]:
        """Return [number of examples, checksum of their order], for which a position is valid."""
        return [len(self.rows), self.rows.checksum()]

    def __getitem__(self, index) -> Example:
        return self._at(index, self.data.max_text_tokens)

    def load(self, places_B, share: slice = slice(None)) -> Batch:
        """Return one host's share of a global batch, padded to one text bucket.

        It is the smallest bucket that holds the longest text of the whole batch; every host finds
        the same one, without reading media.
        """
        room = self._room(places_B)
        return stack_examples([self._at(place, room) for place in places_B[share]])

    def _room(self, places_B) -> int:
        """Return the text bucket of a batch.

        Rows are tokenised in descending order of an upper bound of their length, until no later row
        can be longer: a host need not read or tokenise the rows of other hosts.
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
        """Return the example at a place or, if its media cannot be read, the next readable one
        whose text fits.
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
            if self.has_query:
                query = text.said.query
                query_Q = np.pad(np.asarray(query, np.int32), (0, room - len(query)))
                example = example._replace(query_Q=query_Q, query_length=np.int32(len(query)))
            return example._replace(index=np.int32(self.row_numbers[place]))
        raise TooManyUnreadable("no example has readable media")

    def _text(self, row: dict) -> "_Text":
        """Return a row's tokens and media. Raises ValueError naming the row when it is malformed or
        longer than data.max_text_tokens.
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
    """The larger of the text tokens of the conversation and those of the query."""


def _answers(said: chat.Assembled) -> list[int]:
    """Return the positions of the tokens to predict, without position 0: no token predicts it,
    although LLaVA's labels include it. Raises ValueError when there are none.
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
    """Return shuffled batches of one host's share; each epoch drops an incomplete last batch.

    The order depends on the seed alone, not on threads or hosts. The iterator's `get_state` /
    `set_state` resume it exactly.
    """
    if batch_size > len(examples):
        raise ValueError(
            f"batch_size = {batch_size}: must be at most the number of examples, {len(examples)}"
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
    """Return a dataset of global batches, each int [B] positions of examples."""
    order = grain.MapDataset.range(num_examples).seed(seed).shuffle()
    usable = num_examples // batch_size * batch_size
    return order[:usable].repeat(epochs).batch(batch_size, drop_remainder=True)


def stack_examples(examples) -> Batch:
    """Return the batch of these examples: every field stacked, rows first."""
    columns = zip(*examples, strict=True)
    return Batch(*(None if column[0] is None else np.stack(column) for column in columns))


def video_id(tokenizer: Tokenizer) -> int:
    """Return the id of the placeholder that visual tokens replace."""
    return tokenizer.special[VIDEO]


def newline_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that newline tokens replace; None when the tokenizer reserves none."""
    return tokenizer.special.get(NEWLINE)
