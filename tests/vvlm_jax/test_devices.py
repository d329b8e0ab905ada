"""What the machine has, and memory that steps use again."""

import subprocess
import sys

import pytest

from vvlm_jax.config import ConfigError
from vvlm_jax.devices import TPUS, parse_topology, peak_flops

STEPS = """
import resource, statistics, sys
from vvlm_jax import devices
devices.device_files = lambda: []  # as on a machine without accelerators
if sys.argv[1] == "kept":
    devices.keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(a, b, c):
    return (a @ b) @ c  # between the two, 64 MB that the step alone needs

inputs = jnp.ones((4_000, 2)), jnp.ones((2, 4_000)), jnp.ones((4_000, 2))
faults = []
for _ in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(*inputs).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults[5:])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_a_step_finds_the_memory_of_the_one_before():
    # Of most steps: jax frees while the next one starts, and the heap then grows once more.
    faults = {
        kind: int(subprocess.check_output([sys.executable, "-c", STEPS, kind], text=True))
        for kind in ("kept", "returned")
    }
    assert faults["kept"] < 0.1 * faults["returned"], faults


def test_every_tpu_generation_has_its_peak_and_topologies():
    for name, tpu in TPUS.items():
        for shape in tpu.topologies:
            topology = parse_topology(f"{name}:{shape}")
            assert (topology.generation, str(topology), topology.sides) == (
                tpu, f"{name}:{shape}", shape
            )  # fmt: skip
        assert {peak_flops(f"{kind} core") for kind in tpu.device_kinds} == {tpu.peak_flops}
    assert parse_topology("v5p:2x2x4").chips == 16
    assert peak_flops("TPU v5 lite") < peak_flops("TPU v5")  # the longest name counts
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5q:2x2", "topology=v5q:2x2: unknown TPU generation; did you mean 'v5"),
        ("v5p", "must be like v5p:2x2x1"),
        ("v5e:2x2x1", "must be like v5e:2x2,"),
        ("v6e:0x4", "must be like v6e:"),
        ("v6e:-1x4", "must be like v6e:"),
    ],
)
def test_a_topology_that_does_not_exist_is_named(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(name, "topology=")
