"""Headless Chromium for tests of pages, driven over a pipe with its own DevTools protocol."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 600  # that any one answer may take on a busy machine


class Browser:
    """One page of a browser: open it, look at it, move the pointer, ask it.

    Attributes:
      requests: addresses of everything that the page fetched, itself first.
      complaints: errors and warnings of its console, and exceptions.
    """

    def __init__(self, process, to_browser: int, from_browser: int):
        self._process, self._to, self._from = process, to_browser, from_browser
        self._count, self._rest, self._session = 0, b"", None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """Send a command, wait for its answer, and record the events before it."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]

    def _read(self) -> dict:
        while b"\0" not in self._rest:
            data = os.read(self._from, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        text, self._rest = self._rest.split(b"\0", 1)
        event = json.loads(text)
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] != "log":
            self.complaints.append(json.dumps(params["args"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] != "info":
            self.complaints.append(params["entry"]["text"])
        return event

    def open(self, path: Path, width: int, height: int = 900, *, fragment="", phone=False) -> None:
        """Show a file in a window of this size, and wait until it has loaded."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Page.navigate", url=path.resolve().as_uri() + fragment)
        until = time.monotonic() + SECONDS
        while self.ask("document.readyState") != "complete":
            assert time.monotonic() < until, f"{path} does not load"
            time.sleep(0.05)

    def ask(self, script: str):
        """Return the value of an expression in the page."""
        how = dict(returnByValue=True, awaitPromise=True)
        answer = self.call("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point(self, selector: str) -> None:
        """Scroll to the first visible match and move the pointer over its middle."""
        quoted = json.dumps(selector)
        x, y = self.ask(
            f"(() => {{ const all = [...document.querySelectorAll({quoted})];"
            "const one = all.find((e) => e.getClientRects().length);"
            "one.scrollIntoView({block: 'center', inline: 'center'});"
            # The page is told of the scrolling with the next frame, however late that is.
            "const frame = () => new Promise(requestAnimationFrame);"
            "return frame().then(frame).then(() => {"
            "const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; }); })()"
        )
        for step in (3, 0):  # two moves: the first may only bring the pointer in
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + step, y=y + step)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save what the window shows, or the whole page, as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self, path: Path) -> None:
        """Save the page as it is printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF")["data"]))


@contextlib.contextmanager
def browser(folder: Path):
    """Yield a `Browser` with an empty profile in the folder."""
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()
    quiet = ["--disable-gpu", "--disable-sync", "--no-first-run", "--disable-component-update"]
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet, "--disable-background-networking"]
    command += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
    shell = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'  # where Chromium listens and answers
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *command],
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(read_commands)
    os.close(write_answers)
    try:
        yield Browser(process, write_commands, read_answers)
    finally:
        process.kill()
        process.wait()
        os.close(write_commands)
        os.close(read_answers)
