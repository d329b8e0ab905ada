import contextlib
import email.utils
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.vvlm_jax.eval.fake_judge import completion, reply_of_model, serving
from vvlm_jax.config import ConfigError
from vvlm_jax.eval.grading import grading
from vvlm_jax.eval.judge import Judge, JudgeConfig, JudgeError

KEY = "sk-test-0123456789"
GOOD = '{"correct": "yes", "score": 5}'
ASKED = [grading("what ?", ["red"], f"reply {i}") for i in range(12)]
# No reply is late by itself: this machine may do something else for a while.
FAST = dict(usd_per_million=(1.0, 2.0), per_minute=60000.0, first_wait_s=0.01, timeout_s=300.0)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def judge(tmp_path):
    """Yield judge(script, …) -> (Judge, server); all end with the test."""
    with contextlib.ExitStack() as stack:

        def make(script=lambda body, number: GOOD, folder="cache", **options):
            server, url = stack.enter_context(serving(script))
            return Judge(JudgeConfig(url, **{**FAST, **options}), tmp_path / folder), server

        yield make


def kept(tmp_path, folder="cache"):
    return [json.loads(t) for t in (tmp_path / folder / "replies.jsonl").read_text().splitlines()]


def first_then(*first, then=GOOD):
    """Return a script that misbehaves at first."""
    return lambda body, number: first[number] if number < len(first) else then


def assert_apart(server, start, seconds):
    """Assert that each request came as long after the one before as it must, counted from the
    first's permission and not its arrival: that can be late, and the next one then soon after it.
    """
    times = [seen[0] - start for seen in server.seen]
    assert all(time >= 0.9 * i * seconds for i, time in enumerate(times)), times


# Asking.


@pytest.mark.light
def test_every_request_has_its_own_reply_in_order(judge):
    ask, server = judge(lambda body, number: reply_of_model(body))
    assert [r.text for r in ask.ask(ASKED)] == [f"reply {i}" for i in range(12)]
    assert len(server.seen) == 12


def test_a_request_is_a_chat_completion_with_the_key(judge):
    ask, server = judge(model="m", max_tokens=9)
    ask.ask(ASKED[:1])
    _, body, headers = server.seen[0]
    wanted = dict(model="m", messages=ASKED[0], temperature=0, max_tokens=9)
    assert body == wanted
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_an_endpoint_without_a_key_gets_none(judge, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    ask, server = judge(key_env="")
    ask.ask(ASKED[:1])
    assert "Authorization" not in server.seen[0][2]


def test_equal_requests_are_made_once(judge):
    ask, server = judge(lambda body, number: reply_of_model(body))
    replies = ask.ask([ASKED[0], ASKED[1], ASKED[0]])
    assert [r.text for r in replies] == ["reply 0", "reply 1", "reply 0"]
    assert len(server.seen) == 2


def test_no_more_requests_are_under_way_than_allowed(judge):
    together = threading.Barrier(3)  # however slow this machine is, three have to meet

    def slow(body, number):
        if number < 3:
            together.wait(200)
        time.sleep(0.05)
        return GOOD

    ask, server = judge(slow, concurrency=3)
    ask.ask(ASKED)
    assert server.busiest == 3


def test_requests_keep_their_distance(judge):
    ask, server = judge(per_minute=1200.0)  # 50 ms
    start = time.monotonic()
    ask.ask(ASKED[:6])
    assert_apart(server, start, 0.05)


def test_many_may_ask_at_once(judge, tmp_path):
    """Threads share the slots, the rate and the limit; equal requests are sent once."""
    together = threading.Barrier(3)

    def slow(body, number):
        if number < 3:
            together.wait(200)
        time.sleep(0.05)
        return reply_of_model(body)

    ask, server = judge(slow, concurrency=3)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: ask.ask(ASKED[i % 4 : i % 4 + 6]), range(12)))
    assert [[r.text for r in of] for of in found] == [
        [f"reply {i % 4 + j}" for j in range(6)] for i in range(12)
    ]
    assert len(server.seen) == len(kept(tmp_path)) == 9
    assert server.busiest == 3
    assert ask.plan(ASKED).spent_usd == pytest.approx(9 * 120e-6)


def test_many_keep_the_rate_and_the_limit(judge):
    ask, server = judge(
        lambda body, number: (200, {}, completion(GOOD, usage=(10**6, 0))),  # a dollar each
        limit_usd=2.5, concurrency=1, per_minute=1200.0,
    )  # fmt: skip
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(ask.ask, [message]) for message in ASKED[:6]]
    errors = [future.exception() for future in futures]
    assert len(server.seen) == 3
    assert sum(isinstance(e, JudgeError) for e in errors) == 3
    assert_apart(server, start, 0.05)


