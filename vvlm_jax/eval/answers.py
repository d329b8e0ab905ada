"""Scoring of short answers: option letters and exact match."""

import re

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
"""What LMMs-Eval's multiple-choice tasks append (videomme, longvideobench, perceptiontest)."""


LETTERS = "ABCDEFGH"
"""Letters of a question's options, in order."""


def format_options(options) -> str:
    """Return the options one a line, `A. cat\\nB. dog`."""
    return "\n".join(
        f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)
    )


def parse_letter(reply: str, num_options: int) -> str | None:
    """Return the option letter that a reply names, or None.

    Tries, the surest first: nothing but the letter; a letter before a sign (`B.`, `(B)`, `B:`) at
    the start; the last `answer is B` or `Answer: B`; the last `(B)`; a letter at the
    start; the last `option B`; a letter at the end. An article is not a letter: "A man runs"
    names none.
    """
    letter = rf"([{LETTERS[:num_options]}])"
    reply = reply.strip()
    surest_first = (
        rf"^\W*{letter}\W*$",
        rf"^[(\[\"'*]*{letter}\s*[).:,;\]*]",
        rf"\b(?i:(?:answer|option|choice)\s+is|answer)\b\s*:?[\s(\[\"'*]*{letter}\b",
        rf"\({letter}\)",
        rf"^(?!A [a-z]){letter}\s",
        rf"\b(?i:option)\s+{letter}\b",
        rf"\b{letter}\W*$",
    )
    for pattern in surest_first:
        if found := re.findall(pattern, reply):
            return found[-1]
    return None


def normalise(text: str) -> str:
    """Return the text in lower case without articles, punctuation and repeated spaces; articles
    stay if there is nothing else.
    """
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def is_correct(reply: str, answer: str, num_options: int = 0) -> bool:
    """Return whether a reply names the answer's letter (multiple choice), or equals the answer
    after `normalise`.
    """
    if num_options:
        return parse_letter(reply, num_options) == answer
    return normalise(reply) == normalise(answer)


def right_answers(question: dict) -> list[str]:
    """Return the answers of a question that count as right."""
    return question.get("references") or [question["answer"]]
