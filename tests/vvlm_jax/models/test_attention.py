"""Attention kernels: the one chosen for a platform, its results, and its saved activations.

No test here runs on a GPU or TPU. Programs are lowered for them, cuDNN's behind a stand-in for its
version number; the splash kernel is emulated.
"""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vvlm_jax.config import LlamaConfig, VisionConfig
from vvlm_jax.models import attention
from vvlm_jax.models.attention import attend, causal_mask, self_attend, splash_attend
from vvlm_jax.models.llama import Llama
from vvlm_jax.models.sovit import SoViT
from vvlm_jax.sharding import AXES

CUDNN, CUDNN_BACKWARD, SPLASH = (
    "__cudnn$fmhaSoftmax",
    "__cudnn$fmhaSoftmaxBackward",
    "tpu_custom_call",
)
LLAMA = LlamaConfig(
    vocab=32, width=32, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=16,
    tie_embeddings=True,
)  # fmt: skip
# Sizes of So400m/14-384: 729 patches, heads of 72.
VISION = VisionConfig(width=144, depth=3, mlp_dim=64, num_heads=2, patch_size=2, image_size=54)


@pytest.fixture
def cudnn(monkeypatch):
    """Make jax believe that its CUDA plugin is installed."""
    from jax._src.cudnn import fused_attention_stablehlo

    version = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)
    monkeypatch.setattr(attention, "_has_libtpu", lambda: True)


