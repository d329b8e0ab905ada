"""The Llama 3 format, written out by hand."""

import pytest

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
