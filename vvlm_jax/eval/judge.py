"""A language model that grades free replies, behind any OpenAI-compatible endpoint.

Every request and its reply are kept on disk, so that the same evaluation run again asks nothing and
costs nothing. What a run may cost is known before it starts, and a limit holds while it goes on.

One form of POST request is all that is asked, so the standard library's HTTP client does: a client
library would bring its own retries, logs and error texts, each a place where a key can come to
light.
"""

import ast
import contextlib
import email.utils
import hashlib
import http.client
import json
import math
import os
import random
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.config import ConfigError
from vvlm_jax.train.metrics import JsonlWriter, Progress

_USD_PER_MILLION = {"gpt-4o-mini-2024-07-18": (0.15, 0.60)}
"""What a million tokens (read, written) cost, as published."""
_MAX_REPLY_BYTES = 2**20
_REFUSED = (400, 413, 422)  # this request, not the others
_PASSING = (408, 409, 425, 429)  # and 500 and above: the same request may work later

Messages = Sequence[dict[str, str]]


class JudgeError(ValueError):
    """The judge cannot go on; what it has said is kept, and the same command continues."""


@dataclass(frozen=True)
class JudgeConfig:
    """Which judge, how fast, and for how much."""

    url: str = "https://api.openai.com/v1"
    """Base of the endpoint, or its full chat-completions address."""
    model: str = "gpt-4o-mini-2024-07-18"
    """Name that the endpoint knows the model by; the paper's judge by default."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; "" for an endpoint that takes none."""
    concurrency: int = 8
    """Requests under way at once."""
    per_minute: float = 480.0
    """Most requests a minute."""
    timeout_s: float = 60.0
    """Longest wait for one whole reply, in seconds."""
    tries: int = 7
    """How often a request is made before the judge gives up."""
    first_wait_s: float = 1.0
    """Wait after a first failure; twice as long after each further one, up to a minute."""
    max_tokens: int = 64
    """Longest reply, in tokens."""
    usd_per_million: tuple[float, float] | None = None
    """Price of a million tokens (read, written); None takes the model's own, where it is known."""
    limit_usd: float = 10.0
    """Most that all requests kept in one cache folder may have cost, earlier runs included."""


class Plan(NamedTuple):
    """What asking would take."""

    asked: int
    """Different requests."""
    kept: int
    """Those whose reply is there."""
    usd: float
    """Most that the others can cost: bytes / 3 are taken as tokens, replies as long as allowed."""
    spent_usd: float
    """Cost of what is there."""

    def __str__(self) -> str:
        return (
            f"judge: {self.asked} requests, {self.kept} answered before; the rest costs at most "
            f"${self.usd:.4f} (spent so far ${self.spent_usd:.4f})"
        )


class Reply(NamedTuple):
    """What the judge said to one request."""

    text: str
    refused: str = ""
    """Why the endpoint would not answer this request; empty when it did."""


class Verdict(NamedTuple):
    """A grade."""

    correct: bool
    score: float
    """0–5."""


