"""Conversations as token ids and loss masks.

The chat formats are written out here rather than taken from a tokenizer's template, because the
templates of Llama 3.1 and 3.2 insert a dated system block before every message. `llama3` is one
BOS, then per message

    <|start_header_id|>ROLE<|end_header_id|>\\n\\nTEXT<|eot_id|>

and `chatml` (Qwen2.5), without a BOS,

    <|im_start|>ROLE\\nTEXT<|im_end|>\\n

A video or image is one placeholder in the text, `<image>` or `<video>`. Alone in its turn it moves
to the start and is followed by a line break, as LLaVA-NeXT does; several in a turn stay where they
are.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vvlm_jax.config import NEWLINES, ConfigError, DataConfig, ModelConfig
from vvlm_jax.data.tokenizer import BOS, EOT, HEADER_END, HEADER_START, NEWLINE, VIDEO, Tokenizer

PLACEHOLDERS = ("<image>", "<video>")
_FORMAT_TOKENS = 16
"""Most format tokens of a turn: its role at a byte each, delimiters, a line break after a video."""
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class Encoded(NamedTuple):
    """Token ids, and for each whether loss falls on it."""

    ids: list[int]
    is_answer: list[bool]


class Assembled(NamedTuple):
    """A conversation about media as the model reads it."""

    ids: list[int]
    is_answer: list[bool]
    """For each id, whether loss falls on it; all False in a prompt."""
    num_visual: int
    """How many of the ids stand for media."""
    query: list[int]
    """Ids that visual tokens depend on (QueCC); empty for other resamplers."""


class Assembler:
    """Turns conversations about media into ids, in training, evaluation and generation alike."""

    def __init__(self, data: DataConfig, model: ModelConfig, tokenizer: Tokenizer):
        self.data, self.model, self.tokenizer = data, model, tokenizer
        self._blocks: dict[int, list[int]] = {}

    def conversation(self, turns, num_frames: Sequence[int]) -> Assembled:
        """Return a whole conversation, replies included.

        Args:
          turns: [{"from": "human" | "gpt", "value": str}, …].
          num_frames: T of each video or image, in the order of the placeholders.

        Raises ValueError as `encode`.
        """
        blocks = [self.block(t) for t in num_frames]
        data = self.data
        ids, is_answer = encode(turns, self.tokenizer, blocks, data.prompt, data.system, data.mask)
        return Assembled(ids, is_answer, sum(map(len, blocks)), self._query(turns))

    def prompt(self, text: str, num_frames: Sequence[int]) -> Assembled:
        """Return one human turn that the assistant is to answer, or a caption it is to continue.

        Media stand before the text, unless it has a placeholder for each. Raises ValueError as
        `encode`.
        """
        turns = [{"from": "human", "value": text}]
        if not placeholders(turns):
            turns[0]["value"] = "<video>\n" * len(num_frames) + text
        blocks = [self.block(t) for t in num_frames]
        form = "plain" if self.data.prompt == "plain" else None
        ids = encode_prompt(turns, self.tokenizer, blocks, self.data.system, form)
        return Assembled(ids, [False] * len(ids), sum(map(len, blocks)), self._query(turns))

    def block(self, num_frames: int) -> list[int]:
        """Return the ids that stand for one video or image of `num_frames` frames."""
        if num_frames not in self._blocks:
            model = self.model
            self._blocks[num_frames] = visual_block(
                num_frames, model.tokens_per_frame, model.newline, self.tokenizer.special
            )
        return self._blocks[num_frames]

    def _query(self, turns) -> list[int]:
        return question(turns, self.tokenizer) if self.model.resampler == "quecc" else []


def visual_block(
    num_frames: int, tokens_per_frame: int, newline: str, special: dict[str, int]
) -> list[int]:
    """Return the ids of one video: VIDEO for each visual token, NEWLINE for each newline token.

    With V = r² tokens a frame: `none` T·V ids, `per-video` one newline at the end, `per-frame` one
    after every frame, `grid` one after every row of every frame, T·r·(r + 1) ids.

    Raises ConfigError for an unknown `newline`, or when the tokenizer has no id for it.
    """
    if newline not in NEWLINES:
        raise ConfigError(f"model.newline = {newline!r}: must be one of {', '.join(NEWLINES)}")
    if newline != "none" and NEWLINE not in special:
        raise ConfigError(
            f"model.newline = {newline!r}: the tokenizer has no token for it "
            f"({NEWLINE}; in ChatML <|vision_pad|> or <image>)"
        )
    row = [special[VIDEO]] * math.isqrt(tokens_per_frame)
    end_of = {kind: [] if newline != kind else [special[NEWLINE]] for kind in NEWLINES}
    frame = (row + end_of["grid"]) * len(row) + end_of["per-frame"]
    return frame * num_frames + end_of["per-video"]


def placeholders(turns) -> list[str]:
    """Return the placeholders of a conversation, in order."""
    texts = [str(turn["value"]) for turn in turns]
    return [piece for text in texts for piece in _split(text) if piece in PLACEHOLDERS]


def encode(
    turns,
    tokenizer: Tokenizer,
    blocks: Sequence[Sequence[int]] = (),
    prompt: str = "llama3",
    system: str = "",
    mask: str = "answers",
) -> Encoded:
    """Encode a LLaVA conversation, each placeholder expanded to its block of ids.

    Args:
      turns: [{"from": "human" | "gpt", "value": str}, …].
      blocks: of each video or image, in the order of the placeholders (`visual_block`).
      prompt: "llama3" or "chatml", or "plain": BOS (where there is one), videos, caption, line
        break.
      system: system message of the chat format; empty leaves it out.
      mask: where loss falls. "answers": on what the assistant says and the end of its turn.
        "llava": LLaVA-NeXT's labels, where the assistant's header counts too, and in every turn
        BOS, header and end-of-turn tokens (in ChatML <|im_start|>, <|im_end|> and line breaks).
        Plain captions have one mask.

    Raises ValueError when a role is unknown, placeholders and videos do not match one to one, or
    the tokenizer is made for another format.
    """
    turns = [(_role(turn["from"]), str(turn["value"])) for turn in turns]
    _check(turns, blocks, tokenizer, prompt)
    ids = _bos(tokenizer)
    if prompt == "plain":
        ids += [i for block in blocks for i in block]
        caption = tokenizer.encode(turns[-1][1].strip() + "\n")
        return Encoded(ids + caption, [False] * len(ids) + [True] * len(caption))
    is_answer, blocks = [False] * len(ids), iter(blocks)
    for role, text in [("system", system), *turns] if system else turns:
        answers, around = role == "assistant", role == "assistant" and mask == "llava"
        for part, shown in (
            (header(role, tokenizer), around),
            (_content(text, tokenizer, blocks), answers),
            ([tokenizer.special[EOT]], answers),
            (_line_break(tokenizer), around),
        ):
            ids += part
            is_answer += [shown] * len(part)
    if mask == "llava":
        shown = _unmasked(tokenizer)
        is_answer = [flag or i in shown for i, flag in zip(ids, is_answer, strict=True)]
    return Encoded(ids, is_answer)


def encode_prompt(
    turns,
    tokenizer: Tokenizer,
    blocks: Sequence[Sequence[int]] = (),
    system: str = "",
    prompt: str | None = None,
) -> list[int]:
    """Return the ids of a conversation that the assistant is to continue: `encode` plus the
    assistant's header. `prompt` is the tokenizer's chat format when None; a `plain` caption has no
    header.
    """
    prompt = prompt or tokenizer.family
    if prompt == "plain":
        begun = _strip_placeholders(str(turns[-1]["value"]))
        return [*_bos(tokenizer), *(i for block in blocks for i in block), *tokenizer.encode(begun)]
    return encode(turns, tokenizer, blocks, prompt, system).ids + header("assistant", tokenizer)


def question(turns, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the human turns without placeholders; QueCC's visual tokens depend on them.

    Turns are separated by line breaks, after BOS where the tokenizer has one. Turns that are only a
    placeholder add nothing.
    """
    said = [str(turn["value"]) for turn in turns if _role(turn["from"]) == "user"]
    text = "\n".join(filter(None, map(_strip_placeholders, said)))
    return [*_bos(tokenizer), *tokenizer.encode(text)] or tokenizer.encode("\n")


