import pytest

from vvlm_jax.eval.answers import format_options, is_correct, normalise, parse_letter


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        (" B.\n", "B"),
        ("(B)", "B"),
        ("B) dog", "B"),
        ("B. A dog", "B"),
        ("B: dog", "B"),
        ("The answer is B", "B"),
        ("The answer is: (B) dog", "B"),
        ("Answer: B.", "B"),
        ("I see a dog, so (B), not C", "B"),
        ("dog B", "B"),
        ("B dog", "B"),
        ("A Dog", "A"),
        ("**B**", "B"),
        ("Option B", "B"),
        ("Option B: a dog", "B"),
        ("A man walks his dog. The answer is B", "B"),
        ("A man … The answer is (B).", "B"),
        ("The answer could be A. The answer is B.", "B"),
        ("The correct option is C because A is too small", "C"),
        ("The best choice is: D", "D"),
        ("I think (A) is wrong, so (B)", "B"),
        ("answer: b, I mean B", "B"),
        ("A. The answer is A", "A"),
        ("A", "A"),
        ("A dog", None),
        ("A man walks his dog.", None),
        ("D", "D"),
        ("E", None),
        ("(E)", None),
        ("b", None),
        ("Dog", None),
        ("BB", None),
        ("dog", None),
        ("", None),
    ],
)
def test_the_letter_a_reply_names(reply, letter):
    assert parse_letter(reply, 4) == letter


def test_letters_end_with_the_options():
    assert parse_letter("C", 2) is None
    assert parse_letter("E", 5) == "E"


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Red", "red"),
        (" The  red, car! ", "red car"),
        ("an apple a day", "apple day"),
        ("b3 red", "b3 red"),
        ("3.5", "3 5"),
        ("Größe", "größe"),
        ("theatre", "theatre"),
    ],
)
def test_what_normalising_leaves(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("reply", "answer", "options", "correct"),
    [
        ("The red.", "red", 0, True),
        ("red car", "red", 0, False),
        ("", "red", 0, False),
        ("Red", "RED", 0, True),
        ("B", "B", 4, True),
        ("(C)", "B", 4, False),
        ("red B", "B", 4, True),
        ("red", "B", 4, False),
        ("B", "b", 0, True),
        ("", "A", 0, False),
        ("the", "A", 0, False),
        ("a", "A", 0, True),
    ],
)
def test_which_replies_are_correct(reply, answer, options, correct):
    assert is_correct(reply, answer, options) is correct


def test_options_are_lettered_lines():
    assert format_options(["cat", "dog"]) == "A. cat\nB. dog"