class Judge:
    """Asks one model; `cache_dir` keeps what it says in `replies.jsonl`.

    Raises ConfigError for options that cannot work.
    """

    def __init__(self, config: JudgeConfig, cache_dir: str | Path):
        self.config, self.cache_file = config, Path(cache_dir) / "replies.jsonl"
        self._url = _checked_url(config.url)
        self._price = _checked(config)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._kept, self._spent = _read_cache(self.cache_file)

    def require_key(self) -> None:
        """Raises ConfigError, which does not show it, when the key is missing or no key at all."""
        self._key()

    def plan(self, requests: Sequence[Messages]) -> Plan:
        """What `ask` would take. Nothing is sent."""
        bodies = {self._name(b): b for b in map(self._body, requests)}
        missing = [body for name, body in bodies.items() if name not in self._kept]
        cost = sum(map(self._most_usd, missing))
        return Plan(len(bodies), len(bodies) - len(missing), cost, self._spent)

    def ask(self, requests: Sequence[Messages], title: str = "judge") -> list[Reply]:
        """A reply to each request, in order; equal requests are made once.

        Raises ConfigError when the key is missing, JudgeError before anything is sent when the
        requests could cost more than the limit, and later when the endpoint refuses them all, a
        request has failed `tries` times, or the limit is reached.
        """
        bodies = [self._body(messages) for messages in requests]
        names = [self._name(body) for body in bodies]
        missing = {n: b for n, b in zip(names, bodies, strict=True) if n not in self._kept}
        refused = self._fetch_all(missing, title) if missing else {}
        if refused and len(refused) == len(missing):
            raise JudgeError(f"judge at {self._shown}: {next(iter(refused.values()))}")
        return [
            Reply("", refused[name]) if name in refused else Reply(self._kept[name])
            for name in names
        ]

    def _fetch_all(self, missing: dict[str, dict], title: str) -> dict[str, str]:
        """Fills the cache; {name: why} of the requests that the endpoint would not answer."""
        cost, left = sum(map(self._most_usd, missing.values())), self._left()
        if cost > left:
            raise JudgeError(
                f"judge: {len(missing)} requests may cost ${cost:.4f}, more than the ${left:.4f} "
                f"left of limit_usd = {self.config.limit_usd:g}; raise it, or ask fewer questions"
            )
        run = _Run(self, self._key(), self.config)
        self.cache_file.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(self.cache_file)
        writer, progress = JsonlWriter(self.cache_file), Progress(title, len(missing), "replies")
        pool = ThreadPoolExecutor(self.config.concurrency)
        refused = {}
        try:
            futures = {pool.submit(run.fetch, n, b, writer): n for n, b in missing.items()}
            for done, future in enumerate(as_completed(futures), 1):
                if why := future.result():
                    refused[futures[future]] = why
                progress.update(done, f"${self._spent:.4f}")
        finally:
            run.stop.set()  # what is under way is paid for, and waited for
            pool.shutdown(wait=True, cancel_futures=True)
            progress.close()
            writer.close()
        return refused

    def keep(self, writer: JsonlWriter, name: str, usd: float, **row) -> None:
        """One line of the cache: a reply, or a failure that may have cost something."""
        writer.write(name=name, usd=usd, **row)
        self._spent += usd
        if "reply" in row:
            self._kept[name] = row["reply"]

    def post(self, body: dict, key: str) -> dict:
        """One try. Raises _Failed."""
        headers = {"Content-Type": "application/json", "User-Agent": "vvlm_jax"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url, data, headers, method="POST")
        deadline = time.monotonic() + self.config.timeout_s
        try:
            with self._opener.open(request, timeout=self.config.timeout_s) as response:
                text = _read_until(response, deadline)
        except urllib.error.HTTPError as e:
            raise _of_status(e, deadline) from None
        except urllib.error.URLError as e:  # it was not sent
            raise _Failed(f"cannot be reached: {e.reason}") from None
        except (OSError, http.client.HTTPException) as e:
            raise _Failed(f"broke off: {type(e).__name__}", charged=True) from None
        try:
            reply = json.loads(text)
            said = reply["choices"][0]["message"]["content"]
            if not isinstance(said, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError):
            raise _Failed("answered with something else than a completion", charged=True) from None
        return reply

    def usd(self, body: dict, reply: dict) -> float:
        """What a reply cost by its own count of tokens, or at most, where it gives none."""
        usage = reply.get("usage")
        try:
            counts = usage["prompt_tokens"], usage["completion_tokens"]
            return sum(n * p / 1e6 for n, p in zip(counts, self._price, strict=True))
        except (TypeError, LookupError):
            return self._most_usd(body)

    def _left(self) -> float:
        return self.config.limit_usd - self._spent

    def _most_usd(self, body: dict) -> float:
        said = sum(len(m["content"].encode()) / 3 + 20 for m in body["messages"])
        return (said * self._price[0] + body["max_tokens"] * self._price[1]) / 1e6

    def _body(self, messages: Messages) -> dict:
        return {
            "model": self.config.model,
            "messages": [dict(m) for m in messages],
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
        }

    def _name(self, body: dict) -> str:
        text = json.dumps([self._shown, body], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def _shown(self) -> str:
        """The address without its query, which may hold a secret."""
        return self._url.partition("?")[0]

    def _key(self) -> str:
        name = self.config.key_env
        if not name:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise ConfigError(
                f"the judge needs a key: set {name} in the environment (judge key_env names the "
                'variable; "" for an endpoint that takes no key)'
            )
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ConfigError(f"{name}: holds characters that no key has")
        return key


class _Run:
    """What the threads of one `ask` share."""

    def __init__(self, judge: Judge, key: str, config: JudgeConfig):
        self.judge, self.key, self.config = judge, key, config
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._next = self._reserved = 0.0

    def fetch(self, name: str, body: dict, writer: JsonlWriter) -> str:
        """Asks until there is a reply; why not, when the endpoint will not answer it.

        Raises JudgeError, after which the others give up quietly.
        """
        try:
            return self._fetch(name, body, writer)
        except _Stopped:
            return ""
        except BaseException:
            self.stop.set()
            raise

    def _fetch(self, name, body, writer):
        most, tries = self.judge._most_usd(body), 0
        while True:
            self._wait_for_turn()
            self._reserve(most)
            tries += 1
            try:
                reply = self.judge.post(body, self.key)
            except _Failed as e:
                why = self._without_key(e.why)
                self._settle(most, *((writer, name, most) if e.charged else ()), failed=why)
                if e.kind == "refused":
                    return why
                if e.kind == "final" or tries == self.config.tries:
                    often = f" ({tries} tries)" if tries > 1 else ""
                    raise JudgeError(
                        f"judge at {self.judge._shown}: {why}{often}; run it again to continue"
                    ) from None
                self._back_off(tries, e)
                continue
            said = self._without_key(reply["choices"][0]["message"]["content"] or "")
            model = self._without_key(str(reply.get("model", "")))
            usd = self.judge.usd(body, reply)
            self._settle(most, writer, name, usd, reply=said, model=model, request=body)
            return ""

    def _reserve(self, usd: float) -> None:
        """Sets money aside for what is under way, so that threads together keep the limit."""
        with self._lock:
            if self._reserved + usd > self.judge._left() + 1e-12:
                raise JudgeError(
                    f"judge: stopped at ${self.judge._spent:.4f}, as limit_usd = "
                    f"{self.config.limit_usd:g}; raise it and run it again to continue"
                )
            self._reserved += usd

    def _settle(self, reserved: float, *kept, **row) -> None:
        """Spends what was set aside, or gives it back when there is nothing to keep."""
        with self._lock:
            self._reserved -= reserved
            if kept:
                self.judge.keep(*kept, **row)

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = self._next = max(now, self._next)
            self._next += 60 / self.config.per_minute
        if self.stop.wait(start - now):
            raise _Stopped

    def _back_off(self, tries: int, failed: "_Failed") -> None:
        wait = min(60.0, self.config.first_wait_s * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if failed.retry_after is None:
            self.stop.wait(wait)
            return
        with self._lock:  # the endpoint asks everyone to wait
            pause = time.monotonic() + max(wait, min(failed.retry_after, 600.0))
            self._next = max(self._next, pause)

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "[key]") if self.key else text


class _Stopped(Exception):
    """Another thread has met an error."""


class _Failed(Exception):
    """One try failed. `kind`: "passing", "refused" (this request), or "final" (all of them)."""

    def __init__(self, why: str, kind="passing", charged=False, retry_after=None):
        super().__init__(why)
        self.why = " ".join(why.split())[:300]
        self.kind, self.charged, self.retry_after = kind, charged, retry_after


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *args):
        """None: it is an error."""


