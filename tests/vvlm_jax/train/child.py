"""Server that starts trainers quickly: it imports jax once and forks a process for every job,
which starts its own backend. It reads jobs as JSON lines and answers each with its process id and
then its exit code.

Job: {"argv": of tools.train, "stderr": file, "record": file, "hold": [step, file],
      "compile": true for a step that it compiles itself, "watch": folder of checkpoints,
      "kill_at": n, "kind": of operations there (`die_within`)}
"""

import json
import os
import runpy
import signal
import sys
import time
import zlib

import jax
import numpy as np

from tools import common  # noqa: F401 imported before the forks, and not tools.train, which they run
from vvlm_jax.train import loop


def digest(tree) -> int:
    """Return a checksum of a pytree of arrays."""
    sums = [zlib.crc32(np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]
    return zlib.crc32(repr(sums).encode())


def recorded(job):
    """Return a loop.compiled_step that records a line for each step when it starts.

    The step of `hold`, counted from 0, then waits until its file exists.
    """
    original, (held, gate) = loop.compiled_step, job.get("hold", (None, ""))
    file = os.open(job["record"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def compiled_step(*args):
        step_fn = original(*args)

        def step(state, batch, share):
            line = dict(
                step=int(state.step), batch=digest(batch), share=float(share), state=digest(state)
            )
            os.write(file, f"{json.dumps(line)}\n".encode())
            if line["step"] == held:
                while not os.path.exists(gate):
                    time.sleep(0.005)
            return step_fn(state, batch, share)

        return step

    return compiled_step


def die_within(job):
    """Kill the process before the n-th file operation of a kind on checkpoints.

    Kinds are `any`, `save` (in a folder that orbax has not renamed yet), `manifest`, and `clean-up`
    (the removal of a folder).
    """
    done, kind = 0, job.get("kind", "any")

    def hook(event, args):
        nonlocal done
        if event not in OPERATIONS or not args:
            return
        path, removal = str(args[0]), event in ("os.remove", "os.rmdir") and args[-1] != -1
        is_one = {
            "any": removal or job["watch"] in path,
            "save": "orbax-checkpoint-tmp" in path,
            "manifest": ".partial-manifest.json" in path,
            "clean-up": removal and ".partial-" not in path,
        }
        done += is_one[kind]
        if done == job["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}


def run(job):
    stderr = os.open(job["stderr"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(stderr, 2)
    os.dup2(stderr, 1)
    os.close(0)
    if job.get("compile"):
        jax.config.update("jax_enable_compilation_cache", False)
    if "record" in job:
        loop.compiled_step = recorded(job)
    if "kill_at" in job:
        die_within(job)
    sys.argv = ["tools.train", *job["argv"]]
    code = 0
    try:
        runpy.run_module("tools.train", run_name="__main__", alter_sys=True)
    except SystemExit as e:
        code = e.code or 0
    except BaseException as e:
        print(repr(e), file=sys.stderr)
        code = 1
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            run(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
