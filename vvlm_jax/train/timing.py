"""Timing of a stage: time spent waiting for data, saving and compiling, and profiles of steps."""

import contextlib
import time
from pathlib import Path

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """Seconds that the training loop spent on each purpose since the last call of `shares`.

    Inside its `with` block it counts jax's compilations.
    """

    def __init__(self):
        self._seconds: dict[str, float] = {}
        self._began = time.monotonic()
        self._compiles = 0

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    def _on_event(self, event: str, _duration: float, **_) -> None:
        self._compiles += event == _COMPILED

    @contextlib.contextmanager
    def timing(self, purpose: str):
        """Add the time of a `with` block to a purpose."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._add(purpose, time.monotonic() - start)

    @contextlib.contextmanager
    def dispatching(self):
        """Time the call of a step; use it as a `with` block around the call.

        The call is asynchronous and returns at once, unless it compiles. In that case all of its
        time, including tracing, counts as compiling.
        """
        compiles, start = self._compiles, time.monotonic()
        yield
        if self._compiles > compiles:
            self._add("compile", time.monotonic() - start)

    @contextlib.contextmanager
    def waiting(self, last: jax.Array | None):
        """Time the wait for a batch; use it as a `with` block around the wait.

        The wait counts only if the device was idle at its end, that is if `last`, a result of the
        previous step (None before the first), is ready.
        """
        start = time.monotonic()
        yield
        if last is None or last.is_ready():
            self._add("data", time.monotonic() - start)

    def _add(self, purpose: str, seconds: float) -> None:
        self._seconds[purpose] = self._seconds.get(purpose, 0.0) + seconds

    def shares(self) -> tuple[float, dict[str, float]]:
        """Return (seconds since the last call, fraction of them by purpose) and reset both."""
        now = time.monotonic()
        total = max(now - self._began, 1e-9)
        shares = {k: min(v / total, 1.0) for k, v in self._seconds.items()}
        self._seconds, self._began = {}, now
        return total, shares


class Trace:
    """Profile of some steps in `out_dir/profile`, for TensorBoard and XProf.

    Args:
      steps: (first, last + 1), counted from 0; None profiles nothing.
    """

    def __init__(self, out_dir: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._on = Path(out_dir) / "profile", steps, False

    def before(self, step: int) -> None:
        """Start the profile at the first of its steps, or at a later one where the run resumes."""
        if self._steps and not self._on and self._steps[0] <= step < self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def naming(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Return a context manager that labels the call of a step with its number."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, result) -> None:
        """End the profile after the last of its steps, once `result` is ready."""
        if self._on and step + 1 >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Write the profile if one is running."""
        if self._on:
            jax.profiler.stop_trace()
            self._on, self._steps = False, None