# What is kept.


def test_a_key_that_was_read_outlives_its_variable(judge, monkeypatch):
    ask, server = judge()
    ask.require_key()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    ask.ask(ASKED[:1])
    assert server.seen[0][2]["Authorization"] == f"Bearer {KEY}"
    assert (ask.kept(ASKED[0]), ask.kept(ASKED[1])) == (GOOD, None)
    assert KEY not in repr(vars(ask))


def test_asking_again_asks_nothing_and_needs_no_key(judge, tmp_path, monkeypatch):
    ask, server = judge(lambda body, number: reply_of_model(body))
    first = ask.ask(ASKED)
    monkeypatch.delenv("OPENAI_API_KEY")
    again = Judge(ask.config, tmp_path / "cache")
    assert again.plan(ASKED)[:3] == (12, 12, 0.0)
    assert again.ask(ASKED) == first
    assert len(server.seen) == 12


def test_another_model_or_address_is_asked_anew(judge, tmp_path):
    ask, server = judge()
    ask.ask(ASKED[:1])
    for change in (dict(model="other"), dict(url=ask.config.url.replace("127.0.0.1", "localhost"))):
        other = Judge(JudgeConfig(**{**vars(ask.config), **change}), tmp_path / "cache")
        assert other.plan(ASKED[:1]).kept == 0


def test_a_half_written_reply_is_asked_for_again(judge, tmp_path):
    ask, server = judge(lambda body, number: reply_of_model(body))
    ask.ask(ASKED[:3])
    file = tmp_path / "cache/replies.jsonl"
    file.write_text(file.read_text()[:-20])
    again = Judge(ask.config, tmp_path / "cache")
    assert again.plan(ASKED[:3]).kept == 2
    assert sorted(r.text for r in again.ask(ASKED[:3])) == ["reply 0", "reply 1", "reply 2"]
    assert Judge(ask.config, tmp_path / "cache").plan(ASKED[:3]).kept == 3
    assert len(server.seen) == 4


def test_what_was_said_before_a_failure_is_kept(judge, tmp_path):
    ask, server = judge(
        lambda body, number: GOOD if number < 4 else (401, {}, b"no"), concurrency=1
    )
    with pytest.raises(JudgeError, match="answers 401: no"):
        ask.ask(ASKED)
    assert len(kept(tmp_path)) == 4
    assert len(server.seen) == 5


# An endpoint that misbehaves.

BAD = (
    "drop",
    (500, {}, b"<html>\nbad gateway</html>"),
    (503, {"Retry-After": "0"}, b""),
    (200, {}, b'{"choices": ['),
    (200, {}, b'{"choices": []}'),
    (200, {}, b'{"choices": [{"message": {"content": 3}}]}'),
    (200, {}, b"[]"),
    (200, {}, b"\xff\xfe"),
    (200, {"Content-Length": "1000"}, b'{"choi'),
    (408, {}, b""),
)


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_a_passing_failure_is_tried_again(judge, bad):
    ask, server = judge(first_then(bad, bad))
    assert [r.text for r in ask.ask(ASKED[:1])] == [GOOD]
    assert len(server.seen) == 3


@pytest.mark.parametrize("bad", ["stall", "drip"])
def test_a_reply_that_does_not_end_is_given_up_in_time(judge, tmp_path, bad):
    """Both go on for as long as they are listened to, and so does a busy machine: then the good
    reply is late, too, and one more is asked for.
    """
    ask, server = judge(first_then(bad), timeout_s=0.3, tries=99)
    start = time.monotonic()
    assert ask.ask(ASKED[:1])[0].text == GOOD
    assert time.monotonic() - start >= 0.3
    assert len(server.seen) >= 2
    *late, good = kept(tmp_path)
    assert [set(row) for row in late] == [{"name", "usd", "failed"}] * len(late)
    assert {row["failed"] for row in late} == {"broke off: TimeoutError"}
    assert good["reply"] == GOOD


def test_waits_grow(judge):
    ask, server = judge(first_then(*["drop"] * 4), first_wait_s=0.04)
    ask.ask(ASKED[:1])
    times = [seen[0] for seen in server.seen]
    waits = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert all(wait >= 0.5 * 0.04 * 2**i for i, wait in enumerate(waits))


