"""Where a stage's time goes: waiting for data, saving, compiling; the rest is training."""

import contextlib
import time
from pathlib import Path

import jax

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """Seconds by purpose since the last `shares`, for the loop that calls the steps.

    Use it as a context manager: it listens to jax's compiler in between.
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
        """Notes the time that a `with` block takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._add(purpose, time.monotonic() - start)

    @contextlib.contextmanager
    def dispatching(self):
        """Around the call of a step, which returns at once unless it has to compile first: then its
        time, tracing included, was for compiling.
        """
        compiles, start = self._compiles, time.monotonic()
        yield
        if self._compiles > compiles:
            self._add("compile", time.monotonic() - start)

    @contextlib.contextmanager
    def waiting(self, last: jax.Array | None):
        """Around the wait for a batch, which counts if the device had nothing left to do by its
        end: when `last`, a result of the step before, is there.
        """
        start = time.monotonic()
        yield
        if last is None or last.is_ready():
            self._add("data", time.monotonic() - start)

    def _add(self, purpose: str, seconds: float) -> None:
        self._seconds[purpose] = self._seconds.get(purpose, 0.0) + seconds

    def shares(self) -> tuple[float, dict[str, float]]:
        """(seconds since the last call, share of them by purpose), and starts anew."""
        now = time.monotonic()
        total = max(now - self._began, 1e-9)
        shares = {k: min(v / total, 1.0) for k, v in self._seconds.items()}
        self._seconds, self._began = {}, now
        return total, shares


class Trace:
    """A profile of some steps, in `out_dir/profile`, as TensorBoard and XProf open it.

    Args:
      steps: (first, last + 1), counted from 0 as `total` counts them.
    """

    def __init__(self, out_dir: Path, steps: tuple[int, int] | None):
        self._folder, self._steps, self._on = Path(out_dir) / "profile", steps, False

    def before(self, step: int) -> None:
        """Begins at the first of the steps, or at a later one when the run resumes there."""
        if self._steps and not self._on and self._steps[0] <= step < self._steps[1]:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def naming(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Around the call of a step, which profilers then know by its number."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, result) -> None:
        """Ends with the last of the steps, when `result` is there."""
        if self._on and step + 1 >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes what was seen."""
        if self._on:
            jax.profiler.stop_trace()
            self._on, self._steps = False, None
