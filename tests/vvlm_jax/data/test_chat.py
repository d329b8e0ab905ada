"""The chat formats, written out by hand and against transformers' templates."""

import json

import pytest

from tests.vvlm_jax.byte_level import save_byte_level
from vvlm_jax.config import ConfigError
from vvlm_jax.data import chat, tokenizer
from vvlm_jax.data.tokenizer import Tokenizer

WORDS = (
    "system",
    "user",
    "assistant",
    "what",
    "is",
    "it",
    "?",
    "red",
    "and",
    "now",
    "blue",
    "be",
    "brief",
)
BOS, EOT, START, END, VIDEO = range(5)
EMPTY_LINE, BREAK = 6, 7
ID = {word: i for i, word in enumerate(WORDS, 8)}


@pytest.fixture(scope="module")
def tok(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.word_level(WORDS).save(str(folder / "tokenizer.json"))
    return tokenizer.load(folder)


def head(role):
    return [START, ID[role], END, EMPTY_LINE]


def said(text):
    return [ID[word] for word in text.split()]


def turns(*values):
    return [{"from": ("human", "gpt")[i % 2], "value": v} for i, v in enumerate(values)]


def video(num_visual):
    return [[VIDEO] * num_visual]


TWO_TURNS = turns("<video>\nwhat is it ?", "red", "and now ?", "blue and red")


def test_a_conversation_of_two_turns_token_by_token(tok):
    expected = [
        ([BOS], False),
        (head("user"), False),
        ([VIDEO] * 6, False),
        ([BREAK, *said("what is it ?"), EOT], False),
        (head("assistant"), False),
        ([*said("red"), EOT], True),
        (head("user"), False),
        ([*said("and now ?"), EOT], False),
        (head("assistant"), False),
        ([*said("blue and red"), EOT], True),
    ]
    encoded = chat.encode(TWO_TURNS, tok, video(6))
    assert encoded.ids == [i for ids, _ in expected for i in ids]
    assert encoded.is_answer == [answer for ids, answer in expected for _ in ids]


def test_the_system_message_comes_first_and_carries_no_loss(tok):
    plain = chat.encode(TWO_TURNS, tok, video(6))
    encoded = chat.encode(TWO_TURNS, tok, video(6), system=" be brief ")
    message = [*head("system"), *said("be brief"), EOT]
    assert encoded.ids == [BOS, *message, *plain.ids[1:]]
    assert encoded.is_answer == [False] * (1 + len(message)) + plain.is_answer[1:]


@pytest.mark.parametrize("prompt", ["llama3", "plain"])
def test_there_is_one_bos_and_it_is_first(tok, prompt):
    ids = chat.encode(TWO_TURNS, tok, video(6), prompt, system="be brief").ids
    assert [i for i, id in enumerate(ids) if id == BOS] == [0]


@pytest.mark.parametrize(
    "text",
    [
        "<video>\nwhat is it ?",
        "what is it ?\n<video>",
        "what is <image> it ?",
        "<image>what is it ?",
    ],
)
def test_the_placeholder_moves_to_the_start_of_its_turn(tok, text):
    ids = chat.encode(turns(text, "red"), tok, video(3)).ids
    assert ids[:9] == [BOS, *head("user"), VIDEO, VIDEO, VIDEO, BREAK]
    assert [i for i in ids[9:] if i >= 8] == [*said("what is it ?"), ID["assistant"], *said("red")]
    assert VIDEO not in ids[9:]


def test_a_placeholder_in_a_later_turn_stays_in_that_turn(tok):
    ids = chat.encode(turns("and now ?", "red", "what <video> ?", "blue"), tok, video(2)).ids
    at = ids.index(VIDEO)
    assert ids[at - 4 : at + 3] == [*head("user"), VIDEO, VIDEO, BREAK]
    assert said("and now ?") == ids[5:8]


def test_stage_one_is_bos_video_caption_break(tok):
    encoded = chat.encode(turns("<image>", " red and blue\n"), tok, video(4), "plain")
    assert encoded.ids == [BOS, *[VIDEO] * 4, *said("red and blue"), BREAK]
    assert encoded.is_answer == [False] * 5 + [True] * 4


def test_a_prompt_ends_where_the_assistant_is_to_speak(tok):
    asked = turns("<video>\nwhat is it ?")
    spoken = chat.encode(
        [*asked, {"from": "gpt", "value": "red"}], tok, video(6), system="be brief"
    ).ids
    assert [*chat.encode_prompt(asked, tok, video(6), "be brief"), *said("red"), EOT] == spoken


def test_both_names_of_each_role_are_the_same(tok):
    renamed = [{**t, "from": {"human": "user", "gpt": "assistant"}[t["from"]]} for t in TWO_TURNS]
    assert chat.encode(renamed, tok, video(6)) == chat.encode(TWO_TURNS, tok, video(6))


def test_an_unknown_role_is_named(tok):
    with pytest.raises(
        ValueError, match=r"unknown role 'robot' .* known: human, user, gpt, assistant"
    ):
        chat.encode([{"from": "robot", "value": "<video> red"}], tok, video(6))


@pytest.mark.parametrize("prompt", ["llama3", "plain"])
@pytest.mark.parametrize(
    ("text", "videos", "expected"),
    [
        ("what is it ?", 1, "0 <image> or <video> placeholders, expected 1"),
        ("<video> and <video>", 1, "2 <image> or <video> placeholders, expected 1"),
        ("<video> and <image>", 3, "2 <image> or <video> placeholders, expected 3"),
        ("<image> what", 0, "1 <image> or <video> placeholders, expected 0"),
    ],
)
def test_placeholders_must_match_the_videos(tok, prompt, text, videos, expected):
    with pytest.raises(ValueError, match=f"conversation has {expected}"):
        chat.encode(turns(text, "red"), tok, video(6) * videos, prompt)


def test_without_a_video_no_placeholder_is_written(tok):
    assert VIDEO not in chat.encode(turns("what is it ?", "red"), tok, []).ids


# Blocks of visual tokens.

SPECIAL = {tokenizer.VIDEO: 4, tokenizer.NEWLINE: 9}


@pytest.mark.parametrize(
    ("newline", "expected"),
    [
        ("none", [4] * 8),
        ("per-video", [4] * 8 + [9]),
        ("per-frame", [4, 4, 4, 4, 9] * 2),
        ("grid", [4, 4, 9] * 4),
    ],
)
def test_where_newlines_stand_in_a_block(newline, expected):
    assert chat.visual_block(2, 4, newline, SPECIAL) == expected
    assert chat.visual_block(1, 1, "grid", SPECIAL) == [4, 9]
    assert chat.visual_block(0, 4, "none", SPECIAL) == []


@pytest.mark.parametrize(
    ("newline", "special", "message"),
    [
        ("row", SPECIAL, r"model\.newline = 'row': must be one of none, per-video,"),
        ("grid", {tokenizer.VIDEO: 4}, r"model\.newline = 'grid': the tokenizer has no token"),
    ],
)
def test_newlines_that_cannot_be_are_refused(newline, special, message):
    with pytest.raises(ConfigError, match=message):
        chat.visual_block(2, 4, newline, special)


# Several videos.


def test_several_placeholders_of_a_turn_stay_where_they_are(tok):
    blocks = [[VIDEO] * 2, [VIDEO] * 3, [VIDEO]]
    asked = turns("<video>\n<image> what is it ?", "red", "and now <video>", "blue")
    ids = chat.encode(asked, tok, blocks).ids
    first = [*blocks[0], BREAK, *blocks[1], *said("what is it ?"), EOT]
    assert ids[: 5 + len(first)] == [BOS, *head("user"), *first]
    last = [*head("user"), *blocks[2], BREAK, *said("and now"), EOT, *head("assistant")]
    assert last == ids[-len(last) - 2 : -2]


def test_stage_one_takes_its_videos_in_order(tok):
    blocks = [[VIDEO], [VIDEO, VIDEO, tok.special[tokenizer.NEWLINE]]]
    ids = chat.encode(turns("<image>\n<image>", "red"), tok, blocks, "plain").ids
    assert ids == [BOS, *blocks[0], *blocks[1], *said("red"), BREAK]
    begun = chat.encode_prompt(turns("<image>\n<image> red and"), tok, blocks, prompt="plain")
    assert begun == [BOS, *blocks[0], *blocks[1], *said("red and")]


def test_placeholders_in_the_order_in_which_they_stand():
    asked = turns("<image> a <video>", "b", "<image>")
    assert chat.placeholders(asked) == ["<image>", "<video>", "<image>"]


# Where loss falls.


def test_llavas_labels_token_by_token(tok):
    """Labels are the assistant's whole message, and BOS, header and end-of-turn of every turn."""
    marks = [True, False, True, False]  # of a header: start, role, end, empty line
    expected = [
        ([BOS], [True]),
        (head("system"), marks),
        ([*said("be brief"), EOT], [False, False, True]),
        (head("user"), marks),
        ([*video(6)[0], BREAK, *said("what is it ?"), EOT], [False] * 11 + [True]),
        (head("assistant"), [True] * 4),
        ([*said("red"), EOT], [True] * 2),
        (head("user"), marks),
        ([*said("and now ?"), EOT], [False] * 3 + [True]),
        (head("assistant"), [True] * 4),
        ([*said("blue and red"), EOT], [True] * 4),
    ]
    encoded = chat.encode(TWO_TURNS, tok, video(6), system="be brief", mask="llava")
    assert encoded.ids == [i for ids, _ in expected for i in ids]
    assert encoded.is_answer == [shown for _, flags in expected for shown in flags]


def test_plain_captions_have_one_mask(tok):
    given = turns("<image>", "red"), tok, video(4), "plain"
    assert chat.encode(*given, mask="llava") == chat.encode(*given)


# ChatML.

IM_START, IM_END, VIDEO_PAD, VISION_PAD = range(256, 260)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("qwen")
    special = ["<|im_start|>", "<|im_end|>", "<|video_pad|>", "<|vision_pad|>", "<|endoftext|>"]
    save_byte_level(folder, special)
    return tokenizer.load(folder)


def test_chatml_token_by_token(qwen):
    assert qwen.family == "chatml"
    assert qwen.stop_ids == (IM_END, 260)
    block = [VIDEO_PAD] * 2
    assert chat.visual_block(2, 1, "per-video", qwen.special) == [VIDEO_PAD] * 2 + [VISION_PAD]
    said = qwen.encode
    parts = [  # ids, answers, llava
        ([IM_START], False, True),
        (said("system"), False, False),
        (said("\n"), False, True),
        (said("be brief"), False, False),
        ([IM_END, *said("\n"), IM_START], False, True),
        (said("user"), False, False),
        (said("\n"), False, True),
        (block, False, False),
        (said("\n"), False, True),
        (said("what?"), False, False),
        ([IM_END, *said("\n")], False, True),
        ([IM_START, *said("assistant\n")], False, True),
        ([*said("red"), IM_END], True, True),
        (said("\n"), False, True),
    ]
    given = turns("<video>what?", "red"), qwen, [block], "chatml", "be brief"
    for column, mask in ((1, "answers"), (2, "llava")):
        encoded = chat.encode(*given, mask)
        assert encoded.ids == [i for part in parts for i in part[0]]
        assert encoded.is_answer == [part[column] for part in parts for _ in part[0]]
    asked = chat.encode_prompt(turns("<video>what?"), qwen, [block], "be brief")
    assert chat.encode(*given).ids == [*asked, *said("red"), IM_END, *said("\n")]


def test_a_plain_caption_has_no_bos_where_there_is_none(qwen):
    ids = chat.encode(turns("<image>", "red"), qwen, [[VIDEO_PAD]], "plain").ids
    assert ids == [VIDEO_PAD, *qwen.encode("red\n")]


def test_a_format_for_another_tokenizer_is_refused(tok, qwen):
    for other, prompt in ((tok, "chatml"), (qwen, "llama3")):
        with pytest.raises(ValueError, match=f"data.prompt = '{prompt}', but the tokenizer has"):
            chat.encode(turns("a", "b"), other, [], prompt)


# Against transformers.

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + "
    "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
# As in Llama 3's tokenizer.json: contractions, words, up to three digits, marks, line breaks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    "What happens at 12:34, and why?\n\nIt's the user's turn!",
    "The assistant opens the door\nand leaves... !!! \u6f22\u5b57 \U0001f39e",
    "!",
)