def most_tokens(turns, system: str = "") -> int:
    """Return an upper bound on the ids of a conversation's text, without a tokenizer: every id but
    those of the format stands for at least one byte.
    """
    texts = [system, *(str(turn["value"]) for turn in turns)]
    # Text other than ASCII may be normalised first, which at most triples its UTF-8.
    sizes = [len(text) if text.isascii() else 3 * len(text.encode()) for text in texts]
    return sum(sizes) + _FORMAT_TOKENS * (len(texts) + 1)


def header(role: str, tokenizer: Tokenizer) -> list[int]:
    """Return the ids that open a message: `<|start_header_id|>ROLE<|end_header_id|>` and an empty
    line, or `<|im_start|>ROLE` and a line break.
    """
    special = tokenizer.special
    if tokenizer.family == "chatml":
        return [special[HEADER_START], *tokenizer.encode(f"{role}\n")]
    return [
        special[HEADER_START],
        *tokenizer.encode(role),
        special[HEADER_END],
        *tokenizer.encode("\n\n"),
    ]


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.special[BOS]] if BOS in tokenizer.special else []


def _line_break(tokenizer: Tokenizer) -> list[int]:
    """Return the ids between two messages."""
    return tokenizer.encode("\n") if tokenizer.family == "chatml" else []