def _of_status(error: urllib.error.HTTPError, deadline: float) -> _Failed:
    with error:
        try:
            text = _read_until(error, deadline).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
    code, said = error.code, f"answers {error.code}: {_message(text) or error.reason}"
    if 300 <= code < 400:
        return _Failed(f"answers {code}, a redirect; give the address itself", "final")
    if code == 429 and "insufficient_quota" in text:
        return _Failed(said, "final")
    if code in _PASSING or code >= 500:
        return _Failed(said, retry_after=_retry_after(error.headers.get("Retry-After"), code))
    return _Failed(said, "refused" if code in _REFUSED else "final")


def _message(text: str) -> str:
    """What an error body says, in one line."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())


def _retry_after(header: str | None, code: int) -> float | None:
    """Seconds, from a number or a date; a 429 without one asks everyone to wait, too."""
    try:
        seconds = float(header)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        try:
            date = email.utils.parsedate_to_datetime(header)
            seconds = date.timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0 if code == 429 else None
    return max(0.0, seconds)


def _read_until(response, deadline: float) -> bytes:
    """The whole body. TimeoutError at the deadline, however slowly it drips."""
    parts, size = [], 0
    while part := response.read1(65536):
        parts.append(part)
        size += len(part)
        if size > _MAX_REPLY_BYTES:
            raise http.client.HTTPException("reply too long")
        if time.monotonic() > deadline:
            raise TimeoutError
    declared = response.headers.get("Content-Length")
    if declared and declared.isdigit() and size < int(declared):
        raise http.client.IncompleteRead(b"")
    return b"".join(parts)


def _checked_url(url: str) -> str:
    """The chat-completions address. Errors do not repeat what may hold a secret."""
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  raises for what is no number
    except ValueError:
        raise ConfigError("judge url: not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("judge url: must begin with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise ConfigError("judge url: holds a password; the key belongs into key_env's variable")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))


def _checked(config: JudgeConfig) -> tuple[float, float]:
    """The prices of a config. Raises ConfigError for options that cannot work."""
    for name in ("concurrency", "tries", "max_tokens"):
        if getattr(config, name) < 1:
            raise ConfigError(f"judge {name} = {getattr(config, name)}: must be at least 1")
    for name in ("per_minute", "timeout_s", "first_wait_s", "limit_usd"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"judge {name} = {value}: must be a number above 0")
    price = config.usd_per_million or _USD_PER_MILLION.get(config.model)
    if price is None:
        raise ConfigError(
            f"judge usd_per_million: what a million tokens of {config.model!r} cost is not known "
            "here; give it (read, written), 0 0 where it is free"
        )
    if not all(math.isfinite(p) and p >= 0 for p in price):
        raise ConfigError(f"judge usd_per_million = {price}: must be two numbers from 0 on")
    return price


def _read_cache(path: Path) -> tuple[dict[str, str], float]:
    """({name: reply}, what it cost); a half-written last line is passed over."""
    kept, spent = {}, 0.0
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            spent += row["usd"]
            if "reply" in row:
                kept[row["name"]] = row["reply"]
    return kept, spent


def _end_last_line(path: Path) -> None:
    """So that what is appended does not continue a line that was never finished."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        path.write_bytes(text + b"\n")


