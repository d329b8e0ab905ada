"""`python -m tools.bench.bench_train`: mistakes, both sides step by step."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processes import FAST_TO_COMPILE
from tools.bench import bench_train as bench
from tools.bench.bench_train import Args, Report, Step
from vvlm_jax.config import ConfigError
from vvlm_jax.flops import llm_flops, vision_flops
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.override import override

ROOT = Path(__file__).parents[2]


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def tiny(*overrides):
    return bench.described(Args(quick=True, batch=2, set=overrides))


def test_our_side_needs_nothing_that_a_bare_gpu_machine_lacks():
    lacking = ("tyro", "grain", "av", "PIL", "tokenizers", "jaxopt", "tensorflow_datasets")
    done = run(
        f"import sys; sys.modules.update(dict.fromkeys({lacking!r}))\n"
        "import tools.bench.bench_model, vvlm_jax.train.compiled\n"
        "from tools.bench.bench_train import Args, check, described, rates\n"
        "check(Args(device='gpu')); print(sorted(rates(described(Args(quick=True)))))"
    )
    assert done.returncode == 0, done.stderr
    assert "['llm', 'projector', 'vision']" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(device="tpu"), "device = 'tpu': unknown"),
        (dict(sides=("flash",)), "sides = 'flash': unknown"),
        (dict(batch=-1), "batch = -1: must be at least 0"),
        (dict(repeats=0), "repeats = 0: must be at least 1"),
        (dict(set=("model.num_fames=1",)), "num_fames: no such option; did you mean 'num_frames'"),
        (dict(set=("model.newline=grid",)), "model.newline = 'grid': the torch side has 'none'"),
        (dict(set=("microbatches=3",)), "microbatches = 3: must be a divisor of batch_size = 4"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        bench.main(Args(quick=True, **options))


def test_on_a_gpu_the_stage_is_the_papers_centre():
    config = bench.described(Args(device="gpu", llm="llama3.1-8b", batch=2))
    batch = bench.synthetic_batch(config)
    assert batch.tokens_BL.shape == (2, 32 * 196 + 128)
    assert batch.frames_BTHWC.shape == (2, 32, 384, 384, 3)
    assert (batch.tokens_BL == bench.VIDEO).sum(1).tolist() == [6272, 6272]
    assert config.model.dtype == "bfloat16"
    assert bench.rates(config) == {"vision": 2e-6, "projector": 1e-5, "llm": 1e-5}


def test_answers_are_the_tokens_behind_their_positions():
    batch = bench.synthetic_batch(tiny())
    real = batch.target_weight_BM[0] > 0
    at, ids = batch.target_pos_BM[0][real], batch.target_ids_BM[0][real]
    assert len(at) == 16
    assert at[-1] == batch.tokens_BL.shape[1] - 2  # predicts the last token
    np.testing.assert_array_equal(batch.tokens_BL[0][at + 1], ids)


def test_flops_of_a_step_are_three_forward_passes_and_two_below_what_is_trained():
    config = bench.described(Args(device="gpu", batch=2))
    flops = bench.step_flops(config)
    vision, llm = VISION["so400m/14-384"], LLAMA["llama3.2-1b"]
    assert flops["vision"] == 3 * vision_flops(vision, 64)
    assert flops["llm"] == 3 * 2 * llm_flops(llm, 32 * 196 + 127, logits=64)
    frozen = override(config, ['optim.learning_rates=[["vision/.*", 0], [".*", 1e-5]]'])
    assert bench.step_flops(frozen)["vision"] == flops["vision"] // 3


def test_a_part_with_two_rates_is_refused():
    with pytest.raises(ConfigError, match=r"llm has \[0.0001, 0.001\]; the torch side has one"):
        bench.rates(tiny('optim.learning_rates=[["llm/norm/.*", 1e-3], [".*", 1e-4]]'))


def test_sides_that_differ_are_not_timed():
    ours = [Step(5.0, 1.0, 0.1, 0.1), Step(4.0, 1.0, 0.1, 0.1)]
    bench.agree("float32", ours, [Step(5.0, 1.0001, 9, 9), Step(4.0001, 1.0, 9, 9)], "eager")
    for wrong in (Step(4.1, 1, 0, 0), Step(4, 1.2, 0, 0), Step(float("nan"), 1, 0, 0)):
        with pytest.raises(bench.Disagreement, match="eager: step 2 has (loss|grad_norm)"):
            bench.agree("bfloat16", ours, [ours[0], wrong], "eager")


def test_the_table_compares_with_both_rates_and_says_what_does_not_fit():
    config = bench.described(Args(device="gpu", batch=1))
    total = sum(bench.step_flops(config).values())
    seconds = total / 400e12
    reports = [Report(bench.OURS, seconds, 1.0, 2**36), Report("compiled", 2 * seconds, 1.0, 2**37),
               Report("eager", None, None, None)]  # fmt: skip
    lines = bench.table(Args(), config, reports, 800e12, "NVIDIA H200", "jax 1").splitlines()
    assert "maker's peak 989" in lines[1]
    ours, compiled, eager = lines[-3:]
    assert re.search(r"1\.00 +1\.000 +50\.0% = \d+\.\d% \+ \d+\.\d% +40\.4% +64\.0$", ours)
    assert re.search(r"2\.00 +1\.000 +25\.0% = .* +20\.2% +128\.0$", compiled)
    assert "does not fit" in eager


@pytest.mark.torch
@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), marks=pytest.mark.slow(reason="compiles torch's step, too")),
        ("microbatches=2",),
        pytest.param(
            ("model.dtype=bfloat16",), marks=pytest.mark.slow(reason="bfloat16 is slow on a CPU")
        ),
    ],
)
def test_both_sides_take_the_same_steps(overrides):
    """Losses and gradient norms are equal, after updates too; torch uses gradient checkpointing."""
    from tools.bench import torch_train

    config = tiny(*overrides)
    ours = bench.ours(config)["step"]
    theirs = torch_train.side(config, bench.synthetic_batch(config), "eager", "cpu", True, 1)
    mine, other = ([step() for _ in range(3)] for step in (ours, theirs["step"]))
    bench.agree(config.model.dtype, mine, other, "eager")
    losses = [s.loss for s in mine]
    assert losses[2] < losses[1] < losses[0] - 0.01


@pytest.mark.torch
@pytest.mark.slow(reason="compiles both sides of a benchmark again")
def test_a_frozen_encoder_stays_as_it_is_in_torch():
    from tools.bench import torch_train

    config = tiny('optim.learning_rates=[["vision/.*", 0], [".*", 1e-4]]')
    batch = bench.synthetic_batch(config)
    theirs = torch_train.side(config, batch, "sdpa", "cpu", False, 1)["step"]
    ours = bench.ours(config)["step"]
    bench.agree("float32", [ours(), ours()], [theirs(), theirs()], "sdpa")


@pytest.mark.torch
@pytest.mark.slow(reason="starts three processes, each of which compiles")
def test_a_small_run_prints_all_sides_in_turn(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", FAST_TO_COMPILE)
    bench.main(Args(quick=True, batch=2, sides=("sdpa",), repeats=1))
    shown = capsys.readouterr().out
    assert re.search(r"^vvlm_jax: losses \(gradient norms\) [\d.]+ \([\d.]+\), ", shown, re.M)
    assert re.search(r"a small model, float32, batch 2 in 1, 2 frames x 4 tokens", shown)
    for name in ("vvlm_jax", "transformers, sdpa"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+% = ", shown, re.M)


@pytest.mark.slow(reason="starts a process that imports jax")
def test_what_fails_in_a_side_is_told():
    config = dataclasses.replace(tiny(), mesh=(("data", 7), ("fsdp", 1), ("tensor", 1)))
    with (
        bench.Worker(bench.OURS, Args(), config) as worker,
        pytest.raises(RuntimeError, match="vvlm_jax: (?s:.)*does not divide the 1 devices"),
    ):
        worker.ask("step")
