"""The judge as LMMs-Eval's tasks ask for it: an endpoint on this machine.

These tasks post their requests themselves, a few at a time, and make 0 of what they cannot read. So
the relay never asks anybody. What the judge has said it hands out, in the form that the tasks read;
of all else it takes a note and gives no grade. The judge is then asked for all of that at once, at
its own pace and within its limits, and the task is scored again: no grade is waited for twice, and
what it may cost is known before.

The tasks never see the judge's address or key: the relay has a key of its own, good for this
process alone.
"""

import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vvlm_jax.eval.grading import parse_score, parse_verdict
from vvlm_jax.eval.judge import Judge, Messages

GRADES = {
    "gpt_eval_accuracy": "a yes/no and score",
    "gpt_eval_score": "a detail orientation score",
    "gpt_eval_score_correctness": "a factual accuracy score",
    "gpt_eval_score_detailed_orientation": "a detail orientation score",
    "gpt_eval_score_context": "a contextual understanding score",
    "gpt_eval_score_temporal": "a temporal accuracy score",
    "gpt_eval_score_consistency": "a consistency score",
}
"""LMMs-Eval's judged metrics, and what it asks to be given "only as" for them."""
_NO_VERDICT = "{'pred': 'ungraded', 'score': 0}"
"""In `activitynetqa` neither yes nor no, so that its accuracy leaves it out; elsewhere a 0."""


class Relay:
    """A context in which the endpoint answers; `judge` None knows nothing."""

    def __init__(self, judge: Judge | None):
        self._judge, self._lock = judge, threading.Lock()
        self.key = secrets.token_hex(16)
        self.asked: Counter[str] = Counter()
        """Requests for each of `GRADES`' values since `restart`."""
        self.ungraded: Counter[str] = Counter()
        """Those without a grade."""
        self.missing: list[Messages] = []
        """Those that the judge has said nothing to."""

    def __enter__(self) -> "Relay":
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def restart(self) -> None:
        """Forgets what was asked."""
        with self._lock:
            self.asked.clear()
            self.ungraded.clear()
            self.missing = []

    def environment(self, model: str, now: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Variables by which LMMs-Eval's tasks find the relay; to be set before these are loaded.

        Args:
          model: name of the judge, for the tasks' requests.
        """
        here = f"http://127.0.0.1:{self._server.server_port}/v1/chat/completions"
        direct = {
            name: ",".join(filter(None, (now.get(name), "127.0.0.1")))
            for name in ("NO_PROXY", "no_proxy")
        }
        return {
            "OPENAI_API_URL": here,
            "OPENAI_API_KEY": self.key,
            "MODEL_VERSION": model,
            "API_TYPE": "openai",
            **direct,
        }

    def answer(self, messages: Messages) -> str:
        """What a task reads as the judge's reply."""
        asked = messages[-1]["content"]
        wanted = next((w for w in set(GRADES.values()) if f"only as {w}" in asked), "")
        said = self._judge.kept(messages) if self._judge else None
        read = _verdict if wanted == GRADES["gpt_eval_accuracy"] else _score
        grade = read(said or "")
        with self._lock:
            self.asked[wanted] += 1
            self.ungraded[wanted] += grade is None
            if said is None:
                self.missing.append(messages)
        return grade or _NO_VERDICT


def _verdict(text: str) -> str | None:
    verdict = parse_verdict(text)
    if verdict is None:
        return None
    return str({"pred": "yes" if verdict.correct else "no", "score": verdict.score})


def _score(text: str) -> str | None:
    score = parse_score(text)
    return None if score is None else str({"score": score})


class _Server(ThreadingHTTPServer):
    daemon_threads = True


def _handler(relay: Relay) -> type:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            if self.headers.get("Authorization") != f"Bearer {relay.key}":
                return self._send(401, {"error": {"message": "not this process"}})
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = relay.answer([dict(m) for m in body["messages"]])
            except (ValueError, LookupError, TypeError):
                return self._send(400, {"error": {"message": "not a chat completion"}})
            message = {"role": "assistant", "content": text}
            return self._send(
                200, {"model": body.get("model", ""), "choices": [{"message": message}]}
            )

        def _send(self, status: int, body: dict):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    return Handler