@pytest.mark.parametrize("how", ["seconds", "date"])
def test_a_rate_limit_makes_everyone_wait(judge, how):
    when = int(time.time()) + 2  # dates have whole seconds: 1 s or more left
    header = {"Retry-After": "1" if how == "seconds" else email.utils.formatdate(when, usegmt=True)}
    ask, server = judge(first_then((429, header, b"slow down")), concurrency=1)
    until = time.monotonic() + when - time.time()
    assert [r.text for r in ask.ask(ASKED[:3])] == [GOOD] * 3
    times = [seen[0] for seen in server.seen]
    assert times[1] >= (times[0] + 1 if how == "seconds" else until) - 0.1
    assert len(times) == 4


def test_a_request_that_fails_too_often_ends_in_one_line(judge):
    ask, server = judge(lambda body, number: (500, {}, b"out of\norder"), tries=3)
    with pytest.raises(
        JudgeError, match=r"answers 500: out of order \(3 tries\); run it again"
    ) as e:
        ask.ask(ASKED[:1])
    assert "\n" not in str(e.value)
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, b'{"error": {"message": "bad key"}}'),
        (403, b"x"),
        (404, b"no such model"),
        (429, b'{"error": {"message": "pay first", "code": "insufficient_quota"}}'),
        (307, b""),
    ],
)
def test_what_no_further_try_can_mend_is_not_tried_again(judge, status, text):
    where = {"Location": "http://127.0.0.1:9/v1"} if status == 307 else {}
    ask, server = judge(lambda body, number: (status, where, text), concurrency=1)
    with pytest.raises(JudgeError, match=f"answers {status}"):
        ask.ask(ASKED)
    assert len(server.seen) == 1


def test_a_redirect_does_not_take_the_key_along(judge):
    elsewhere, thief = judge(folder="other")
    ask, server = judge(
        lambda body, number: (302, {"Location": f"{elsewhere.config.url}/chat/completions"}, b"")
    )
    with pytest.raises(JudgeError, match="a redirect; give the address itself"):
        ask.ask(ASKED[:1])
    assert thief.seen == []


def test_a_request_that_the_endpoint_refuses_is_told_apart(judge, tmp_path):
    refusal = (400, {}, b'{"error": {"message": "repetitive patterns"}}')
    ask, server = judge(lambda body, number: refusal if reply_of_model(body) == "reply 1" else GOOD)
    replies = ask.ask(ASKED[:3])
    assert [r.text for r in replies] == [GOOD, "", GOOD]
    assert [r.refused for r in replies] == ["", "answers 400: repetitive patterns", ""]
    assert len(kept(tmp_path)) == 2
    assert ask.ask(ASKED[:3]) == replies  # the same command can be run again
    with pytest.raises(JudgeError, match="400: repetitive patterns"):
        ask.ask(ASKED[1:2])  # nothing works


def test_nobody_there_is_one_line(tmp_path):
    config = JudgeConfig("http://127.0.0.1:9/v1", **{**FAST, "tries": 2})
    with pytest.raises(JudgeError, match=r"cannot be reached.*refused \(2 tries\)"):
        Judge(config, tmp_path).ask(ASKED)


# Money.


def test_the_cost_is_bounded_before_and_counted_after(judge, tmp_path):
    ask, server = judge(max_tokens=10)
    said = sum(len(m["content"]) / 3 + 20 for m in ASKED[0])
    plan = ask.plan(ASKED[:1])
    assert plan.usd == pytest.approx((said * 1.0 + 10 * 2.0) / 1e6)
    assert server.seen == []
    assert f"1 requests, 0 answered before; the rest costs at most ${plan.usd:.4f}" in str(plan)
    ask.ask(ASKED[:1])
    spent = Judge(ask.config, tmp_path / "cache").plan(ASKED[:1]).spent_usd
    assert spent == pytest.approx((100 * 1.0 + 10 * 2.0) / 1e6)  # what the reply says it took


def test_a_reply_without_its_count_costs_the_most_it_can(judge):
    ask, _ = judge(lambda body, number: (200, {}, completion(GOOD, usage=None)))
    most = ask.plan(ASKED[:1]).usd
    ask.ask(ASKED[:1])
    assert ask.plan(ASKED[:1]).spent_usd == pytest.approx(most)


def test_what_could_cost_more_than_the_limit_is_not_begun(judge):
    ask, server = judge(limit_usd=1e-4)
    with pytest.raises(JudgeError, match=r"12 requests may cost \$0\.\d+, more than the \$0\.0001"):
        ask.ask(ASKED)
    assert server.seen == []


