import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.config import ConfigError, OptimConfig
from vvlm_jax.data import pipeline
from vvlm_jax.models import vlm
from vvlm_jax.models.variants import VISION
from vvlm_jax.progress import JsonlWriter, Progress, duration
from vvlm_jax.sharding import make_mesh
from vvlm_jax.train import optim
from vvlm_jax.train.compiled import compiled_step, initial_state
from vvlm_jax.train.loss import chunked_losses, token_losses, weigh

GROUPS = OptimConfig((("vision/.*", 1e-3), ("(projector|llm)/.*", 5e-3)))
FROZEN = OptimConfig((("llm/.*", 0.0), (".*", 5e-3)))
LINEAR = OptimConfig(((".*", 1.0),), eps=1.0, clip_norm=1e6)
"""Adam's first step is then g / (|g| + 1), from which the gradient follows."""


@pytest.fixture(scope="module")
def batch(stage, tok):
    config = stage()
    examples = pipeline.Examples(config.data, config.model, VISION["study/12"], tok, 0)
    first = next(iter(pipeline.batches(examples, 4, 1, 0)))
    # One answer much shorter than the others, so that the ways to weigh differ.
    first.target_weight_BM[1, 5:] = 0
    return first


@pytest.fixture(scope="module")
def one_step(stage, tok, batch):
    """Return one_step(optim config) -> (state before, state after one step, metrics)."""

    @functools.cache
    def run(optim_config, microbatches=1, weighting="token", loss_chunk=0, *assignments):
        config = stage("unused", *assignments, optim=optim_config)
        model, mesh = vlm.build(config.model, pipeline.video_id(tok)), make_mesh(config.mesh)
        # Neither remat nor chunks of frames change the initial parameters.
        plain = vlm.build(stage().model, pipeline.video_id(tok))
        state = initial_state(config, plain, mesh)
        before = jax.tree.map(np.array, state)  # a copy: the step takes the state's memory
        step = compiled_step(model, optim_config, mesh, microbatches, weighting, loss_chunk)
        after, metrics = step(state, batch, np.float32(1))
        return before, jax.device_get(after), {k: float(v) for k, v in metrics.items()}

    return run


# Groups.


def test_the_first_full_match_gives_the_rate():
    config = OptimConfig((("llm/a", 1.0), ("llm/.*", 2.0), (".*", 0.0)))
    rates = optim.peak_rates(["llm/a", "llm/a/b", "vision/llm/a"], config)
    assert rates == {"llm/a": 1.0, "llm/a/b": 2.0, "vision/llm/a": 0.0}


def test_a_parameter_that_no_pattern_covers_is_named():
    config = OptimConfig((("vision/.*", 1.0), ("llm", 1.0)))
    with pytest.raises(ConfigError, match=r"optim\.learning_rates: no pattern covers .* llm/a$"):
        optim.split({"vision": {"b": 1}, "llm": {"a": 1}}, config)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ConfigError, match=r"optim\.learning_rates: every parameter is frozen"):
        optim.split({"llm": {"a": 1}}, OptimConfig(((".*", 0.0),)))


def test_split_and_merge_are_inverse():
    params = {"vision": {"a": {"b": 1}, "c": 2}, "llm": {"a": 3}}
    trainable, frozen = optim.split(params, OptimConfig((("vision/a/.*", 1.0), (".*", 0.0))))
    assert (trainable, frozen) == ({"vision/a/b": 1}, {"vision/c": 2, "llm/a": 3})
    assert optim.merge(trainable, frozen) == params


def test_each_group_moves_by_its_own_rate(one_step):
    before, after, _ = one_step(GROUPS)
    assert not after.frozen
    assert after.step == 1
    moved = {p: np.abs(after.trainable[p] - x).max() for p, x in before.trainable.items()}
    # Adam's first step is the rate, up or down, wherever there is a gradient.
    for part, rate in (("vision", 1e-3), ("projector", 5e-3), ("llm", 5e-3)):
        largest = max(m for p, m in moved.items() if p.startswith(part))
        assert largest == pytest.approx(rate, rel=2e-3)


def test_frozen_parts_stay_as_they_are_and_have_no_optimiser_state(one_step):
    before, after, _ = one_step(FROZEN)
    assert {p.split("/")[0] for p in before.frozen} == {"llm"}
    for path, x in before.frozen.items():
        np.testing.assert_array_equal(after.frozen[path], x)
    assert any((after.trainable[p] != x).any() for p, x in before.trainable.items())
    paths = [
        jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(after.opt_state)
    ]
    assert not any("llm" in path for path in paths)
    assert sum("projector" in path for path in paths) == 2 * 4  # both moments


