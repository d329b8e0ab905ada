"""Wall time and peak memory of the phases of a long command, across interruptions."""

import contextlib
import json
import resource
import time
from pathlib import Path


class Clock:
    """Seconds by phase and peak memory, added up over interrupted calls and kept in a file."""

    def __init__(self, file: Path):
        self.file, self.phase = file, None
        self.phases = json.loads(file.read_text())["seconds"] if file.exists() else {}

    def switch(self, phase: str | None, whole: bool = False) -> None:
        """End the current phase and begin another one, unless it is the same.

        Args:
          phase: None begins none.
          whole: the phase starts afresh in every call, so earlier seconds do not count.
        """
        if phase == self.phase:
            return
        if self.phase is not None:
            seconds = self.earlier + time.monotonic() - self.start
            self.phases[self.phase] = round(seconds, 1)
            self._write()
        self.phase, self.start = phase, time.monotonic()
        self.earlier = 0 if whole else self.phases.get(phase, 0)

    @contextlib.contextmanager
    def __call__(self, phase: str, whole: bool = False):
        """Time a `with` block as a phase."""
        self.switch(phase, whole)
        try:
            yield
        finally:
            self.switch(None)

    def _write(self):
        peak = {
            who: resource.getrusage(which).ru_maxrss // 1024
            for who, which in (
                ("driver", resource.RUSAGE_SELF),
                ("largest worker", resource.RUSAGE_CHILDREN),
            )
        }
        self.file.write_text(
            json.dumps({"seconds": self.phases, "peak_memory_mib": peak}, indent=1) + "\n"
        )