def test_the_limit_holds_for_what_turns_out_dearer(judge, tmp_path):
    def dear(body, number):
        return 200, {}, completion(GOOD, usage=(10**6, 0))  # a dollar each

    ask, server = judge(dear, limit_usd=2.5, concurrency=1)
    with pytest.raises(JudgeError, match=r"stopped at \$3\.0000, as limit_usd = 2\.5"):
        ask.ask(ASKED)
    assert len(server.seen) == 3
    again = Judge(ask.config, tmp_path / "cache")  # the limit is the folder's, not the run's
    with pytest.raises(JudgeError, match="limit_usd"):
        again.ask(ASKED)
    assert len(server.seen) == 3


def test_a_try_that_may_have_been_charged_counts(judge):
    ask, _ = judge(first_then("drop"))
    most = ask.plan(ASKED[:1]).usd
    ask.ask(ASKED[:1])
    assert ask.plan(ASKED[:1]).spent_usd == pytest.approx(most + 120e-6)


@pytest.mark.parametrize("model", ["gpt-4o-mini-2024-07-18"])
def test_the_price_of_the_papers_judge_is_known(tmp_path, model):
    assert JudgeConfig().model == model
    assert Judge(JudgeConfig(), tmp_path).plan(ASKED).usd > 0


def test_an_unknown_price_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="usd_per_million.*'mine' cost is not known"):
        Judge(JudgeConfig(model="mine"), tmp_path)


# The key.


def test_the_key_appears_nowhere(judge, tmp_path, capfd):
    echo = json.dumps({"error": {"message": f"no such key {KEY}"}}).encode()
    ask, _ = judge(first_then((500, {}, echo), f"you sent {KEY}", then=(401, {}, echo)))
    assert ask.ask(ASKED[:1])[0].text == "you sent [key]"
    with pytest.raises(JudgeError) as e:
        ask.ask(ASKED)
    assert "no such key [key]" in str(e.value)
    told = capfd.readouterr()
    files = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    chain = f"{e.value!r} {e.value.__cause__!r} {ask!r} {vars(ask)!r}"
    assert KEY not in files + told.out + told.err + chain


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_missing_key_is_said_before_anything_is_sent(judge, monkeypatch, value):
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    ask, server = judge()
    for call in (ask.require_key, lambda: ask.ask(ASKED)):
        with pytest.raises(ConfigError, match="the judge needs a key: set OPENAI_API_KEY"):
            call()
    assert server.seen == []


@pytest.mark.parametrize("value", ["sk-a\nb: c", "sk-ключ", "sk a"])
def test_what_cannot_be_a_key_is_refused_unseen(judge, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    ask, _ = judge()
    with pytest.raises(
        ConfigError, match="OPENAI_API_KEY: contains characters that no key has"
    ) as e:
        ask.ask(ASKED)
    assert value not in str(e.value)


def test_a_key_with_a_line_break_behind_it_is_taken(judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    ask, server = judge()
    ask.ask(ASKED[:1])
    assert server.seen[0][2]["Authorization"] == f"Bearer {KEY}"


# Options.


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("url", "api.openai.com/v1", "must begin with http:// or https://"),
        ("url", "ftp://host/v1", "must begin with http:// or https://"),
        ("url", "https://", "name a host"),
        ("url", "http://host:x1/v1", "not an address"),
        ("url", "https://me:secret@host/v1", "holds a password"),
        ("concurrency", 0, "concurrency = 0: must be at least 1"),
        ("tries", 0, "tries = 0: must be at least 1"),
        ("per_minute", 0.0, "per_minute = 0.0: must be a number above 0"),
        ("timeout_s", float("nan"), "timeout_s = nan: must be a number above 0"),
        ("limit_usd", -1.0, "limit_usd = -1.0: must be a number above 0"),
        ("usd_per_million", (-1.0, 0.0), "must be two numbers from 0 on"),
    ],
)
def test_an_option_that_cannot_work_is_named(tmp_path, option, value, said):
    with pytest.raises(ConfigError, match=said) as e:
        Judge(JudgeConfig(**{option: value}), tmp_path)
    assert str(e.value).startswith("judge ")
    assert "secret" not in str(e.value)


def test_the_full_address_may_be_given_and_its_query_is_not_shown(judge):
    ask, server = judge(lambda body, number: (401, {}, b""))
    config = JudgeConfig(ask.config.url + "/chat/completions/?api-key=hidden", **FAST)
    with pytest.raises(JudgeError, match=r"/v1/chat/completions: answers 401") as e:
        Judge(config, ask.cache_file.parent).ask(ASKED[:1])
    assert "hidden" not in str(e.value)
