"""Text to ids with any Hugging Face `tokenizer.json` that knows Llama 3's special tokens."""

from dataclasses import dataclass, field
from pathlib import Path

import tokenizers

BOS, EOT = "<|begin_of_text|>", "<|eot_id|>"
HEADER_START, HEADER_END = "<|start_header_id|>", "<|end_header_id|>"
VIDEO = "<|reserved_special_token_0|>"
"""The placeholder: an id that Llama 3 reserves and never uses, so that no text can be mistaken for
it.
"""
SPECIAL = (BOS, EOT, HEADER_START, HEADER_END, VIDEO)


@dataclass(frozen=True)
class Tokenizer:
    """A loaded tokenizer and the ids that the chat format needs."""

    backend: tokenizers.Tokenizer
    special: dict[str, int] = field(repr=False)

    @property
    def vocab(self) -> int:
        """Number of ids, special ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: nothing is added before or after."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """Text of ids, special tokens left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def load(path: str | Path) -> Tokenizer:
    """Reads `path` or `path/tokenizer.json`. Raises ValueError when it is missing or not a Llama 3
    one.
    """
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
    backend.encode_special_tokens = True  # what text spells is text
    special = {token: backend.token_to_id(token) for token in SPECIAL}
    missing = [token for token, id in special.items() if id is None]
    if missing:
        raise ValueError(f"{file}: lacks {', '.join(missing)}; a Llama 3 tokenizer is needed")
    return Tokenizer(backend, special)


def word_level(words) -> tokenizers.Tokenizer:
    """A small closed-vocabulary tokenizer: one id a word, split at white space and punctuation.

    Ids follow the order given, after the special tokens, so equal word lists give equal ids.
    """
    vocab = {w: i for i, w in enumerate([*SPECIAL, "<unk>", "\n\n", "\n", *words])}
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
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in SPECIAL]
    )
    return backend
