from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from vvlm_jax.train import timing as module
from vvlm_jax.train.timing import Clock


def test_shares_are_of_the_time_since_the_last_call(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = Clock()
    for part in (2.0, 1.0):
        with clock.timing("save"):
            now[0] += part
    now[0] += 5.0
    assert clock.shares() == (8.0, {"save": pytest.approx(3 / 8)})
    now[0] += 4.0
    assert clock.shares() == (4.0, {})


def test_a_call_that_compiles_is_told_from_one_that_does_not():
    f = jax.jit(lambda x: x * 3 + 1)
    with Clock() as clock:
        with clock.dispatching():
            f(jnp.arange(7))
        assert clock.shares()[1]["compile"] > 0
        with clock.dispatching():
            f(jnp.arange(7))
        assert clock.shares()[1] == {}
    with clock.dispatching():  # it no longer listens
        f(jnp.arange(8))
    assert clock.shares()[1] == {}


class Pending:
    def __init__(self, ready):
        self.is_ready = lambda: ready


def test_waiting_counts_when_the_device_was_idle():
    clock = Clock()
    with clock.waiting(Pending(ready=False)):
        pass
    assert clock.shares()[1] == {}
    with clock.waiting(Pending(ready=True)):
        pass
    with clock.waiting(None):
        pass
    assert set(clock.shares()[1]) == {"data"}
