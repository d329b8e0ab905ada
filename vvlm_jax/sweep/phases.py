"""Wall time, CPU time and peak memory of the phases of a long command, across interruptions."""

import contextlib
import json
import os
import resource
import time
from pathlib import Path

from vvlm_jax import atomic

KEEP_EVERY = 10.0
"""Seconds after which a phase under way is written again: a kill loses no more than that."""


class Clock:
    """Seconds by phase and peak memory, added up over interrupted calls and kept in a file.

    CPU seconds are those of this process and of the processes that it started.
    """

    def __init__(self, file: Path):
        self.file, self.phase = file, None
        kept = json.loads(file.read_text()) if file.exists() else {}
        self.phases, self.cpu = kept.get("seconds", {}), kept.get("cpu_seconds", {})

    def switch(self, phase: str | None, whole: bool = False) -> None:
        """End the current phase and begin another one, unless it is the same.

        Args:
          phase: None begins none.
          whole: the phase starts afresh in every call, so earlier seconds do not count.
        """
        if phase == self.phase:
            if phase is not None and time.monotonic() - self.kept > KEEP_EVERY:
                self._keep()
            return
        if self.phase is not None:
            self._keep()
        self.phase, self.start, self.cpu_start = phase, time.monotonic(), cpu_seconds()
        self.kept = self.start
        both = self.phases, self.cpu
        self.earlier = (0, 0) if whole else tuple(of.get(phase, 0) for of in both)

    @contextlib.contextmanager
    def __call__(self, phase: str, whole: bool = False):
        """Time a `with` block as a phase."""
        self.switch(phase, whole)
        try:
            yield
        finally:
            self.switch(None)

    def _keep(self) -> None:
        """Write the seconds of the phase under way."""
        self.kept, (wall, cpu) = time.monotonic(), self.earlier
        self.phases[self.phase] = round(wall + self.kept - self.start, 1)
        self.cpu[self.phase] = round(cpu + max(0.0, cpu_seconds() - self.cpu_start), 1)
        peak = {
            who: resource.getrusage(which).ru_maxrss // 1024
            for who, which in (
                ("driver", resource.RUSAGE_SELF),
                ("largest worker", resource.RUSAGE_CHILDREN),
            )
        }
        found = {"seconds": self.phases, "cpu_seconds": self.cpu, "peak_memory_mib": peak}
        atomic.write_text(self.file, json.dumps(found, indent=1) + "\n")


def cpu_seconds() -> float:
    """Return the CPU seconds of this process, and of its children, ended and (on Linux) alive."""
    ended = sum(
        sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):  # a process may end meanwhile
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ticks += sum(map(int, fields[11:15]))
    return ended + ticks / os.sysconf("SC_CLK_TCK")
