"""Encode text with a Hugging Face `tokenizer.json` that has Llama 3's or ChatML's special tokens.

transformers' tokenizers run on the library `tokenizers`; without transformers it loads sixteen
times faster.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
HEADER_START, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
VIDEO, NEWLINE = "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"
"""Placeholders of visual tokens and newline tokens: ids that Llama 3 reserves and never uses, so
that no text encodes to them.
"""
SPECIAL = (BOS, EOT, HEADER_START, HEADER_END, VIDEO)
"""Special tokens that a Llama 3 tokenizer must have."""
FAMILIES = {
    "llama3": {token: token for token in (*SPECIAL, NEWLINE)},
    "chatml": {
        HEADER_START: "<|im_start|>",
        EOT: "<|im_end|>",
        VIDEO: "<|video_pad|>",
        NEWLINE: "<|vision_pad|>",
    },
}
"""{family: {Llama 3 name of a part of the chat format: its token}}. ChatML is Qwen2.5's format."""
_ELSEWHERE = {"<|video_pad|>": "<video>", "<|vision_pad|>": "<image>"}
"""LLaVA-OneVision uses Qwen2's tokenizers, which lack Qwen2.5's vision tokens and add these."""
_MEND = (
    "put the tokenizer.json of Llama 3 or Qwen2.5 (ChatML) in its place, or add the missing tokens "
    "to its added_tokens under ids that the model embeds"
)
_ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|endoftext|>")


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer with the ids that the chat format needs, by their Llama 3 names."""

    backend: tokenizers.Tokenizer
    special: dict[str, int] = field(repr=False)
    family: str = "llama3"
    """Key of `FAMILIES`: the chat format of this tokenizer."""
    more_ends: tuple[int, ...] = ()
    """Further ids that end a reply, from a model's `generation_config.json`."""

    @property
    def vocab(self) -> int:
        """Return the number of ids, special ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Return the ids that end a reply: the end of a turn first, then the known ends of text."""
        ends = [self.backend.token_to_id(token) for token in _ENDS]
        known = (self.special[EOT], *(id for id in ends if id is not None), *self.more_ends)
        return tuple(dict.fromkeys(known))

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without special tokens before or after.

        Raises ValueError for an unpaired UTF-16 surrogate, which JSON may contain.
        """
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise ValueError("contains an unpaired UTF-16 surrogate") from None

    def decode(self, ids) -> str:
        """Return the text of ids, without special tokens."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def load(path: str | Path) -> Tokenizer:
    """Read `path` or `path/tokenizer.json`.

    Raises ValueError when it is missing, or lacks a special token of the family closest to it.
    """
    return _load(path)[1]


def load_for(path: str | Path, prompt: str, newline: str, vocab: int) -> Tokenizer:
    """Read a tokenizer for a model with this `data.prompt` and `model.newline` and `vocab` ids.

    Raises ValueError as `load`, and when the tokenizer has another chat format than `prompt` (plain
    takes any), lacks the token for newlines, or has more ids than the model embeds.
    """
    file, tok = _load(path)
    if prompt not in ("plain", tok.family):
        needs = FAMILIES[prompt]
        raise ValueError(
            f"{file}: has the special tokens of {tok.family}, and lacks {needs[HEADER_START]} and "
            f"{needs[EOT]} of {prompt}, the model's chat format (data.prompt in its config.json); "
            "put the model's own tokenizer.json in its place"
        )
    if newline != "none" and NEWLINE not in tok.special:
        token = _spelling(FAMILIES[tok.family][NEWLINE])
        raise ValueError(f"{file}: lacks {token}, which model.newline = {newline!r} needs; {_MEND}")
    if (ids := max(tok.vocab, max(tok.special.values()) + 1)) > vocab:
        raise ValueError(
            f"{file}: has {ids} ids, and the language model embeds {vocab}; put the model's own "
            "tokenizer.json in its place"
        )
    return tok


def _load(path: str | Path) -> tuple[Path, Tokenizer]:
    """Return (file, tokenizer)."""
    file, backend = _read(path)
    family, special = _nearest_family(backend)
    spelt = FAMILIES[family]
    lacks = [_spelling(spelt[role]) for role in spelt if role not in (NEWLINE, *special)]
    if lacks:
        raise ValueError(f"{file}: lacks {', '.join(lacks)}; {_MEND}")
    return file, Tokenizer(backend, special, family)


def _spelling(token: str) -> str:
    return f"{token} (or {_ELSEWHERE[token]})" if token in _ELSEWHERE else token


def special_ids(path: str | Path) -> dict[str, int]:
    """Return the ids of a tokenizer's special tokens, by their Llama 3 names; maybe none.

    Raises ValueError when the file is missing or damaged.
    """
    return _nearest_family(_read(path)[1])[1]


def _read(path: str | Path):
    """Return (file, backend). Raises ValueError when the file is missing or damaged."""
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{file}: no such tokenizer file; data.tokenizer names a tokenizer.json or its folder"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as e:  # the library raises nothing narrower
        raise ValueError(f"{file}: not a tokenizer: {e}") from None
    backend.encode_special_tokens = True  # text that spells a special token stays text
    return file, backend


def _nearest_family(backend) -> tuple[str, dict[str, int]]:
    """Return the family whose special tokens are most complete, and the ids that were found."""
    found = {name: _special(backend, spelt) for name, spelt in FAMILIES.items()}

    def lacks(name):
        spelt = FAMILIES[name]
        return len(spelt.keys() - found[name].keys() - {NEWLINE}) / len(spelt)

    family = min(FAMILIES, key=lacks)
    return family, found[family]


def _special(backend, spelt: dict[str, str]) -> dict[str, int]:
    ids = {}
    for role, token in spelt.items():
        for spelling in (token, _ELSEWHERE.get(token, token)):
            if (id := backend.token_to_id(spelling)) is not None:
                ids.setdefault(role, id)
    return ids


def word_level(words) -> tokenizers.Tokenizer:
    """Return a small closed-vocabulary tokenizer: one id a word, split at spaces and punctuation.

    Ids follow the given order, after the special tokens, so equal word lists give equal ids; the
    newline token, which few models use, is last.
    """
    vocab = {w: i for i, w in enumerate([*SPECIAL, "<unk>", "\n\n", "\n", *words, NEWLINE])}
    model = tokenizers.models.WordLevel(vocab, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\n\n|\n"), "isolated"),
            tokenizers.pre_tokenizers.Split(" ", "removed"),
            tokenizers.pre_tokenizers.Punctuation(),
        ]
    )
    backend.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, NEWLINE)]
    )
    return backend
