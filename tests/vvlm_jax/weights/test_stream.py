"""Streaming: in pieces, into any sharding and dtype, and without a second copy on the host.

The sharded and the large checkpoints are loaded in processes of their own: this very file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.config import LlamaConfig
from vvlm_jax.weights import files, huggingface, sources, stream
from vvlm_jax.weights.mapping import Info, Rule, expand

ROOT = Path(__file__).parents[3]
MIB = 2**20


class Arrays:
    """A reader of arrays, that notes how much it was asked for at once."""

    def __init__(self, arrays):
        self.arrays, self.most = arrays, 0
        self.infos = {k: Info(str(x.dtype), x.shape) for k, x in arrays.items()}

    def read(self, name, start, count):
        x = self.arrays[name].reshape(-1)[start : start + count].copy()
        self.most = max(self.most, x.nbytes)
        return x


SIZES = dict(D=6, F=8, N=4, H=2, P=9, V=10)
RULES = (
    Rule("q.{i}", "q", "(N H) D -> D N H"),
    Rule("o.{i}", "o", "D (N H) -> N H D"),
    Rule("in", "in_a", "(N H) D -> D N H", (0, 2)),
    Rule("in", "in_b", "(N H) D -> D N H", (1, 2)),
    Rule("pos", "pos", "P D -> 1 P D"),
    Rule("embed", "embed", "V D -> V D"),
    Rule("head", "head", "V D -> D V"),
    Rule("bias.{i}", "bias", "F -> F"),
)


def example(dtype=np.float32):
    """Return (entries, reader, what is expected): the layouts that models have."""
    entries = expand(RULES, SIZES, 3)
    rng = np.random.default_rng(0)
    arrays = {e.theirs: rng.standard_normal(e.their_shape).astype(dtype) for e in entries}
    heads = {k: arrays[k].reshape(-1, 4, 2, 6) for k in ("in", "q.0", "q.1", "q.2")}
    layers = range(3)
    expected = {
        "q": np.stack([heads[f"q.{i}"][0].transpose(2, 0, 1) for i in layers]),
        "o": np.stack([arrays[f"o.{i}"].reshape(6, 4, 2).transpose(1, 2, 0) for i in layers]),
        "in_a": heads["in"][0].transpose(2, 0, 1),
        "in_b": heads["in"][1].transpose(2, 0, 1),
        "pos": arrays["pos"][None],
        "embed": arrays["embed"],
        "head": arrays["head"].T,
        "bias": np.stack([arrays[f"bias.{i}"] for i in layers]),
    }
    return entries, Arrays(arrays), expected


@pytest.mark.light
@pytest.mark.parametrize("piece_bytes", [1, 60, 10**6])
@pytest.mark.parametrize("target", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pieces_of_any_size_make_the_same_parameters(monkeypatch, dtype, target, piece_bytes):
    monkeypatch.setattr(stream, "PIECE_BYTES", piece_bytes)
    entries, reader, expected = example(jnp.dtype(dtype))
    like = {k: jax.ShapeDtypeStruct(x.shape, target) for k, x in expected.items()}
    seen = []
    found = stream.fill(entries, like, reader, on_tensor=seen.append)
    assert seen == list(range(1, len(entries) + 1))
    for path, x in expected.items():
        assert found[path].dtype == target
        np.testing.assert_array_equal(found[path], x.astype(target), err_msg=path)
    rows = 4 * SIZES["H"] * SIZES["D"]  # bytes of the longest row of a tensor
    assert reader.most <= max(piece_bytes, rows)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_bit_pattern_survives_on_devices(monkeypatch, dtype):
    monkeypatch.setattr(stream, "PIECE_BYTES", 2**14)
    rules = Rule("a", "a", "F D -> F D"), Rule("b", "b", "F D -> D F")
    entries = expand(rules, dict(F=256, D=256), 1)
    bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    reader = Arrays({name: bits.view(jnp.dtype(dtype)) for name in "ab"})
    like = {name: jax.ShapeDtypeStruct((256, 256), dtype) for name in "ab"}
    found = stream.fill(entries, like, reader)
    np.testing.assert_array_equal(np.asarray(found["a"]).view(np.uint16), bits)
    np.testing.assert_array_equal(np.asarray(found["b"]).view(np.uint16), bits.T)
    compiled = stream._bitcast(jnp.asarray(bits), jnp.dtype(dtype))  # what accelerators do
    np.testing.assert_array_equal(np.asarray(compiled).view(np.uint16), bits)


def sharded():
    """Return whether all placements on 4 simulated devices hold the same numbers."""
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    stream.PIECE_BYTES = 150
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))
    specs = {
        "q": P(None, "fsdp", "tensor", None),
        "in_b": P("tensor"),  # and the same on both devices of the other axis
        "embed": P("tensor", "fsdp"),
        "head": P("fsdp", "tensor"),
        "bias": P(None, ("fsdp", "tensor")),
    }
    entries, reader, expected = example()
    entries = [e for e in entries if e.ours in specs]
    like = {
        k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, specs[k]))
        for k, x in expected.items()
        if k in specs
    }
    found = stream.fill(entries, like, reader)
    return {
        "equal": all(bool((np.asarray(x) == expected[k]).all()) for k, x in found.items()),
        "placed": all(found[k].sharding == like[k].sharding for k in specs),
        "local": list(found["q"].addressable_shards[0].data.shape),
    }


def test_on_several_devices_each_gets_its_slice():
    assert child("sharded", XLA_FLAGS="--xla_force_host_platform_device_count=4") == {
        "equal": True,
        "placed": True,
        "local": [3, 3, 2, 2],
    }


BIG = LlamaConfig(
    vocab=64128, width=2048, depth=3, mlp_dim=8192, num_heads=32, num_kv_heads=8, head_dim=64,
    tie_embeddings=False,
)  # fmt: skip
"""Three layers of Llama 3.2-1B, half of its vocabulary and an untied head: 0.89 GB in bfloat16. The
embedding and the head, its largest tensors, have 263 MB each.
"""


def write_big(folder):
    """Write three shards of random bytes, one tensor in memory at a time."""
    entries = huggingface.llm_entries(BIG, "model.", "")
    infos = {e.theirs: Info("bfloat16", e.their_shape) for e in entries}
    noise = np.random.default_rng(0).integers(0, 2**14, MIB, dtype=np.uint16)
    index = {}
    for k, names in enumerate(sorted(infos)[i::3] for i in range(3)):
        part = {name: infos[name] for name in names}
        header = files.header_of(part, {"format": "pt"})
        order = [n for n in json.loads(header) if n != "__metadata__"]
        arrays = (np.resize(noise, infos[name].shape) for name in order)
        files.write_safetensors(folder / f"{k}.safetensors", header, arrays)
        index |= dict.fromkeys(names, f"{k}.safetensors")
    (folder / files.INDEX).write_text(json.dumps({"weight_map": index}))
    values = dict(
        model_type="llama", vocab_size=BIG.vocab, hidden_size=BIG.width, head_dim=BIG.head_dim,
        num_hidden_layers=BIG.depth, intermediate_size=BIG.mlp_dim, torch_dtype="bfloat16",
        num_attention_heads=BIG.num_heads, num_key_value_heads=BIG.num_kv_heads,
        tie_word_embeddings=False, rope_theta=5e5, rms_norm_eps=1e-5,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))


def memory(key):
    """Return a line of /proc/self/status, bytes."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0]) * 1024


