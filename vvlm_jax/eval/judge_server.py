"""A local endpoint through which LMMs-Eval's tasks reach the judge.

The tasks post their requests themselves, a few at a time, and count a reply that they cannot parse
as 0. So this server sends no request to the judge. It answers with grades that the judge has given
before, in the form that the tasks parse; other requests get a placeholder without a grade, and are
listed in `missing`. The caller then asks the judge for all of them at once, within its rate and
cost limits, and scores the task again.

The tasks never see the judge's address or key: this server has a key of its own, valid for this
process only.
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
"""LMMs-Eval's judged metrics, and the phrase after "only as" in its request for each."""
_NO_VERDICT = "{'pred': 'ungraded', 'score': 0}"
"""Placeholder: neither yes nor no, so that `activitynetqa` leaves it out of its accuracy; other
tasks count 0.
"""


class JudgeServer:
    """A context manager that runs the endpoint.

    Args:
      judge: whose grades are handed out; None when no task is judged.
    """

    def __init__(self, judge: Judge | None):
        self.judge, self._lock = judge, threading.Lock()
        self.key = secrets.token_hex(16)
        self.asked: Counter[str] = Counter()
        """Number of requests since `restart`, by value of `GRADES`."""
        self.ungraded: Counter[str] = Counter()
        """Number of those that got no grade."""
        self.missing: list[Messages] = []
        """Requests that the judge has not been asked yet."""

    def __enter__(self) -> "JudgeServer":
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def restart(self) -> None:
        """Reset the counters and the list of missing requests."""
        with self._lock:
            self.asked.clear()
            self.ungraded.clear()
            self.missing = []

    def environment(self, model: str, now: Mapping[str, str] = os.environ) -> dict[str, str]:
        """Return the variables by which LMMs-Eval's tasks find this server. Set them before the
        tasks are loaded.

        Args:
          model: name of the judge, for the tasks' requests.
          now: the environment, whose list of hosts without a proxy is extended.
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
        """Return the reply to one request of a task."""
        asked = messages[-1]["content"]
        wanted = next((w for w in set(GRADES.values()) if f"only as {w}" in asked), "")
        said = self.judge.kept(messages) if self.judge else None
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


def _handler(server: JudgeServer) -> type:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            if self.headers.get("Authorization") != f"Bearer {server.key}":
                return self._send(401, {"error": {"message": "not this process"}})
            try:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = server.answer([dict(m) for m in body["messages"]])
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
