"""A language model as a judge, behind any OpenAI-compatible endpoint.

Every request and its reply are kept on disk, so that repeating an evaluation costs nothing. The
most that a run can cost is known before it starts, and a limit is enforced while it runs.
"""

import contextlib
import hashlib
import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.config import ConfigError
from vvlm_jax.eval.endpoint import Endpoint, Failed
from vvlm_jax.progress import JsonlWriter, Progress

_USD_PER_MILLION = {"gpt-4o-mini-2024-07-18": (0.15, 0.60)}
"""Price of a million tokens (read, written) by public price tables of November 2026. Prices change:
`Plan` shows the one used, and `usd_per_million` overrides it.
"""

Messages = Sequence[dict[str, str]]


class JudgeError(ValueError):
    """The judge cannot continue. Its replies so far are kept; retry the same command later."""


@dataclass(frozen=True)
class JudgeConfig:
    """The judge's endpoint and model, and limits of rate and cost."""

    url: str = "https://api.openai.com/v1"
    """Base of the endpoint, or its full chat-completions address."""
    model: str = "gpt-4o-mini-2024-07-18"
    """The endpoint's name of the model; the paper's judge by default."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; "" for an endpoint that needs none."""
    concurrency: int = 8
    """Requests under way at once."""
    per_minute: float = 480.0
    """Most requests a minute."""
    timeout_s: float = 60.0
    """Longest wait for one whole reply, in seconds."""
    tries: int = 7
    """Attempts at a request before the judge gives up."""
    first_wait_s: float = 1.0
    """Wait after a first failure; twice as long after each further one, up to a minute."""
    max_tokens: int = 64
    """Longest reply, in tokens."""
    usd_per_million: tuple[float, float] | None = None
    """Price of a million tokens (read, written); None takes the model's own, where it is known."""
    limit_usd: float = 10.0
    """Most that all requests kept in one cache folder may have cost, earlier runs included."""


class Plan(NamedTuple):
    """Number and cost of the requests that `Judge.ask` would make."""

    asked: int
    """Different requests."""
    kept: int
    """Requests whose reply is kept from before."""
    usd: float
    """Upper bound on the cost of the others: a token for every 3 bytes, replies of full length."""
    spent_usd: float
    """Cost of the replies kept."""
    price: tuple[float, float]
    """USD for a million tokens (read, written)."""

    def __str__(self) -> str:
        read, written = self.price
        return (
            f"judge: {self.asked} requests, {self.kept} answered before; the rest costs at most "
            f"${self.usd:.4f} (spent so far ${self.spent_usd:.4f}; a million tokens read ${read:g}"
            f", written ${written:g})"
        )


class Reply(NamedTuple):
    """The judge's reply to one request."""

    text: str
    refused: str = ""
    """Why the endpoint refused this request; empty if it answered."""


