"""What the machine has, and memory that steps use again."""

import subprocess
import sys

import pytest

STEPS = """
import resource, statistics, sys
from vvlm_jax import devices
devices._FILES = ()
if sys.argv[1] == "kept":
    devices.keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(a, b, c):
    return (a @ b) @ c  # between the two, 200 MB that the step alone needs

inputs = jnp.ones((10_000, 8)), jnp.ones((8, 5_000)), jnp.ones((5_000, 8))
faults = []
for _ in range(30):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(*inputs).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults[10:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_step_finds_the_memory_of_the_one_before():
    # Of most steps: jax frees while the next one starts, and the heap then grows once more.
    faults = {
        kind: int(subprocess.check_output([sys.executable, "-c", STEPS, kind], text=True))
        for kind in ("kept", "returned")
    }
    assert faults["kept"] < 0.1 * faults["returned"], faults