def _unmasked(tokenizer: Tokenizer) -> set[int]:
    """Return the ids on which LLaVA-NeXT's loss falls in every turn. It means to include Llama 3's
    empty line too, but under a name that its tokenizer does not know.
    """
    special = (tokenizer.special.get(i) for i in (BOS, HEADER_START, HEADER_END, EOT))
    return {*special, *_line_break(tokenizer)}


def _content(text: str, tokenizer: Tokenizer, blocks) -> list[int]:
    """Return the ids of a message's text, each placeholder replaced by the next block."""
    pieces = _split(text.strip())
    if sum(piece in PLACEHOLDERS for piece in pieces) == 1:
        return [*next(blocks), *tokenizer.encode("\n" + _strip_placeholders(text))]
    return [
        i
        for piece in pieces
        for i in (next(blocks) if piece in PLACEHOLDERS else tokenizer.encode(piece))
    ]


def _split(text: str) -> list[str]:
    """Split a text at its placeholders, which become pieces of their own."""
    for place in PLACEHOLDERS:
        text = text.replace(place, f"\0{place}\0")
    return [piece for piece in text.split("\0") if piece]


def _role(name: str) -> str:
    if name not in _ROLES:
        raise ValueError(f"unknown role {name!r} in a conversation; known: {', '.join(_ROLES)}")
    return _ROLES[name]


def _check(turns, blocks, tokenizer: Tokenizer, prompt: str) -> None:
    if prompt not in ("plain", tokenizer.family):
        raise ValueError(
            f"data.prompt = {prompt!r}, but the tokenizer has the special tokens of "
            f"{tokenizer.family!r}"
        )
    count = sum(text.count(p) for _, text in turns for p in PLACEHOLDERS)
    if count != len(blocks):
        raise ValueError(
            f"conversation has {count} <image> or <video> placeholders, expected {len(blocks)}, "
            "one for each video or image"
        )


def _strip_placeholders(text: str) -> str:
    for p in PLACEHOLDERS:
        text = text.replace(p, "")
    return text.strip()
