"""Metrics as JSON lines, and a progress line on a terminal."""

import contextlib
import json
import sys
import time
from pathlib import Path

from vvlm_jax import atomic


class JsonlWriter:
    """A writer of JSON lines. Each line is flushed, so that a killed run keeps what it wrote.

    `after_step` first drops lines of later steps, which a killed run logged past its last
    checkpoint.
    """

    def __init__(self, path: str | Path, after_step: int | None = None):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if after_step is not None and path.exists():
            rows = [line for line in path.read_text().splitlines() if _step(line) <= after_step]
            atomic.write_text(path, "".join(line + "\n" for line in rows))
        self._file = path.open("a")

    def write(self, **values) -> None:
        """Write one line."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")


class Progress:
    """`title 120/400 · 51.2 examples/s · loss 0.41 · 5 s left`, rewritten in place on a terminal.

    In a log (no terminal) it stays quiet. So it does in the workers of a sweep, whose parent has
    the terminal's line (`shown`).
    """

    shown = True

    def __init__(self, title: str, total: int, unit: str = "examples", stream=None):
        self.title, self.total, self.unit = title, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._live = self.shown and self._stream.isatty()
        self._start = self._shown = time.monotonic()
        self._first: int | None = None

    def update(self, done: int, extra: str = "") -> None:
        """Show the state, at most ten times a second."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = done, now
        if not self._live or (now - self._shown < 0.1 and done < self.total):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = f"{duration((self.total - done) / rate)} left" if rate else "…"
        shown = [f"{self.title} {done}/{self.total}", f"{rate:.1f} {self.unit}/s", extra, left]
        self._stream.write("\r\x1b[K" + " · ".join(part for part in shown if part))
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Return a duration as text: 45 s, 3 min 20 s, 2 h 5 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"


def printable(line: str) -> str:
    """Replace characters that would move a terminal's cursor, in a line from a file."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


@contextlib.contextmanager
def live(title: str):
    """Show a progress line while the block runs.

    The block gets a function to call with ([label,] done, total).
    """
    bars = []

    def say(*progress):
        *label, done, total = progress
        name = " ".join([title, *label])
        if not bars or bars[-1].title != name:
            bars.append(Progress(name, total, "fits"))
        bars[-1].total = total
        bars[-1].update(done)

    yield say
    for bar in bars[-1:]:
        bar.close()
