"""Local workers at a store until nothing is left, as `launch --on local` and the study have it."""

import signal
import sys
from collections.abc import Callable, Sequence

from vvlm_jax.sweep.launch import local
from vvlm_jax.sweep.store.store import State, Store

from . import _sweep_text as text


def drive(
    store: Store,
    shares: Sequence[local.Share],
    on_look: Callable[[dict[str, State]], str | None] | None = None,
) -> None:
    """Returns when all is done. Ends the process with 1, and says what failed, when not all can be;
    with 75 after SIGTERM, once the workers have saved.

    Args:
      on_look: called with the states of all jobs every now and then; what it returns is a line
        for the log.
    """
    before = signal.signal(signal.SIGTERM, _terminated)
    progress = text.Watch(store)

    def look(states: dict[str, State]) -> None:
        if on_look and (line := on_look(states)):
            progress.close()
            text.note(line)
        progress(states)

    command = [sys.executable, "-m", "vvlm", "sweep", "work", str(store.path)]
    try:
        done = local.run(store, command, shares, look)
    finally:
        progress.close()
        signal.signal(signal.SIGTERM, before)
    if not done:
        text.failures(store, store.states())
        sys.exit(1)


def _terminated(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(75)
