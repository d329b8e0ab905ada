"""A judge on this machine: an HTTP server of the chat-completions form that can misbehave."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeServer:
    """Answers every request by `script(body, number)`, counted from 0.

    The script gives (status, headers, bytes), or a text, which is sent as a completion, or
    "stall", "drip" or "drop". `seen` keeps (time, body, headers) of every request, `busiest` how
    many scripts ran at once: whoever has a reply may ask again before the server has let go of it.
    """

    def __init__(self, script):
        self.script, self.seen = script, []
        self.busiest = self._busy = 0
        self.lock, self.stopped = threading.Lock(), threading.Event()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.seen)
            self.seen.append((time.monotonic(), body, dict(handler.headers)))
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            what = self.script(body, number)
        finally:
            with self.lock:
                self._busy -= 1
        self._send(handler, what)

    def _send(self, handler, what):
        if what == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        if what == "stall":
            self.stopped.wait(300)
            handler.close_connection = True
            return
        status, headers, data = what if isinstance(what, tuple) else (200, {}, completion(what))
        if what == "drip":
            status, headers, data = 200, {}, completion("late" * 2000)
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for at in range(0, len(data), 1 if what == "drip" else len(data) or 1):
            handler.wfile.write(data[at : at + (1 if what == "drip" else len(data))])
            handler.wfile.flush()
            if what == "drip" and self.stopped.wait(0.05):
                return


def completion(text, usage=(100, 10)):
    reply = {"model": "judge-1", "choices": [{"message": {"role": "assistant", "content": text}}]}
    if usage:
        reply["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return json.dumps(reply).encode()


def reply_of_model(body):
    """Return the model's answer that a grading request holds."""
    return body["messages"][-1]["content"].split("Model's answer: ")[1].split("\n\n")[0]


@contextlib.contextmanager
def serving(script):
    """Yield (server, its base address)."""
    judge = JudgeServer(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            with contextlib.suppress(OSError):  # the other side may have left
                judge.answer(self)

        def log_message(self, *args):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args):
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield judge, f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            judge.stopped.set()
            server.shutdown()
            thread.join()
