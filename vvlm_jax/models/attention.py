"""Scaled dot-product attention: a reference implementation and flash-attention kernels.

`attend` is the reference and takes any mask. `self_attend` computes causal or full self-attention
over whole sequences. For long half-precision sequences it uses cuDNN's flash attention on NVIDIA
GPUs and Pallas' splash attention on TPUs, chosen by the platform that the program is compiled for.
Neither kernel stores the L × L scores, which the reference keeps in float32 (5.9 GB a sequence at
L = 6,800 and 32 heads).
"""

import importlib.util
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec

from vvlm_jax.models.remat import CONTEXT, keep
from vvlm_jax.sharding import AXES

KERNELS_FROM = 256
"""Minimum sequence length for kernels; the scores of shorter sequences fit into memory."""
BLOCKS = (512, 256, 128)
"""Splash block lengths, preferred first; sequences are padded to a multiple of the last."""


def attend(q_BLNH, k_BSKH, v_BSKH, mask=None, heads_first: bool = False):
    """Compute softmax(q kᵀ / √H) v with grouped key-value heads.

    Args:
      q_BLNH: queries; N is a multiple of K.
      k_BSKH, v_BSKH: keys and values.
      mask: bool, broadcastable to [B, 1, 1, L, S]; False positions are never attended. None masks
      nothing.
      heads_first: keys and values are [B, K, S, H], the layout of `KVCache`.

    Returns:
      [B, L, N, H] in the dtype of `v`. Scores and softmax are float32.
    """
    B, L, N, H = q_BLNH.shape
    K, held = (k_BSKH.shape[1], "BKSH") if heads_first else (k_BSKH.shape[2], "BSKH")
    # The G query heads of a key-value head are folded into its rows: two plain batched products.
    q_BKMH = (q_BLNH * H**-0.5).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    q_BKMH = q_BKMH.reshape(B, K, N // K * L, H)
    scores = jnp.einsum(f"BKMH,{held}->BKMS", q_BKMH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGLS = scores.reshape(B, K, N // K, L, -1)
    if mask is not None:
        scores_BKGLS = jnp.where(mask, scores_BKGLS, jnp.finfo(jnp.float32).min)
    probs_BKGLS = jax.nn.softmax(scores_BKGLS, axis=-1).astype(v_BSKH.dtype)
    out_BKMH = jnp.einsum(f"BKMS,{held}->BKMH", probs_BKGLS.reshape(scores.shape), v_BSKH)
    out_BLKGH = out_BKMH.reshape(B, K, N // K, L, H).transpose(0, 3, 1, 2, 4)
    return out_BLKGH.reshape(B, L, N, H)


def causal_mask(length: int):
    """Return a bool mask [1, 1, 1, L, L] in which position i attends to every j ≤ i.

    Rows padded on the right need no other mask: no real token attends to padding.
    """
    return jnp.tril(jnp.ones((length, length), bool))[None, None, None]


def self_attend(q_BLNH, k_BLKH, v_BLKH, *, causal: bool, backend: str = "auto"):
    """Compute self-attention over a whole sequence.

    Args:
      q_BLNH, k_BLKH, v_BLKH: queries, keys and values of the same sequence.
      causal: position i attends to positions up to i, otherwise to all positions. Rows of different
        lengths must be padded on the right.
      backend: `reference`, or `auto`: a kernel where the platform has one, for bfloat16 or float16
        sequences of at least `KERNELS_FROM` positions. Float32 always uses the reference, because
        it serves exact comparisons.

    Returns:
      [B, L, N, H].

    On several TPUs a mesh must be set (`jax.set_mesh`), because each device runs its own kernel.
    """
    L, half = q_BLNH.shape[1], q_BLNH.dtype in (jnp.bfloat16, jnp.float16)

    def reference(q, k, v):
        return attend(q, k, v, causal_mask(L) if causal else None)

    if backend == "reference" or not half or L < KERNELS_FROM:
        return keep(reference(q_BLNH, k_BLKH, v_BLKH), CONTEXT)
    kernels = {"tpu": lambda q, k, v: splash_attend(q, k, v, causal=causal)}
    if _has_cudnn(q_BLNH, k_BLKH, v_BLKH):
        kernels["cuda"] = lambda q, k, v: _cudnn(q, k, v, causal)
        if not _has_libtpu():
            del kernels["tpu"]
    # Residuals are the union over branches: a program for a GPU holds zeros in place of what the
    # default branch saves. Recomputing the default's scores keeps that union small, and so does
    # leaving out the TPU branch where no TPU program can be compiled.
    default = jax.checkpoint(reference)
    return jax.lax.platform_dependent(q_BLNH, k_BLKH, v_BLKH, default=default, **kernels)


def _has_libtpu() -> bool:
    return importlib.util.find_spec("libtpu") is not None


def _cudnn(q_BLNH, k_BLKH, v_BLKH, causal):
    B, L, _, _ = q_BLNH.shape
    odd = L % 2  # jax raises an error for the gradient of odd lengths, such as SoViT's 729
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q_BLNH, k_BLKH, v_BLKH))
    # The causal mask already hides the position that was added.
    lengths_B = jnp.full(B, L, jnp.int32) if odd and not causal else None
    out_BLNH = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths_B, implementation="cudnn"
    )
    return out_BLNH[:, :L]


def _has_cudnn(q_BLNH, k_BLKH, v_BLKH) -> bool:
    """Return whether jax can trace cuDNN attention here, which needs its CUDA plugin."""
    if q_BLNH.shape[-1] % 8 or q_BLNH.shape[-1] > 128:
        return False  # only some GPUs support larger heads
    try:
        jax.eval_shape(lambda *x: _cudnn(*x, causal=True), q_BLNH, k_BLKH, v_BLKH)
    except RuntimeError:  # "cuDNN is not detected"
        return False
    return True


def splash_attend(q_BLNH, k_BLKH, v_BLKH, *, causal: bool, interpret: bool = False):
    """Compute self-attention with Pallas' splash kernel, block-sparse flash attention for TPUs.

    Shapes are those of `self_attend`. Under a mesh each device computes its own rows and heads.
    `interpret` emulates the kernel on any platform.
    """

    def run(q, k, v):
        return _splash_one_device(q, k, v, causal, interpret)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        spec = _spec(mesh, *q_BLNH.shape[::2], k_BLKH.shape[2])
        run = jax.shard_map(run, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)
    return run(q_BLNH, k_BLKH, v_BLKH)


def _spec(mesh, B, N, K) -> PartitionSpec:
    """Shard rows over the data-parallel axes and heads over `tensor`, where the sizes divide."""
    *rows, heads = (axis for axis in AXES if axis in mesh.shape)
    rows = tuple(rows) if B % math.prod(mesh.shape[a] for a in rows) == 0 else None
    size = mesh.shape[heads]
    return PartitionSpec(rows, None, heads if N % size == 0 == K % size else None, None)


def _splash_one_device(q_BLNH, k_BLKH, v_BLKH, causal, interpret):
    _, L, N, H = q_BLNH.shape
    padding = -L % BLOCKS[-1]
    padded = L + padding
    block = next(b for b in BLOCKS if padded % b == 0)
    sides = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    mask = (splash_mask.CausalMask if causal else splash_mask.FullMask)((padded, padded))
    kernel = splash.make_splash_mha(
        splash_mask.MultiHeadMask([mask] * N),
        block_sizes=splash.BlockSizes(**{f"block_{side}": block for side in sides}),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=CONTEXT,
        interpret=interpret,
    )

    def heads_first(x_BLNH):
        return jnp.pad(x_BLNH, ((0, 0), (0, padding), (0, 0), (0, 0))).transpose(0, 2, 1, 3)

    # Without a causal mask, padding is made a segment of its own, which real tokens do not attend.
    real_L = (jnp.arange(padded) < L).astype(jnp.int32)
    segments = splash.SegmentIds(real_L, real_L) if padding and not causal else None
    out_BNLH = jax.vmap(kernel, in_axes=(0, 0, 0, None))(
        heads_first(q_BLNH * H**-0.5), heads_first(k_BLKH), heads_first(v_BLKH), segments
    )
    return out_BNLH.transpose(0, 2, 1, 3)[:, :L]
