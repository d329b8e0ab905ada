"""A tokenizer without merges, for any text."""

import tokenizers


def save_byte_level(folder, special):
    """Write `tokenizer.json` with an id for every byte, in the order of GPT-2's alphabet, then
    `special`.
    """
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in special]
    )
    backend.save(str(folder / "tokenizer.json"))