def big(folder, dtype):
    """Return peak and final memory of loading the large checkpoint, less jax's own."""
    warm = expand((Rule("a.{i}", "a", "F D -> D F"),), dict(F=4, D=4), 2)
    reader = Arrays({f"a.{i}": np.ones((4, 4), jnp.bfloat16) for i in range(2)})
    stream.fill(warm, {"a": jax.ShapeDtypeStruct((2, 4, 4), dtype)}, reader)
    before = memory("VmRSS")
    source = sources.open_source(folder)
    like = sources.like(source, dtype)
    params = sources.load(source, like)
    jax.block_until_ready(params)
    return {
        "peak": memory("VmHWM") - before,
        "params": sum(x.nbytes for x in params.values()),
        "largest": max(
            int(np.prod(i.shape)) * jnp.dtype(dtype).itemsize for i in source.reader.infos.values()
        ),
        "sample": float(params["llm/lm_head/kernel"][3, 7]),
    }


@pytest.mark.slow(reason="writes and loads a checkpoint of 0.9 GB")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_loading_takes_one_copy_and_a_piece(tmp_path):
    """The host's peak is the device copy and less than 1.3 times the largest tensor."""
    try:
        write_big(tmp_path)
        found = child("big", str(tmp_path), "bfloat16")
    finally:
        for file in tmp_path.glob("*.safetensors"):
            file.unlink()
    extra = found["peak"] - found["params"]
    print(f"beyond the parameters: {extra / MIB:.0f} MiB; largest {found['largest'] / MIB:.0f}")
    assert found["params"] == pytest.approx(0.89e9, rel=0.01)
    assert extra <= 128 * MIB < 1.3 * found["largest"]  # a piece or two, and compiled code
    noise = np.random.default_rng(0).integers(0, 2**14, MIB, dtype=np.uint16)
    assert found["sample"] == float(noise[7 * 2048 + 3].view(jnp.bfloat16))


def child(name, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, __file__, name, *arguments],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
