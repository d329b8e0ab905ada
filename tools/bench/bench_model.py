"""Prefill and decode beside transformers in torch: same config, weights, dtype and threads.

Example:
    python -m tools.bench.bench_model --quick

A language model of random weights reads a batch of prompts and writes greedy replies. Both sides
are measured in turn, so that a busy machine slows both; the bar is 1.0 for both ratios. The shares
say how near each side comes to what the machine does at best, measured in the same run: prefill
against a large matrix product, decode (weights and cache read once a step) against copying memory.

On a GPU the published sizes at the paper's centre point (32 frames x 196 tokens, and a question):
    python -m tools.bench.bench_model --device gpu --llm llama3.2-1b --dtype bfloat16 \\
        --prompt 6312 --batch 8 --new 256
There transformers runs eagerly, and compiled with SDPA and a static cache; the bars are 1.3 and 1.0
times these, 65% of the matrix product's rate in prefill, 70% of the copy's in decode. It takes jax
with CUDA, flax, torch, transformers and tokenizers; on a machine that has no more than these:
    python -c "from tools.bench import bench_model as b; b.main(b.Args(device='gpu',
        llm='llama3.1-8b', dtype='bfloat16', prompt=6312, batch=8, new=256))"
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tools.common import die_in_one_line
from vvlm_jax.config import ConfigError, LlamaConfig, VisionConfig
from vvlm_jax.config_check import choose
from vvlm_jax.flops import llm_flops, llm_params

_VISION = VisionConfig(width=16, depth=2, mlp_dim=16, num_heads=2, patch_size=4, image_size=8)
"""Not run: a whole model needs one."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_model`."""

    device: str = "cpu"
    """`cpu` or `gpu`, of both sides."""
    llm: str | None = None
    """A published size in place of width, depth and vocab (`vvlm_jax/models/variants.py`)."""
    width: int = 512
    """Heads are 64 wide, four to a key-value head; the feed-forward is four times as wide."""
    depth: int = 8
    vocab: int = 8192
    dtype: str = "float32"
    """Of weights, cache and products: float32 or bfloat16."""
    batch: int = 4
    prompt: int = 512
    """Tokens of each prompt."""
    new: int = 64
    """Tokens of each reply."""
    repeats: int = 3
    """The median of so many counts, after one that warms up."""
    threads: int = 0
    """CPU threads of each side; 0 takes all."""
    quick: bool = False
    """2 layers of 128, prompts of 64, replies of 16, one count."""


class Side(NamedTuple):
    """One implementation, compiled, with its weights."""

    name: str
    prefill: Callable
    """() → what `decode` goes on from, when the first token is there."""
    decode: Callable
    """(that) → the replies, int [batch, new]."""


def main(args: Args) -> None:
    """Print a table, and whether both sides wrote the same tokens."""
    if args.quick:
        args = dataclasses.replace(args, depth=2, width=128, prompt=64, new=16, repeats=1)
    check(args)
    if args.threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs memory too
    os.environ["JAX_PLATFORMS"] = {"cpu": "cpu", "gpu": "cuda"}[args.device]
    from vvlm_jax.models.variants import LLAMA

    config = choose(LLAMA, args.llm, "llm") if args.llm else small(args)
    compare(args, config)


def check(args: Args) -> None:
    """Raise ConfigError for options that cannot work."""
    for name, known in (("device", ("cpu", "gpu")), ("dtype", ("float32", "bfloat16"))):
        choose(dict.fromkeys(known, True), getattr(args, name), name)
    for name, least in (("width", 64), ("depth", 1), ("batch", 1), ("prompt", 1), ("new", 2),
                        ("repeats", 1), ("threads", 0)):  # fmt: skip
        if getattr(args, name) < least:
            raise ConfigError(f"{name} = {getattr(args, name)}: must be at least {least}")
    if args.width % 64:
        raise ConfigError(f"width = {args.width}: must be a multiple of 64, the size of a head")


def small(args: Args) -> LlamaConfig:
    """Return the config of a Llama of the requested width and depth."""
    heads = args.width // 64
    return LlamaConfig(
        vocab=args.vocab, width=args.width, depth=args.depth, mlp_dim=4 * args.width,
        num_heads=heads, num_kv_heads=heads // 4 if heads % 4 == 0 else heads, head_dim=64,
        tie_embeddings=True,
    )  # fmt: skip


