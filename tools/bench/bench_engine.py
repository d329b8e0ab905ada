"""Memory of the engine at 8B, device by device, from the compiler alone: nothing is allocated.

Example:
    python -m tools.bench.bench_engine --devices 1
    python -m tools.bench.bench_engine --devices 8

Compiles prefill and decoding for simulated CPU devices and prints what `memory_analysis` counts.
The dtype is float32, because XLA converts bfloat16 matrices to float32 on a CPU and would count the
converted ones, too; an accelerator needs half of what is shown for parameters and cache.
"""

import argparse
import os
import re


def main() -> None:
    """Print a line for each program."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--llm", default="llama3.1-8b")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024, help="ids of a prompt")
    parser.add_argument("--written", type=int, default=256, help="ids of a reply")
    args = parser.parse_args()
    os.environ["JAX_NUM_CPU_DEVICES"] = f"{args.devices}"
    flags = re.sub(r"--xla_backend_optimization_level=\S+", "", os.environ.get("XLA_FLAGS", ""))
    os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"  # instructions only
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from vvlm_jax.config import ModelConfig
    from vvlm_jax.generate.generate import programs
    from vvlm_jax.generate.placement import abstract_params
    from vvlm_jax.models import vlm
    from vvlm_jax.sharding import BATCH

    model = vlm.build(ModelConfig(llm=args.llm, dtype="float32"), 5)
    params, mesh = abstract_params(model, jax.devices())
    run, rows = programs(model, (0,), mesh), NamedSharding(mesh, BATCH)

    def struct(*shape, dtype=jnp.int32, sharding=rows):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    batch = args.prompts
    visual = struct(batch, args.length // 2, model.llm_config.width, dtype=model.dtype)
    prompt = struct(batch, args.length), struct(batch)
    with jax.set_mesh(mesh):
        begin = run.begin.lower(params, *prompt, visual, args.written)
        prefill = begin.compile()
        report("prefill", prefill)
        replies = jax.tree.map(
            lambda x, on: struct(*x.shape, dtype=x.dtype, sharding=on),
            begin.out_info,
            prefill.output_shardings,
        )
        report("decode", run.go_on.lower(params, replies, struct(sharding=None)).compile())


def report(name: str, compiled) -> None:
    """Print one program's bytes on each device."""
    m, gb = compiled.memory_analysis(), 1e9
    peak = (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        + m.temp_size_in_bytes
        - m.alias_size_in_bytes
    )
    print(
        f"{name:8s} arguments {m.argument_size_in_bytes / gb:6.2f} GB, temporaries "
        f"{m.temp_size_in_bytes / gb:6.2f} GB, at most {peak / gb:6.2f} GB a device",
        flush=True,
    )


if __name__ == "__main__":
    main()
