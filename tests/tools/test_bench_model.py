"""`python -m tools.bench.bench_model`: mistakes, one small run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import FAST_TO_COMPILE
from tools.bench import bench_model as bench
from vvlm_jax.config import ConfigError
from vvlm_jax.models.variants import LLAMA

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(device="tpu"), "device = 'tpu': unknown"),
        (dict(dtype="float16"), "dtype = 'float16': unknown"),
        (dict(width=100), "width = 100: must be a multiple of 64"),
        (dict(new=1), "new = 1: must be at least 2"),
        (dict(repeats=0), "repeats = 0: must be at least 1"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        bench.check(bench.Args(**options))


def test_a_step_reads_all_weights_and_the_cache_once():
    """Llama 3.2-1B in bf16: the tied matrix is read, as the head; half the reply is written."""
    args = bench.Args(dtype="bfloat16", batch=2, prompt=1000, new=100)
    cache = 2 * 16 * 2 * 1050 * 8 * 64
    assert bench.step_bytes(LLAMA["llama3.2-1b"], args) == 2 * (1_235_814_400 + cache)
    untied = bench.step_bytes(LLAMA["llama3.1-8b"], args)
    assert untied == 2 * (8_030_261_248 - 128256 * 4096 + 2 * 32 * 2 * 1050 * 8 * 128)


@pytest.mark.slow(reason="runs a benchmark of both sides")
@pytest.mark.torch
def test_a_small_run_prints_both_sides_and_that_they_agree():
    """It runs without the packages that a GPU machine may lack."""
    code = (
        "import sys\n"
        "for name in ('tyro', 'jaxopt', 'av', 'tensorflow_datasets', 'orbax', 'grain', 'optax'):\n"
        "    sys.modules[name] = None\n"
        "from tools.bench import bench_model as b\n"
        "b.main(b.Args(depth=2, width=128, vocab=300, batch=2, prompt=20, new=10, repeats=2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"XLA_FLAGS": FAST_TO_COMPILE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert re.search(r"2 x 20 tokens read, 10 written; jax .* torch .* median of 2", shown)
    assert re.search(r"measured: matrix product [\d.]+ TFLOP/s, memory copy [\d.]+ GB/s", shown)
    for name in ("vvlm_jax", "transformers, sdpa"):
        assert re.search(rf"^{name} +[\d,]+ +\d+% +[\d.]+ +[\d,.]+ +\d+% +[\d.]+$", shown, re.M)
    assert "tokens equal to ours, transformers, sdpa: 100.0%" in shown