# Grades of answers to questions.

_TASK = (
    "You grade answers to questions about videos. You are given a question, its correct answer, "
    "and what a model answered; you do not see the video. An answer is correct when it means the "
    "same as the correct answer: other words and further details do no harm unless they "
    "contradict it."
)


def grading(question: str, answers: Sequence[str], reply: str) -> list[dict[str, str]]:
    """Messages that ask whether `reply` means the same as (one of) `answers`."""
    right = answers[0] if len(answers) == 1 else " / ".join(answers) + "  (any of these)"
    asked = (
        f"Question: {question}\nCorrect answer: {right}\nModel's answer: {reply}\n\n"
        'Reply with a JSON object and nothing else: {"correct": "yes" or "no", "score": N}, where '
        "N is an integer from 0 (wrong) to 5 (means the same)."
    )
    return [{"role": "system", "content": _TASK}, {"role": "user", "content": asked}]


def parse_verdict(text: str) -> Verdict | None:
    """The grade in a reply; None when it holds none.

    JSON and Python dictionaries are read, with or without a code fence or words around them; `pred`
    (LMMs-Eval's word) is `correct`.
    """
    found = _dictionary(text)
    if found is None:
        return None
    said, score = found.get("correct", found.get("pred")), found.get("score")
    said = {True: "yes", False: "no"}[said] if isinstance(said, bool) else said
    said = said.strip().lower() if isinstance(said, str) else ""
    if isinstance(score, str) and re.fullmatch(r"\s*\d(\.\d+)?\s*", score):
        score = float(score)
    if said not in ("yes", "no") or isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return Verdict(said == "yes", float(score)) if 0 <= score <= 5 else None


def _dictionary(text: str) -> dict | None:
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end or end - start > 2000:
        return None
    readers: tuple[Callable, ...] = (json.loads, ast.literal_eval)
    for read in readers:
        try:
            found = read(text[start : end + 1])
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(found, dict):
            return found
    return None