def compare(args: Args, config: LlamaConfig) -> None:
    """Measure all sides alternately and print the results."""
    import jax
    import torch

    from fitting import formatting

    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    params = weights(config, args.dtype)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (args.batch, args.prompt))
    tokens = tokens.astype(np.int32)
    sides = [ours(config, params, tokens, args), *theirs(config, params, tokens, args)]
    replies = [side.decode(side.prefill()) for side in sides]  # compiles, warms up
    seconds = np.array([[timed(side) for side in sides] for _ in range(args.repeats)])
    prefill, decode = np.median(seconds, axis=0).T
    matmul, copy = machine_rates(args.dtype)
    flops = args.batch * llm_flops(config, args.prompt)
    traffic = (args.new - 1) * step_bytes(config, args)
    read, written = args.batch * args.prompt, args.batch * (args.new - 1)
    print(
        f"{llm_params(config) / 1e6:,.0f}M parameters without input embedding, {args.dtype}, "
        f"{args.batch} x {args.prompt} tokens read, {args.new} written; jax {jax.__version__}, "
        f"torch {torch.__version__}; {jax.local_devices()[0].device_kind}, "
        f"{torch.get_num_threads()} threads; median of {args.repeats}, in turn\n"
        f"measured: matrix product {matmul / 1e12:.3g} TFLOP/s, memory copy {copy / 1e9:.3g} GB/s"
    )
    rows = [
        (
            side.name,
            f"{read / p:,.0f}",
            f"{flops / p / matmul:.0%}",
            f"{p / prefill[0]:.2f}",
            f"{written / d:,.1f}",
            f"{traffic / d / copy:.0%}",
            f"{d / decode[0]:.2f}",
        )
        for side, p, d in zip(sides, prefill, decode, strict=True)
    ]
    header = ("", "prefill tokens/s", "of product", "ours / it", "decode tokens/s", "of copy",
              "ours / it")  # fmt: skip
    print(formatting.aligned(header, rows))
    for side, reply in zip(sides[1:], replies[1:], strict=True):
        same = (reply == replies[0]).mean()
        print(f"tokens equal to ours, {side.name}: {same:.1%}")


def timed(side: Side) -> tuple[float, float]:
    """Return the seconds of prefill and of decoding."""
    start = time.perf_counter()
    begun = side.prefill()
    middle = time.perf_counter()
    side.decode(begun)
    return middle - start, time.perf_counter() - middle


def step_bytes(config: LlamaConfig, args: Args) -> float:
    """Return the bytes that a decode step must read: all weights but the input embedding, once, and
    the filled cache (of the middle step).
    """
    head = config.vocab * config.width if config.tie_embeddings else 0
    filled = args.prompt + args.new / 2
    cache = 2 * config.depth * args.batch * filled * config.num_kv_heads * config.head_dim
    # A tied head is not in llm_params, but it is read.
    return (llm_params(config) + head + cache) * (2 if args.dtype == "bfloat16" else 4)


def machine_rates(dtype: str) -> tuple[float, float]:
    """Return (FLOP/s of a large matrix product, bytes/s of a copy), best of 5."""
    import jax
    import jax.numpy as jnp

    gpu = jax.default_backend() != "cpu"
    n, length = (8192, 2**28) if gpu else (2048, 2**25)
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)  # ones would let a GPU clock higher
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    x = jnp.zeros(length, jnp.float32)
    return 2 * n**3 / best(lambda: product(a)), 2 * x.nbytes / best(lambda: copy(x))


def best(run: Callable) -> float:
    """Return the least seconds of 5 calls, after one that compiles."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def weights(config: LlamaConfig, dtype: str) -> dict:
    """Return random parameters of the language model as generation takes them.

    Each layer has arrays of its own, in the dtype of the matrix products.
    """
    import jax
    import jax.numpy as jnp

    from vvlm_jax.generate.placement import laid_apart
    from vvlm_jax.models import vlm

    def draw(path, x, key):
        if path[-1].key == "scale":
            return jnp.ones(x.shape, jnp.float32)
        return jax.random.normal(key, x.shape, dtype) * jnp.asarray(config.width**-0.5, dtype)

    shapes, tree = jax.tree.flatten_with_path(vlm.shapes(_model(config, dtype))["llm"])
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [draw(path, x, key) for (path, x), key in zip(shapes, keys, strict=True)]
    return laid_apart({"llm": jax.tree.unflatten(tree, leaves)})["llm"]


def _model(config: LlamaConfig, dtype: str):
    import jax.numpy as jnp

    from vvlm_jax.models.vlm import VLM

    return VLM(_VISION, config, 1, config.vocab, jnp.dtype(dtype))


def ours(config: LlamaConfig, params, tokens, args: Args) -> Side:
    """Return the programs of `vvlm_jax.generate`."""
    import jax
    import jax.numpy as jnp

    from vvlm_jax.generate.generate import programs

    run = programs(_model(config, args.dtype), (config.vocab,))  # a stop id that never comes
    params, lengths = {"llm": params}, np.full(len(tokens), args.prompt, np.int32)
    nothing = jnp.zeros((len(tokens), 0, 1), args.dtype)

    def prefill():
        return jax.block_until_ready(run.begin(params, tokens, lengths, nothing, args.new))

    def decode(replies):
        return np.asarray(run.go_on(params, replies, np.int32(args.new)).out_BM)

    return Side("vvlm_jax", prefill, decode)


def theirs(config: LlamaConfig, params, tokens, args: Args) -> list[Side]:
    """Return transformers' Llama: SDPA on a CPU; eager and compiled with SDPA on a GPU."""
    import torch

    device = {"cpu": "cpu", "gpu": "cuda"}[args.device]
    tokens = torch.from_numpy(tokens).long().to(device)
    if args.device == "cpu":
        return [torch_side("transformers, sdpa", llama(config, params, "sdpa"), tokens, args)]
    eager = torch_side("transformers, eager", llama(config, params, "eager"), tokens, args)
    model = llama(config, params, "sdpa")
    model.forward = torch.compile(model.forward)
    return [eager, torch_side("transformers, compiled sdpa", model, tokens, args, static=True)]


