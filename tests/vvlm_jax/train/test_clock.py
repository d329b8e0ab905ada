import time

import jax
import jax.numpy as jnp
import pytest

from vvlm_jax.train.clock import Clock


def test_shares_are_of_the_time_since_the_last_call():
    clock = Clock()
    with clock.timing("save"):
        time.sleep(0.05)
    time.sleep(0.05)
    seconds, shares = clock.shares()
    assert seconds == pytest.approx(0.1, abs=0.06)
    assert shares == {"save": pytest.approx(0.05 / seconds, abs=0.2)}
    assert clock.shares()[1] == {}


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
