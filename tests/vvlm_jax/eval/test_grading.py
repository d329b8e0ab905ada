import pytest

from vvlm_jax.eval.grading import Verdict, grading, parse_score, parse_verdict

GOOD = '{"correct": "yes", "score": 5}'


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (GOOD, Verdict(True, 5.0)),
        ("{'pred': 'no', 'score': 0}", Verdict(False, 0.0)),
        ("{'pred': 'Yes', 'score': 4.8}", Verdict(True, 4.8)),
        ('```json\n{"correct": "no", "score": 2}\n```', Verdict(False, 2.0)),
        ('Here you are: {"correct": true, "score": "3"} .', Verdict(True, 3.0)),
        ('{"correct": "yes", "score": 6}', None),
        ('{"correct": "yes", "score": -1}', None),
        ('{"correct": "yes", "score": true}', None),
        ('{"correct": "yes", "score": NaN}', None),
        ('{"correct": "yes"}', None),
        ('{"correct": "perhaps", "score": 3}', None),
        ('{"correct": "yes", "score": 5', None),
        ("{'pred': 'yes, 'score': 5}", None),
        ("yes, 5", None),
        ("{[1]: 2}", None),
        ("{1, 2}", None),
        ("", None),
        ("{" * 1500 + "}", None),
    ],
)
def test_the_grade_in_a_reply(text, verdict):
    assert parse_verdict(text) == verdict


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("{'score': 4.8}", 4.8),
        ("{''score': 4.8}", None),
        ('```python\n{"score": "3"}\n```', 3.0),
        ('{"score": 6}', None),
        ("4", None),
        ("{}", None),
    ],
)
def test_the_score_alone_in_a_reply(text, score):
    assert parse_score(text) == score


def test_a_grading_request_holds_question_answers_and_reply():
    system, user = grading("what ?", ["red", "crimson"], "blue")
    assert (system["role"], user["role"]) == ("system", "user")
    for text in ("what ?", "red / crimson", "Model's answer: blue"):
        assert text in user["content"]