def test_every_group_has_its_norm(one_step):
    first, second = (f"grad_norm/{pattern}" for pattern, _ in GROUPS.learning_rates)
    metrics = one_step(GROUPS)[2]
    assert metrics[first] > 0
    assert math.hypot(metrics[first], metrics[second]) == pytest.approx(metrics["grad_norm"])
    frozen = one_step(FROZEN)[2]
    assert [name for name in frozen if name.startswith("grad_norm/")] == ["grad_norm/.*"]
    assert frozen["grad_norm/.*"] == pytest.approx(frozen["grad_norm"])


@pytest.mark.slow(reason="compiles a train step twice")
def test_the_first_moment_may_be_bfloat16(one_step):
    halved = dataclasses.replace(GROUPS, mu_dtype="bfloat16")
    (_, after, _), (_, exact, _) = one_step(halved), one_step(GROUPS)
    adam = after.opt_state[1]
    assert {x.dtype for x in adam.mu.values()} == {jnp.dtype("bfloat16")}
    for tree in (adam.nu, after.trainable):
        assert {x.dtype for x in tree.values()} == {jnp.dtype("float32")}
    for path, x in exact.opt_state[1].mu.items():
        np.testing.assert_allclose(adam.mu[path].astype(np.float32), x, rtol=2**-8, atol=1e-9)
    for path, x in exact.trainable.items():
        np.testing.assert_allclose(after.trainable[path], x, rtol=0, atol=5e-3 / 100)


@pytest.mark.slow(reason="compiles a train step twice")
def test_the_norm_counts_trained_parameters_only(one_step):
    before, after, metrics = one_step(LINEAR)
    squares = {}
    for path, x in before.trainable.items():
        step = (x - after.trainable[path]).astype(np.float64)
        squares[path] = ((step / (1 - abs(step))) ** 2).sum()
    assert metrics["grad_norm"] == pytest.approx(math.sqrt(sum(squares.values())), rel=1e-3)
    others = math.sqrt(sum(s for path, s in squares.items() if not path.startswith("llm")))
    assert others < 0.9 * metrics["grad_norm"]
    assert one_step(FROZEN)[2]["grad_norm"] == pytest.approx(others, rel=1e-3)


