"""Requests to a chat-completions endpoint, and the ways in which they fail.

The standard library's HTTP client suffices for one kind of POST request. A client library would add
retries, logs and error texts of its own, each of which might reveal a key.
"""

import contextlib
import email.utils
import http.client
import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request

from vvlm_jax.config import ConfigError

_MAX_REPLY_BYTES = 2**20
_REFUSED = (400, 413, 422)  # this request, not the others
_PASSING = (408, 409, 425, 429)  # and 500 and above: the same request may work later


class Failed(Exception):
    """A failed request.

    `kind` is "passing" (retry), "refused" (this request only) or "final" (all requests). `charged`:
    it may have cost something. `retry_after`: seconds that all requests are asked to wait.
    """

    def __init__(self, why: str, kind="passing", charged=False, retry_after=None):
        super().__init__(why)
        self.why = " ".join(why.split())[:300]
        self.kind, self.charged, self.retry_after = kind, charged, retry_after


class Endpoint:
    """A chat-completions endpoint.

    Args:
      url: base of the endpoint, or its full chat-completions address.
      timeout_s: longest wait for one whole reply.

    Raises ConfigError, which does not show the address, for an invalid one.
    """

    def __init__(self, url: str, timeout_s: float):
        self._url, self._timeout_s = _checked_url(url), timeout_s
        self._opener = urllib.request.build_opener(_NoRedirect)

    @property
    def shown(self) -> str:
        """Return the address without its query, which may contain a secret."""
        return self._url.partition("?")[0]

    def post(self, body: dict, key: str) -> dict:
        """Send one request and return the whole reply. Raises Failed."""
        headers = {"Content-Type": "application/json", "User-Agent": "vvlm_jax"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode()
        request = urllib.request.Request(self._url, data, headers, method="POST")
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                text = _read_until(response, deadline)
        except urllib.error.HTTPError as e:
            raise _of_status(e, deadline) from None
        except urllib.error.URLError as e:  # it was not sent
            raise Failed(f"cannot be reached: {e.reason}") from None
        except (OSError, http.client.HTTPException) as e:
            raise Failed(f"broke off: {type(e).__name__}", charged=True) from None
        try:
            reply = json.loads(text)
            said = reply["choices"][0]["message"]["content"]
            if not isinstance(said, str | None):
                raise TypeError
        except (ValueError, LookupError, TypeError):
            raise Failed("answered with something else than a completion", charged=True) from None
        return reply


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *args):
        """Return None, which makes a redirect an error."""


def _of_status(error: urllib.error.HTTPError, deadline: float) -> Failed:
    with error:
        try:
            text = _read_until(error, deadline).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            text = ""
    code, said = error.code, f"answers {error.code}: {_message(text) or error.reason}"
    if 300 <= code < 400:
        return Failed(f"answers {code}, a redirect; give the address itself", "final")
    if code == 429 and "insufficient_quota" in text:
        return Failed(said, "final")
    if code in _PASSING or code >= 500:
        return Failed(said, retry_after=_retry_after(error.headers.get("Retry-After"), code))
    return Failed(said, "refused" if code in _REFUSED else "final")


def _message(text: str) -> str:
    """Return the message of an error body, in one line."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        text = json.loads(text)["error"]["message"]
    return " ".join(str(text).split())


def _retry_after(header: str | None, code: int) -> float | None:
    """Return the seconds to wait from a number or a date; 0 for a 429 without one, else None."""
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
    """Return the whole body. Raises TimeoutError at the deadline, however slowly bytes arrive."""
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
    """Return the chat-completions address. Errors do not repeat it: it may contain a secret."""
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # noqa: B018  raises for an invalid port
    except ValueError:
        raise ConfigError("judge url: not an address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("judge url: must begin with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise ConfigError("judge url: holds a password; the key belongs into key_env's variable")
    path = parts.path.rstrip("/")
    path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))