def trained(folder, special):
    """Train a byte-level tokenizer with merges, over line breaks too."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator([*TEXTS, "user\n\nassistant\n\nsystem\n\n"] * 5, trainer)
    backend.add_special_tokens(
        [tokenizers.AddedToken(t, special=True, normalized=False) for t in special]
    )
    backend.save(str(folder / "tokenizer.json"))


@pytest.mark.torch
@pytest.mark.parametrize(("family", "template"), [("llama3", LLAMA3), ("chatml", CHATML)])
def test_ids_are_those_of_transformers_with_the_template(tmp_path, family, template):
    import transformers

    trained(tmp_path, tokenizer.FAMILIES[family].values())
    ours = tokenizer.load(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert "ĊĊ" in theirs.get_vocab()  # else splitting at an empty line would not matter
    for text in TEXTS:
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids)
    conversation = turns(" " + TEXTS[0] + "\n", TEXTS[1], TEXTS[2], TEXTS[0])
    messages = [{"role": "system", "content": "Be brief!"}] + [
        {"role": ("user", "assistant")[i % 2], "content": t["value"]}
        for i, t in enumerate(conversation)
    ]

    def templated(messages, **more):
        text = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **more)
        return theirs(text, add_special_tokens=False).input_ids

    found = chat.encode(conversation, ours, [], family, "Be brief!")
    assert found.ids == templated(messages)
    asked = chat.encode_prompt(conversation[:-1], ours, [], "Be brief!")
    assert asked == templated(messages[:-1], add_generation_prompt=True)


@pytest.mark.parametrize("family", ["llama3", "chatml"])
def test_no_text_has_more_tokens_than_its_bytes_allow(tmp_path, family):
    """Without merges there is a token a byte; NFC makes some characters three times as long."""
    save_byte_level(tmp_path, [*tokenizer.FAMILIES[family].values()])
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": {"type": "NFC"}}))
    tok = tokenizer.load(tmp_path)
    texts = ["", "<video>", "red", "a\n" * 40, "\u0958" * 30, "🙂 naïve", "\U0001d160" * 20]
    assert len(tok.encode(texts[-1])) > len(texts[-1].encode())
    for text in texts:
        for rounds in (1, 4):
            plain = text.replace("<video>", "")
            said = turns(f"<video>\n{plain}", *[plain or "."] * (2 * rounds - 1))
            for system in ("", f"{plain}be brief"):
                bound = chat.most_tokens(said, system)
                assert len(chat.encode(said, tok, [[]], family, system).ids) <= bound
                assert len(chat.question(said, tok)) <= bound
    long = turns("<video>\n" + "a" * 1000, "b" * 1000)
    ids = chat.encode(long, tok, [[]], family).ids
    assert len(ids) <= chat.most_tokens(long) < len(ids) + 100