def adamw_by_hand(params, all_grads, rates, c: OptimConfig):
    params = {p: x.astype(np.float64) for p, x in params.items()}
    m, v = ({p: np.zeros_like(x) for p, x in params.items()} for _ in range(2))
    for t, grads in enumerate(all_grads, 1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        for p, g in grads.items():
            g = g * min(1, c.clip_norm / norm)
            m[p] = c.b1 * m[p] + (1 - c.b1) * g
            v[p] = c.b2 * v[p] + (1 - c.b2) * g**2
            direction = (m[p] / (1 - c.b1**t)) / (np.sqrt(v[p] / (1 - c.b2**t)) + c.eps)
            params[p] = params[p] - rates[p] * (direction + c.weight_decay * params[p])
    return params


@pytest.mark.parametrize(("clip_norm", "weight_decay"), [(1.0, 0.0), (0.2, 0.1)])
def test_clipped_adamw_by_hand(clip_norm, weight_decay):
    rng = np.random.default_rng(0)
    config = OptimConfig(GROUPS.learning_rates, weight_decay=weight_decay, clip_norm=clip_norm)
    rates = {"vision/a": 1e-3, "llm/b": 5e-3}
    start = {p: rng.normal(size=4).astype(np.float32) for p in rates}
    # Norms below, above and far above the limit.
    grads = [
        {p: (rng.normal(size=4) * scale).astype(np.float32) for p in rates}
        for scale in (0.01, 1, 100, 0.1)
    ]
    tx = optim.make(config, start)
    params, state, update = start, jax.jit(tx.init)(start), jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = {p: params[p] + np.asarray(updates[p]) for p in params}
    for p, x in adamw_by_hand(start, grads, rates, config).items():
        np.testing.assert_allclose(params[p], x, rtol=1e-5)


# Schedule.


@pytest.mark.parametrize("num_steps", [1, 7, 33, 34, 100, 5000])
def test_warm_up_ends_at_the_peak_and_decay_at_zero(num_steps):
    share = [optim.cosine_with_warmup(s, num_steps, 0.03) for s in range(num_steps + 1)]
    warm = math.ceil(0.03 * num_steps)
    assert share[0] == 0
    assert share[warm] == (1 if warm < num_steps else pytest.approx(1))
    assert share[: warm + 1] == sorted(share[: warm + 1])
    assert share[warm:] == sorted(share[warm:], reverse=True)
    if num_steps > 1:
        assert share[-1] == pytest.approx(0, abs=1e-12)


def test_the_schedule_by_hand():
    share = [optim.cosine_with_warmup(s, 10, 0.2) for s in range(11)]
    cosine = [1, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0]
    assert share == pytest.approx([0, 0.5, *cosine], abs=1e-6)
    assert optim.cosine_with_warmup(0, 10, 0.0) == 1


# Loss.


def test_weighting_by_hand():
    # Two examples over a vocabulary of two: probabilities 3/4 and 1/4 at every position.
    logits = jnp.broadcast_to(jnp.log(jnp.array([3.0, 1.0])), (2, 3, 2))
    targets = jnp.array([[0, 0, 1], [1, 0, 0]])
    weights = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    likely, unlikely = -math.log(0.75), -math.log(0.25)
    total, weight = weigh(token_losses(logits, targets), weights, "token")
    assert float(weight) == 4
    assert float(total) == pytest.approx(2 * likely + 2 * unlikely, rel=1e-6)
    total, weight = weigh(token_losses(logits, targets), weights, "sample")
    assert float(weight) == 2
    assert float(total) == pytest.approx((2 * likely + unlikely) / 3 + unlikely, rel=1e-6)


def test_an_example_without_weight_counts_nothing():
    logits = jnp.zeros((2, 3, 2))
    weights = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    total, weight = weigh(token_losses(logits, jnp.zeros((2, 3), jnp.int32)), weights, "sample")
    assert (float(total), float(weight)) == (pytest.approx(math.log(2)), 1)


@pytest.mark.parametrize(
    ("microbatches", "chunks"),
    [
        (4, (7, "model.frame_chunk=1", "model.remat=chunks")),
        *(
            pytest.param(*case, marks=pytest.mark.slow(reason="compiles a train step"))
            for case in ((2, ()), (4, ()), (1, (40,)))
        ),
    ],
)
def test_splitting_a_batch_changes_nothing_but_rounding(one_step, microbatches, chunks):
    """Compare the first moments after one step, which are the clipped gradients times 0.1."""
    _, whole, metrics = one_step(GROUPS)
    expected = whole.opt_state[1].mu
    size = math.sqrt(sum((g**2).sum() for g in expected.values()))
    assert size > 0.01
    _, after, split_metrics = one_step(GROUPS, microbatches, "token", *(chunks or (0,)))
    assert split_metrics == pytest.approx(metrics, rel=2e-6)
    found = after.opt_state[1].mu
    for path, x in expected.items():
        np.testing.assert_allclose(found[path], x, atol=2e-6 * size, err_msg=path)


@pytest.mark.slow(reason="compiles a train step twice")
def test_token_and_sample_weighting_differ(one_step, batch):
    losses = [one_step(LINEAR, 1, weighting)[2]["loss"] for weighting in ("token", "sample")]
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 11])
def test_losses_in_chunks_are_those_at_once(chunk):
    """Use 10 positions, which 3 and 4 do not divide."""
    rng = np.random.default_rng(0)
    states, head = rng.normal(size=(2, 10, 8)), rng.normal(size=(8, 30))
    ids = rng.integers(0, 30, (2, 10))

    def total(states, head):
        nll = chunked_losses(lambda x: x @ head, states, ids, chunk)
        return (nll**2).sum(), nll

    (_, nll), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(states, head)
    np.testing.assert_allclose(nll, token_losses(states @ head, ids), rtol=1e-5)
    whole = jax.grad(lambda x, w: (token_losses(x @ w, ids) ** 2).sum(), (0, 1))(states, head)
    for found, expected in zip(grads, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_no_more_logits_than_a_chunk_are_in_memory():
    states, ids = jax.ShapeDtypeStruct((2, 256, 8), "f4"), jax.ShapeDtypeStruct((2, 256), "i4")
    head = jax.ShapeDtypeStruct((8, 5000), "f4")

    def memory(chunk):
        def total(states, head, ids):
            return chunked_losses(lambda x: x @ head, states, ids, chunk).sum()

        compiled = jax.jit(jax.grad(total, (0, 1))).lower(states, head, ids).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 2 * 256 * 5000 * 4
    assert memory(0) > whole
    assert memory(4) < whole / 8


# Steps that are skipped.


class Trainer:
    """A train state with its compiled step."""

    def __init__(self, stage, tok, config):
        self.config = stage(optim=config)
        model, mesh = vlm.build(self.config.model, pipeline.video_id(tok)), make_mesh(())
        self.state = initial_state(self.config, model, mesh)
        self._step = compiled_step(model, config, mesh, 2, "token", 0)

    def __call__(self, batch):
        """Run a step; return (metrics, state before, state after)."""
        before = jax.device_get(self.state)
        self.state, metrics = self._step(self.state, batch, np.float32(1))
        return {k: x.item() for k, x in metrics.items()}, before, jax.device_get(self.state)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.parametrize(
    "bad",
    [math.nan, pytest.param(math.inf, marks=pytest.mark.slow(reason="compiles a step again"))],
)
def test_a_step_with_a_loss_that_is_not_finite_is_skipped(stage, tok, batch, bad):
    """Later steps give the same results as without the skipped ones."""
    weight = batch.target_weight_BM.copy()
    weight[3, 0] = bad
    poisoned = batch._replace(target_weight_BM=weight)
    skipping, plain = Trainer(stage, tok, GROUPS), Trainer(stage, tok, GROUPS)
    for step, next_batch in enumerate((batch, poisoned, poisoned, batch), 1):
        metrics, before, after = skipping(next_batch)
        wrong = next_batch is poisoned
        assert metrics["skipped"] == wrong
        assert metrics["skips_in_row"] == after.skips_in_row == (step - 1 if wrong else 0)
        assert after.step == step
        changes = ("trainable", "opt_state", "loss_mean")
        assert [same(getattr(before, f), getattr(after, f)) for f in changes] == [wrong] * 3
    for _ in range(2):
        expected, *_ = plain(batch)
    assert metrics == expected
    assert same(skipping.state.trainable, plain.state.trainable)
    assert same(skipping.state.opt_state, plain.state.opt_state)


@pytest.mark.slow(reason="compiles several programs")
def test_spikes_are_skipped_when_asked(stage, tok, batch):
    small = OptimConfig(((".*", 1e-4),), spike_factor=1.05)
    trainer = Trainer(stage, tok, small)
    first, *_ = trainer(batch)  # nothing to compare with yet
    assert (first["skipped"], first["loss_mean"]) == (0, first["loss"])
    trainer.state = trainer.state._replace(loss_mean=np.float32(first["loss"] / 1.1))
    found, before, after = trainer(batch)
    assert found["loss"] > 1.05 * found["loss_mean"]
    assert (found["skipped"], found["skips_in_row"]) == (1, 1)
    assert same(before.trainable, after.trainable)
    trainer.state = trainer.state._replace(loss_mean=np.float32(first["loss"] / 1.02))
    found, before, after = trainer(batch)
    assert (found["skipped"], found["skips_in_row"]) == (0, 0)
    assert not same(before.trainable, after.trainable)
    mean = 0.95 * before.loss_mean + 0.05 * found["loss"]
    assert after.loss_mean == pytest.approx(mean, rel=1e-6)
    careless = Trainer(stage, tok, GROUPS)  # as the test above compiles it
    careless.state = careless.state._replace(loss_mean=np.float32(1e-3))
    assert careless(batch)[0]["skipped"] == 0


# Metrics.


def test_lines_after_a_step_and_broken_ones_are_dropped(tmp_path):
    file = tmp_path / "deep" / "metrics.jsonl"
    log = JsonlWriter(file)
    for step in (1, 2, 3):
        log.write(step=step, loss=0.5)
    log.close()
    file.write_text(file.read_text() + '{"loss": 1}\n{"step": 2, "lo')
    log = JsonlWriter(file, after_step=2)
    log.write(step=3, loss=0.25)
    log.close()
    expected = ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.5}', '{"step": 3, "loss": 0.25}']
    assert file.read_text().splitlines() == expected


def test_every_line_is_on_disk_at_once(tmp_path):
    log = JsonlWriter(tmp_path / "metrics.jsonl")
    log.write(step=1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    log.close()


class Stream:
    def __init__(self, terminal):
        self.terminal, self.text = terminal, ""

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_is_shown_on_a_terminal_and_quiet_in_a_log():
    shown = {}
    for terminal in (True, False):
        stream = Stream(terminal)
        progress = Progress("run", 10, stream=stream)
        progress.update(4)
        progress.update(10, "loss 0.5")
        progress.close()
        shown[terminal] = stream.text
    assert shown[False] == ""
    assert "run 10/10" in shown[True]
    assert "examples/s · loss 0.5 · 0 s left" in shown[True]
    assert shown[True].endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_readable(seconds, text):
    assert duration(seconds) == text