def torch_side(name: str, model, tokens, args: Args, static: bool = False) -> Side:
    """Return a torch model's loop of greedy steps, without `generate` around it."""
    import torch
    from transformers import StaticCache

    def wait():
        if args.device == "gpu":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def prefill():
        length = args.prompt + args.new
        cache = StaticCache(config=model.config, max_cache_len=length) if static else None
        out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        first = out.logits[:, -1].argmax(-1, keepdim=True)
        wait()
        return first, out.past_key_values

    @torch.inference_mode()
    def decode(begun):
        token, cache = begun
        reply = [token]
        for _ in range(args.new - 1):
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            reply.append(token)
        wait()
        return torch.cat(reply, 1).cpu().numpy()

    return Side(name, prefill, decode)


def llama(config: LlamaConfig, params, attention: str = "sdpa"):
    """Return transformers' LlamaForCausalLM with our parameters `llm/…`, without copies."""
    import torch
    import transformers

    from vvlm_jax.models.llama import layer_name, unstack_layers

    rope = dict(rope_type="default", rope_theta=config.rope_theta)
    if (s := config.rope_scaling) is not None:
        rope |= dict(
            rope_type="llama3", factor=s.factor, low_freq_factor=s.low_freq_factor,
            high_freq_factor=s.high_freq_factor,
            original_max_position_embeddings=s.original_max_position,
        )  # fmt: skip
    described = transformers.LlamaConfig(
        vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.mlp_dim,
        num_hidden_layers=config.depth, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
        tie_word_embeddings=config.tie_embeddings, rms_norm_eps=config.norm_eps,
        max_position_embeddings=config.max_position, rope_parameters=rope,
        attn_implementation=attention, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    to_torch, D, params = torch.from_dlpack, config.width, unstack_layers(params)
    tensors = {
        "model.embed_tokens.weight": to_torch(params["embed"]["embedding"]),
        "model.norm.weight": to_torch(params["norm"]["scale"]),
    }
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = to_torch(params["lm_head"]["kernel"]).T
    for i in range(config.depth):
        at, layer = f"model.layers.{i}.", params[layer_name(i)]
        for name, norm in (("input", "attn_norm"), ("post_attention", "mlp_norm")):
            tensors[f"{at}{name}_layernorm.weight"] = to_torch(layer[norm]["scale"])
        for name in "qkv":
            kernel = to_torch(layer["attn"][name]["kernel"])
            tensors[f"{at}self_attn.{name}_proj.weight"] = kernel.reshape(D, -1).T
        kernel = to_torch(layer["attn"]["o"]["kernel"])
        tensors[f"{at}self_attn.o_proj.weight"] = kernel.reshape(-1, D).T
        for name in ("gate", "up", "down"):
            tensors[f"{at}mlp.{name}_proj.weight"] = to_torch(layer["mlp"][name]["kernel"]).T
    embedding = tensors["model.embed_tokens.weight"]
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(embedding.dtype)
    try:
        with torch.device(embedding.device):
            model = transformers.LlamaForCausalLM(described)
    finally:
        torch.set_default_dtype(dtype)
    missing, unexpected = model.load_state_dict(
        {name: x.contiguous() for name, x in tensors.items()}, strict=False
    )
    tied = ["lm_head.weight"] if config.tie_embeddings else []
    if unexpected or missing not in ([], tied):
        raise ValueError(f"transformers' Llama lacks {missing}, does not know {unexpected}")
    return model.eval()


if __name__ == "__main__":
    from tools.arguments import read_options  # a bare GPU machine has no tyro

    die_in_one_line(lambda: main(read_options(Args, __doc__)))
