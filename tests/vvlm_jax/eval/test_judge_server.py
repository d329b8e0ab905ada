import contextlib
import json
import urllib.error
import urllib.request

import pytest

from tests.vvlm_jax.eval.fake_judge import serving
from vvlm_jax.eval.judge import Judge, JudgeConfig, JudgeError
from vvlm_jax.eval.judge_server import GRADES, JudgeServer

KEY = "sk-of-the-judge"
VERDICT, DETAIL = GRADES["gpt_eval_accuracy"], GRADES["gpt_eval_score"]


def request(wanted, answer="red"):
    return [
        {"role": "system", "content": "You grade."},
        {"role": "user", "content": f"Answer: {answer}\nProvide it only as {wanted} from 0 to 5."},
    ]


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """Yield judge(script) -> (Judge, server); all end with the test."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")
    with contextlib.ExitStack() as stack:

        def make(script):
            server, url = stack.enter_context(serving(script))
            return Judge(JudgeConfig(url, per_minute=6e4, tries=1), tmp_path), server

        yield make


def ask(found, messages, key=None):
    """Return what a task of LMMs-Eval would be told."""
    body = {"model": found["MODEL_VERSION"], "messages": messages, "max_tokens": 64}
    headers = {"Authorization": f"Bearer {found['OPENAI_API_KEY'] if key is None else key}"}
    data = json.dumps(body).encode()
    sent = urllib.request.Request(found["OPENAI_API_URL"], data, headers, method="POST")
    with urllib.request.urlopen(sent, timeout=300) as reply:
        return json.loads(reply.read())["choices"][0]["message"]["content"]


SAID = {
    "red": '```json\n{"pred": "yes", "score": "4"}\n```',
    "blue": "{'pred': 'no', 'score': 1}",
    "grey": "I cannot say.",
}


def test_nothing_is_asked_until_the_judge_is_and_then_it_is_handed_out(judge):
    grader, server = judge(lambda body, number: SAID[body["messages"][1]["content"][8:].split()[0]])
    requests = [request(w, a) for w in (VERDICT, DETAIL) for a in SAID]
    with JudgeServer(grader) as endpoint:
        found = endpoint.environment("mini", {})
        told = [ask(found, messages) for messages in requests]
        assert set(told) == {"{'pred': 'ungraded', 'score': 0}"}
        assert endpoint.missing == requests
        assert server.seen == []
        grader.ask(endpoint.missing)
        endpoint.restart()
        told = [ask(found, messages) for messages in requests]
    assert told == [
        "{'pred': 'yes', 'score': 4.0}", "{'pred': 'no', 'score': 1.0}", told[-1],
        "{'score': 4.0}", "{'score': 1.0}", "{'pred': 'ungraded', 'score': 0}",
    ]  # fmt: skip
    assert endpoint.missing == []
    assert (endpoint.asked[VERDICT], endpoint.asked[DETAIL]) == (3, 3)
    assert (endpoint.ungraded[VERDICT], endpoint.ungraded[DETAIL]) == (1, 1)
    assert len(server.seen) == 6


def test_what_the_endpoint_refuses_has_no_grade(judge):
    def script(body, number):
        return (400, {}, b"no") if "grey" in body["messages"][1]["content"] else SAID["red"]

    grader, _ = judge(script)
    with JudgeServer(grader) as endpoint:
        found = endpoint.environment("mini", {})
        requests = [request(VERDICT, "red"), request(VERDICT, "grey")]
        for _ in range(2):
            endpoint.restart()
            told = [ask(found, messages) for messages in requests]
            with contextlib.suppress(JudgeError):
                grader.ask(endpoint.missing)
    assert told == ["{'pred': 'yes', 'score': 4.0}", "{'pred': 'ungraded', 'score': 0}"]
    assert endpoint.ungraded[VERDICT] == 1


@pytest.mark.parametrize(
    ("key", "messages", "status"),
    [("", request(VERDICT), 401), (KEY, request(VERDICT), 401), (None, [], 400), (None, 7, 400)],
)
def test_others_and_other_requests_are_refused(judge, key, messages, status):
    grader, _ = judge(lambda body, number: "")
    with JudgeServer(grader) as endpoint, pytest.raises(urllib.error.HTTPError) as e:
        ask(endpoint.environment("mini", {}), messages, key)
    e.value.close()
    assert e.value.code == status
    assert endpoint.missing == []


def test_the_judges_key_is_not_passed_on(judge):
    grader, _ = judge(lambda body, number: "")
    grader.require_key()
    with JudgeServer(grader) as endpoint:
        found = endpoint.environment("mini", {"no_proxy": "example.org"})
    assert KEY not in str(found)
    assert found["no_proxy"] == "example.org,127.0.0.1"
    assert found["MODEL_VERSION"] == "mini"


def test_without_a_judge_nothing_is_known():
    with JudgeServer(None) as endpoint:
        assert endpoint.answer(request(DETAIL)) == "{'pred': 'ungraded', 'score': 0}"
        assert (endpoint.asked[DETAIL], endpoint.ungraded[DETAIL]) == (1, 1)
