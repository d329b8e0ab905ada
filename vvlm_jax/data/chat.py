"""Conversations to token ids and loss masks.

The Llama 3 format is written out here rather than taken from a tokenizer's template, because the
templates of 3.1 and 3.2 insert a dated system block before every message. One BOS, then per message

    <|start_header_id|>ROLE<|end_header_id|>\\n\\nTEXT<|eot_id|>

A video is one placeholder in the text, `<image>` or `<video>`; it moves to the start of its turn
and is followed by a line break, as LLaVA-NeXT does. Loss falls on what the assistant says and its
<|eot_id|>.
"""

from typing import NamedTuple

from vvlm_jax.data.tokenizer import BOS, EOT, HEADER_END, HEADER_START, VIDEO, Tokenizer

PLACEHOLDERS = ("<image>", "<video>")
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class Encoded(NamedTuple):
    """Token ids, and for each whether it is an answer token (loss falls on it)."""

    ids: list[int]
    is_answer: list[bool]


def encode(
    turns, tokenizer: Tokenizer, num_visual: int, prompt: str = "llama3", system: str = ""
) -> Encoded:
    """Encodes a LLaVA conversation, the video's placeholder expanded to `num_visual` ids.

    Args:
      turns: [{"from": "human" | "gpt", "value": str}, …].
      num_visual: visual tokens of the example's video, T·V; 0 when it has none.
      prompt: "llama3", or "plain": BOS, video, caption, line break.
      system: system message of the chat format; empty leaves it out.

    Raises ValueError when a role is unknown, or placeholders and video do not match one to one.
    """
    turns = [(_role(turn["from"]), str(turn["value"])) for turn in turns]
    _check_placeholders(turns, num_visual)
    special = tokenizer.special
    ids, is_answer = [special[BOS]], [False]

    def add(new, answer=False):
        ids.extend(new)
        is_answer.extend([answer] * len(new))

    if prompt == "plain":
        add([special[VIDEO]] * num_visual)
        add(tokenizer.encode(turns[-1][1].strip() + "\n"), answer=True)
        return Encoded(ids, is_answer)
    for role, text in [("system", system), *turns] if system else turns:
        add(header(role, tokenizer))
        if any(p in text for p in PLACEHOLDERS):
            add([special[VIDEO]] * num_visual)
            text = "\n" + _strip_placeholders(text)
        else:
            text = text.strip()
        add([*tokenizer.encode(text), special[EOT]], answer=role == "assistant")
    return Encoded(ids, is_answer)


def encode_prompt(turns, tokenizer: Tokenizer, num_visual: int, system: str = "") -> list[int]:
    """Ids of a conversation that the assistant is to continue: `encode` plus the assistant's
    header.
    """
    return encode(turns, tokenizer, num_visual, "llama3", system).ids + header(
        "assistant", tokenizer
    )


def header(role: str, tokenizer: Tokenizer) -> list[int]:
    """`<|start_header_id|>ROLE<|end_header_id|>` and the empty line after it."""
    special = tokenizer.special
    return [
        special[HEADER_START],
        *tokenizer.encode(role),
        special[HEADER_END],
        *tokenizer.encode("\n\n"),
    ]


def _role(name: str) -> str:
    if name not in _ROLES:
        raise ValueError(f"unknown role {name!r} in a conversation; known: {', '.join(_ROLES)}")
    return _ROLES[name]


def _check_placeholders(turns, num_visual):
    count = sum(text.count(p) for _, text in turns for p in PLACEHOLDERS)
    if count != (num_visual > 0):
        expected = (
            "one <image> or <video> placeholder" if num_visual else "no placeholder without a video"
        )
        raise ValueError(f"conversation has {count} placeholders, expected {expected}")


def _strip_placeholders(text: str) -> str:
    for p in PLACEHOLDERS:
        text = text.replace(p, "")
    return text.strip()