class Judge:
    """A client of one judging model that keeps replies in `cache_dir`/replies.jsonl.

    Thread-safe: the limits of rate, concurrency and cost hold for all threads together, and equal
    requests are sent once. Raises ConfigError for invalid options.
    """

    def __init__(self, config: JudgeConfig, cache_dir: str | Path):
        self.config, self.cache_file = config, Path(cache_dir) / "replies.jsonl"
        self._endpoint = Endpoint(config.url, config.timeout_s)
        self._price = _checked(config)
        self._kept, spent = _read_cache(self.cache_file)
        self._account = _Account(config, spent)
        self._key = _Key()

    def require_key(self) -> None:
        """Read the key once, since the variable may change later.

        Raises ConfigError, which does not show it, when it is missing or invalid.
        """
        self._key = _Key(_read_key(self.config.key_env))

    def plan(self, requests: Sequence[Messages]) -> Plan:
        """Return the number and cost of the requests that `ask` would make. Sends nothing."""
        bodies = {self._name(b): b for b in map(self._body, requests)}
        missing = [body for name, body in bodies.items() if name not in self._kept]
        cost = sum(map(self._most_usd, missing))
        return Plan(len(bodies), len(bodies) - len(missing), cost, self._account.spent, self._price)

    def kept(self, messages: Messages) -> str | None:
        """Return the reply kept for a request, or None. Sends nothing."""
        return self._kept.get(self._name(self._body(messages)))

    def ask(self, requests: Sequence[Messages], title: str = "judge") -> list[Reply]:
        """Return a reply to each request, in order; equal requests are sent once.

        Requests that the endpoint refuses are not kept. Raises ConfigError when the key is missing,
        and JudgeError: before anything is sent if the requests could cost more than the limit;
        later if the endpoint refuses all of them, a request failed `tries` times, or the limit is
        reached.
        """
        bodies = [self._body(messages) for messages in requests]
        names = [self._name(body) for body in bodies]
        missing = {n: b for n, b in zip(names, bodies, strict=True) if n not in self._kept}
        refused = self._fetch_all(missing, title) if missing else {}
        if refused and len(refused) == len(set(names)):
            raise JudgeError(f"judge at {self._endpoint.shown}: {next(iter(refused.values()))}")
        return [
            Reply("", refused[name]) if name in refused else Reply(self._kept[name])
            for name in names
        ]

    def _fetch_all(self, missing: dict[str, dict], title: str) -> dict[str, str]:
        """Fetch replies into the cache; return {name: why} of the requests that were refused."""
        cost, left = sum(map(self._most_usd, missing.values())), self._account.left
        if cost > left:
            raise JudgeError(
                f"judge: {len(missing)} requests may cost ${cost:.4f}, more than the ${left:.4f} "
                f"left of limit_usd = {self.config.limit_usd:g}; raise it, or ask fewer questions"
            )
        if not self._key:
            self.require_key()
        with self._account.lock:
            self.cache_file.parent.mkdir(parents=True, exist_ok=True)
            _end_last_line(self.cache_file)
        writer, progress = JsonlWriter(self.cache_file), Progress(title, len(missing), "replies")
        pool = ThreadPoolExecutor(min(self.config.concurrency, len(missing)))
        stop, refused = threading.Event(), {}
        try:
            futures = {
                pool.submit(self._fetch, name, body, writer, stop): name
                for name, body in missing.items()
            }
            for done, future in enumerate(as_completed(futures), 1):
                if why := future.result():
                    refused[futures[future]] = why
                progress.update(done, f"${self._account.spent:.4f}")
        finally:
            stop.set()  # requests in flight are paid for, so their replies are waited for
            pool.shutdown(wait=True, cancel_futures=True)
            progress.close()
            writer.close()
        return refused

    def _fetch(self, name: str, body: dict, writer: JsonlWriter, stop: threading.Event) -> str:
        """Retry until there is a reply; return why not if the endpoint refuses the request.

        Raises JudgeError, after which other threads of the same `ask` stop silently.
        """
        try:
            with self._account.alone(name):  # a second thread finds the reply of the first
                return "" if name in self._kept else self._fetch_alone(name, body, writer, stop)
        except _Stopped:
            return ""
        except BaseException:
            stop.set()
            raise

    def _fetch_alone(self, name, body, writer, stop):
        most, tries, account = self._most_usd(body), 0, self._account
        while True:
            with account.slots:
                account.wait_for_turn(stop)
                account.reserve(most)
                tries += 1
                try:
                    reply = self._endpoint.post(body, self._key.value)
                    failed = None
                except Failed as e:
                    failed, why = e, self._key.hidden_in(e.why)
            with account.lock:
                account.reserved -= most
                if failed is None:
                    usd, said = self._usd(body, reply), reply["choices"][0]["message"]["content"]
                    said = self._key.hidden_in(said or "")
                    model = self._key.hidden_in(str(reply.get("model", "")))
                    writer.write(name=name, usd=usd, reply=said, model=model, request=body)
                    account.spent += usd
                    self._kept[name] = said
                    return ""
                if failed.charged:
                    writer.write(name=name, usd=most, failed=why)
                    account.spent += most
            if failed.kind == "refused":
                return why
            if failed.kind == "final" or tries == self.config.tries:
                often = f" ({tries} tries)" if tries > 1 else ""
                raise JudgeError(
                    f"judge at {self._endpoint.shown}: {why}{often}; run it again to continue"
                )
            account.back_off(tries, failed.retry_after, stop)

    def _usd(self, body: dict, reply: dict) -> float:
        """Return the cost of a reply by its own token counts, or the upper bound without them."""
        usage = reply.get("usage")
        try:
            counts = usage["prompt_tokens"], usage["completion_tokens"]
            return sum(n * p / 1e6 for n, p in zip(counts, self._price, strict=True))
        except (TypeError, LookupError):
            return self._most_usd(body)

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
        text = json.dumps([self._endpoint.shown, body], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class _Account:
    """State shared by the threads that use one judge: rate, slots and cost."""

    def __init__(self, config: JudgeConfig, spent: float):
        self.config, self.spent, self.reserved = config, spent, 0.0
        self.lock = threading.Lock()
        self.slots = threading.BoundedSemaphore(config.concurrency)
        self._next = 0.0
        self._alone: dict[str, threading.Lock] = {}

    @property
    def left(self) -> float:
        """Return the amount that may still be spent, in USD."""
        return self.config.limit_usd - self.spent

    def alone(self, name: str) -> threading.Lock:
        """Return the lock to hold while sending a request, so that an equal one waits for it."""
        with self.lock:
            return self._alone.setdefault(name, threading.Lock())

    def reserve(self, usd: float) -> None:
        """Reserve the cost of a request in flight. Raises JudgeError above the limit."""
        with self.lock:
            if self.reserved + usd > self.left + 1e-12:
                raise JudgeError(
                    f"judge: stopped at ${self.spent:.4f}, as limit_usd = "
                    f"{self.config.limit_usd:g}; raise it and run it again to continue"
                )
            self.reserved += usd

    def wait_for_turn(self, stop: threading.Event) -> None:
        """Wait until the rate allows another request."""
        with self.lock:
            now = time.monotonic()
            start = self._next = max(now, self._next)
            self._next += 60 / self.config.per_minute
        if stop.wait(start - now):
            raise _Stopped

    def back_off(self, tries: int, retry_after: float | None, stop: threading.Event) -> None:
        """Wait after a failure; delay all threads if the endpoint asks for it."""
        wait = min(60.0, self.config.first_wait_s * 2 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if retry_after is None:
            stop.wait(wait)
            return
        with self.lock:
            pause = time.monotonic() + max(wait, min(retry_after, 600.0))
            self._next = max(self._next, pause)


class _Stopped(Exception):
    """Another thread of the same `ask` failed."""


class _Key:
    """A key that is never shown in messages, logs or `repr`."""

    def __init__(self, value: str | None = None):
        self.value = value

    def __repr__(self) -> str:
        return "[key]"

    def __bool__(self) -> bool:
        return self.value is not None

    def hidden_in(self, text: str) -> str:
        return text.replace(self.value, "[key]") if self.value else text


def _read_key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"the judge needs a key: set {name} in the environment (judge key_env names the "
            'variable; "" for an endpoint that takes no key)'
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError(f"{name}: contains characters that no key has")
    return key


def _checked(config: JudgeConfig) -> tuple[float, float]:
    """Return the prices of a config. Raises ConfigError for invalid options."""
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
    """Return ({name: reply}, total cost), ignoring a truncated last line."""
    kept, spent = {}, 0.0
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            spent += row["usd"]
            if "reply" in row:
                kept[row["name"]] = row["reply"]
    return kept, spent


def _end_last_line(path: Path) -> None:
    """Terminate a truncated last line, so that the next entry starts on its own."""
    if path.is_file() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        path.write_bytes(text + b"\n")