def random(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def qkv(L, N, K, H, B=2, dtype=np.float32):
    heads = (N, K, K)
    return [random(i, B, L, n, H, dtype=dtype) for i, n in enumerate(heads)]


def llama_program(platform, L=300, dtype=jnp.bfloat16, **options):
    """Return the StableHLO of a causal decoder's loss and gradient."""
    model = Llama(LLAMA, dtype, **options)
    x_BLD = jax.ShapeDtypeStruct((2, L, LLAMA.width), dtype)
    params = jax.eval_shape(model.init, jax.random.key(0), x_BLD)

    def loss(params, x_BLD):
        return model.apply(params, x_BLD)[0].astype(jnp.float32).sum()

    return lowered(jax.grad(loss), platform, params, x_BLD)


def vision_program(platform):
    model = SoViT(VISION)
    pixels = jax.ShapeDtypeStruct((2, 54, 54, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)

    def loss(params, pixels):
        return model.apply(params, pixels).astype(jnp.float32).sum()

    return lowered(jax.grad(loss), platform, params, pixels)


def lowered(function, platform, *args):
    allowed = [CUDNN, CUDNN_BACKWARD, SPLASH, "CustomSPMDPartitioning"]
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in allowed]
    exported = jax.export.export(jax.jit(function), platforms=[platform], disabled_checks=checks)
    return exported(*args).mlir_module()


def kernels(program):
    return set(re.findall(r"custom_call @([\w$.]+)", program)) & {CUDNN, CUDNN_BACKWARD, SPLASH}


# Which kernel.


def test_beside_cudnn_no_branch_is_for_tpus_that_nothing_here_compiles_for(cudnn, monkeypatch):
    monkeypatch.setattr(attention, "_has_libtpu", lambda: False)
    assert kernels(llama_program("tpu")) == set()
    assert kernels(llama_program("cuda")) == {CUDNN, CUDNN_BACKWARD}


@pytest.mark.parametrize("program", [llama_program, vision_program])
@pytest.mark.parametrize(
    ("platform", "expected"),
    [("cuda", {CUDNN, CUDNN_BACKWARD}), ("tpu", {SPLASH}), ("cpu", set()), ("rocm", set())],
)
def test_the_platform_decides(cudnn, program, platform, expected):
    text = program(platform)
    assert kernels(text) == expected
    softmax = re.search(r"stablehlo.exponential.*xf32>", text)  # the reference's; SiLU's is bf16
    assert bool(softmax) == (not expected)


@pytest.mark.parametrize(
    "options", [dict(dtype=jnp.float32), dict(L=255), dict(backend="reference")]
)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_float32_short_sequences_and_who_asks_get_the_reference(cudnn, platform, options):
    assert kernels(llama_program(platform, **options)) == set()


def test_without_cudnn_there_is_the_reference():
    if attention._has_cudnn(*qkv(300, 4, 2, 16, dtype=jnp.bfloat16)):
        pytest.skip("jax's CUDA plugin is installed here")
    assert kernels(llama_program("cuda")) == set()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("L", [300, 729])
def test_cudnn_takes_even_and_odd_lengths(cudnn, causal, L):
    x = qkv(L, 2, 1, 16, dtype=jnp.bfloat16)

    def loss(*x):
        return self_attend(*x, causal=causal).astype(jnp.float32).sum()

    text = lowered(jax.grad(loss, argnums=(0, 1, 2)), "cuda", *x)
    found = set(re.findall(r"\\22mask_type\\22: \\22(\w+)\\22", text))
    padded = "PADDING" if L % 2 else "NO_MASK"
    assert found == {"CAUSAL" if causal else padded}


@pytest.mark.parametrize("causal", [True, False])
def test_heads_that_cudnn_refuses_get_the_reference(cudnn, causal):
    for H, taken in ((64, True), (72, True), (128, True), (12, False), (256, False)):
        q, k, v = qkv(256, 2, 2, H, dtype=jnp.bfloat16)
        text = lowered(lambda *x: self_attend(*x, causal=causal), "cuda", q, k, v)
        assert bool(kernels(text)) == taken


def test_the_branches_of_other_platforms_cost_no_memory(monkeypatch):
    """Without remat, no array of the size of the scores is saved for the backward pass."""

    def cheap(q, k, v):
        return q * jnp.repeat(k * v, q.shape[2] // k.shape[2], axis=2)

    choose = jax.lax.platform_dependent
    monkeypatch.setattr(
        jax.lax,
        "platform_dependent",
        lambda *x, default, tpu: choose(*x, default=default, cpu=cheap),
    )
    L, model = 1024, Llama(LLAMA)
    x_BLD = jax.ShapeDtypeStruct((1, L, LLAMA.width), jnp.bfloat16)
    params = jax.eval_shape(model.init, jax.random.key(0), x_BLD)
    grad = jax.grad(lambda p, x: model.apply(p, x)[0].astype(jnp.float32).sum())
    compiled = jax.jit(grad).lower(params, x_BLD).compile().as_text()
    assert f"{L},{L}]" not in compiled


# What it computes.


@pytest.mark.parametrize(
    ("causal", "L", "N", "K", "H"),
    [(True, 300, 4, 2, 16), (False, 200, 2, 2, 9)],
)
def test_splash_equals_the_reference(causal, L, N, K, H):
    mask = causal_mask(L) if causal else None
    x, weight = qkv(L, N, K, H, B=1), random(9, 1, L, N, H)

    def run(function):
        def loss(*x):
            out = function(*x)
            return (out * weight).sum(), out

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*x)

    ours = run(lambda *x: splash_attend(*x, causal=causal, interpret=True))
    theirs = run(lambda *x: attend(*x, mask))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_splash_in_bfloat16_is_the_reference_within_its_rounding():
    x = qkv(300, 4, 2, 16, dtype=jnp.bfloat16)
    exact = attend(*(y.astype(jnp.float32) for y in x), causal_mask(300))
    ours = splash_attend(*x, causal=True, interpret=True)
    assert ours.dtype == jnp.bfloat16
    of_reference = np.abs(attend(*x, causal_mask(300)).astype(jnp.float32) - exact).max()
    assert np.abs(ours.astype(jnp.float32) - exact).max() < 2 * of_reference + 1e-3


def test_ragged_rows_do_not_see_their_padding():
    """Values to the right of a row's end do not change results before it."""
    lengths, (q, k, v) = (300, 170), qkv(300, 2, 1, 8)
    other = [random(i + 20, *x.shape) for i, x in enumerate((q, k, v))]
    real = (np.arange(300)[None] < np.array(lengths)[:, None])[..., None, None]
    full, filled = (
        np.asarray(splash_attend(*x, causal=True, interpret=True))
        for x in ((q, k, v), [jnp.where(real, a, b) for a, b in zip((q, k, v), other, strict=True)])
    )
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(full[row, :length], filled[row, :length])
        alone = [x[row : row + 1, :length] for x in (q, k, v)]
        expected = attend(*alone, causal_mask(length))[0]
        np.testing.assert_allclose(filled[row, :length], expected, atol=1e-5)


# On a mesh.


@pytest.mark.parametrize(
    ("B", "N", "K", "spec"),
    [
        (8, 4, 2, (("data", "fsdp"), None, "tensor", None)),
        (8, 4, 1, (("data", "fsdp"), None, None, None)),
        (2, 4, 2, (None, None, "tensor", None)),
    ],
)
def test_rows_and_heads_are_split_where_they_divide(B, N, K, spec):
    mesh = AbstractMesh((2, 2, 2), AXES[1:])
    assert attention._spec(mesh, B, N, K) == PartitionSpec(*spec)


def test_under_a_mesh_each_device_runs_the_kernel_on_its_share():
    mesh = AbstractMesh((2, 2, 2), AXES[1:], axis_types=(AxisType.Auto,) * 3)  # as `make_mesh` has
    q, k, v = qkv(256, 4, 2, 16, B=8, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(mesh):
        program = str(jax.make_jaxpr(lambda *x: splash_attend(*x, causal=True))(q, k, v))
    assert "shard_map" in program
    assert "bf16[2,2,256,16]" in program  # 8 / 4 rows, 4 / 2 heads
