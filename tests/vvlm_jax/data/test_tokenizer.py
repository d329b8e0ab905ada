import json

import pytest

from vvlm_jax.data import tokenizer
from vvlm_jax.data.tokenizer import BOS, EOT, NEWLINE, SPECIAL, VIDEO


def save(backend, folder):
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.light
def test_ids_follow_the_words_in_order_after_the_special_tokens(tmp_path):
    tok = tokenizer.load(save(tokenizer.word_level(["red", "blue", "?"]), tmp_path))
    assert [tok.special[t] for t in SPECIAL] == [0, 1, 2, 3, 4]
    # 5 is <unk>, 6 the empty line, 7 the line break.
    assert tok.encode("red blue?\n\nred\nfish") == [8, 9, 10, 6, 8, 7, 5]
    # The newline token is last, so that words keep their ids.
    assert (tok.special[NEWLINE], tok.vocab) == (11, 12)


def test_equal_words_give_equal_files(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
        save(tokenizer.word_level(["red", "blue"]), folder)
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()


def test_a_file_and_its_folder_are_the_same_tokenizer(tmp_path):
    save(tokenizer.word_level(["red"]), tmp_path)
    by_file = tokenizer.load(tmp_path / "tokenizer.json")
    assert by_file.encode("red") == tokenizer.load(tmp_path).encode("red") == [8]


def test_decoding_leaves_special_tokens_out(tmp_path):
    tok = tokenizer.load(save(tokenizer.word_level(["red", "blue"]), tmp_path))
    assert tok.decode([tok.special[BOS], 8, 9, tok.special[EOT]]) == "red blue"


@pytest.mark.parametrize("token", [*SPECIAL, NEWLINE])
def test_text_that_spells_a_special_token_stays_text(tmp_path, token):
    tok = tokenizer.load(save(tokenizer.word_level(["red"]), tmp_path))
    assert tok.special[token] not in tok.encode(f"red {token} red")


def test_missing_special_tokens_are_named(tmp_path):
    file = save(tokenizer.word_level(["red"]), tmp_path) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != VIDEO]
    del content["model"]["vocab"][VIDEO]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json: lacks <\|reserved_special_token_0\|>;"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["nothing/tokenizer.json", "."])
def test_a_missing_file_is_named_with_its_option(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: no such tokenizer file; data\.tokenizer"
    ):
        tokenizer.load(tmp_path / name)


@pytest.mark.parametrize("text", ["", '{"version": "1.0"', "[]"])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        tokenizer.load(tmp_path)


def test_replies_end_with_a_turn_or_with_the_text(tmp_path):
    backend = tokenizer.word_level(["red"])
    backend.add_special_tokens(["<|eom_id|>", "<|end_of_text|>"])
    tok = tokenizer.load(save(backend, tmp_path))
    assert tok.stop_ids == (tok.special[EOT], 11, 10)
    assert tok.decode([8, 10, 11]) == "red"


def test_older_tokenizers_without_a_newline_token_are_taken(tmp_path):
    file = save(tokenizer.word_level(["red"]), tmp_path) / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != NEWLINE]
    del content["model"]["vocab"][NEWLINE]
    file.write_text(json.dumps(content))
    tok = tokenizer.load(tmp_path)
    assert NEWLINE not in tok.special
    assert tok.family == "llama3"


def test_qwens_missing_tokens_are_named_by_their_own_names(tmp_path):
    backend = tokenizer.tokenizers.Tokenizer(tokenizer.tokenizers.models.BPE({"a": 0}, []))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    with pytest.raises(ValueError, match=r"\.json: lacks <\|video_pad\|> \(or <video>\); put"):
        tokenizer.load(save(backend, tmp_path))


def test_llava_onevisions_own_tokens_stand_for_video(tmp_path):
    backend = tokenizer.tokenizers.Tokenizer(tokenizer.tokenizers.models.BPE({"a": 0}, []))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<image>", "<video>"])
    tok = tokenizer.load(save(backend, tmp_path))
    assert tok.family == "chatml"
    assert (tok.special[tokenizer.VIDEO], tok.special[NEWLINE]) == (4, 3)


def chatml(folder, *more):
    backend = tokenizer.tokenizers.Tokenizer(tokenizer.tokenizers.models.BPE({"a": 0}, []))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<video>", *more])
    return save(backend, folder)


def test_a_tokenizer_for_a_model_has_its_chat_format(tmp_path):
    save(tokenizer.word_level(["red"]), tmp_path)
    for prompt in ("llama3", "plain"):
        assert tokenizer.load_for(tmp_path, prompt, "grid", 10).family == "llama3"
    needs = (
        r"tokenizer\.json: has the special tokens of llama3, and lacks <\|im_start\|> and <\|im_e"
    )
    with pytest.raises(ValueError, match=needs):
        tokenizer.load_for(tmp_path, "chatml", "none", 10)
    chatml(tmp_path)
    assert tokenizer.load_for(tmp_path, "plain", "none", 4).family == "chatml"
    needs = r"of chatml, and lacks <\|start_header_id\|> and <\|eot_id\|> of llama3, the model's"
    with pytest.raises(ValueError, match=needs):
        tokenizer.load_for(tmp_path, "llama3", "none", 4)


def test_a_tokenizer_for_a_model_has_a_token_for_its_newlines(tmp_path):
    chatml(tmp_path)
    lacks = (
        r"\.json: lacks <\|vision_pad\|> \(or <image>\), which model\.newline = 'grid' needs; put"
    )
    with pytest.raises(ValueError, match=lacks):
        tokenizer.load_for(tmp_path, "chatml", "grid", 5)
    chatml(tmp_path, "<image>")
    assert tokenizer.load_for(tmp_path, "chatml", "grid", 5).special[NEWLINE] == 4


def test_a_tokenizer_for_a_model_has_no_id_that_is_not_embedded(tmp_path):
    save(tokenizer.word_level(["red"]), tmp_path)
    with pytest.raises(
        ValueError, match=r"\.json: has 10 ids, and the language model embeds 9; put"
    ):
        tokenizer.load_for(tmp_path, "llama3", "none", 9)


def test_half_a_character_is_no_text(tok):
    with pytest.raises(ValueError, match="unpaired UTF-16 surrogate"):
        tok.encode("red \ud83d")
