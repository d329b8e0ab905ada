"""Several hosts as one machine: this process joins the others of its job before jax starts."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from vvlm_jax.config import ConfigError


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> Callable[[int], bool] | None:
    """Joins the other processes of this job, if there are any; call it before anything uses jax.

    TPU pods and Slurm are recognised by themselves, Kubernetes where the `kubernetes` package is
    installed; anywhere else the three arguments say it. A process by itself stays so, and so does
    one in which jax is running already.

    Args:
      coordinator: `host:port` of process 0, the same everywhere.
      processes, process: how many there are, and which one this is, from 0.

    Returns:
      For a process by itself None; else a function that every process calls before each step, and
      that answers True at the same step everywhere, once any of them was sent SIGTERM.

    Raises ConfigError when some arguments are missing or wrong, the others do not come, or the job
    has several processes of which this one cannot know.
    """
    given = (coordinator, processes, process)
    if processes == 1:
        return None
    if all(x is None for x in given):
        _join_found()
    elif any(x is None for x in given):
        raise ConfigError("--coordinator, --processes and --process go together: give all three")
    elif not 0 <= process < processes:
        raise ConfigError(f"--process {process}: must be from 0 to {processes - 1}")
    elif ":" not in coordinator:
        raise ConfigError(f"--coordinator {coordinator}: must be host:port")
    else:
        _initialize(coordinator_address=coordinator, num_processes=processes, process_id=process)
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point


def gather(value) -> list:
    """`value`, which JSON can hold, of every process, in their order. All of them have to call this
    at the same point of the program.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    room = 1 << int(sizes.max()).bit_length()  # few sizes, for each is compiled
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _join_found() -> None:
    """Joins the job that the environment tells of."""
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1 and "SLURM_JOB_ID" in os.environ:
        return  # alone; jax would take the first device of the host only
    kubernetes = "JOB_COMPLETION_INDEX" in os.environ and "TPU_WORKER_HOSTNAMES" not in os.environ
    if kubernetes and importlib.util.find_spec("kubernetes") is None:
        raise ConfigError(
            "a Kubernetes job: install jax[k8s] so that its pods find one another, or give "
            "--coordinator, --processes and --process (for one pod: --processes 1)"
        )
    try:
        _initialize(local_device_ids=_all_devices_of_host())
    except _JaxIsRunning:
        return
    except ValueError as e:
        if "coordinator_address" not in str(e):  # it has found no cluster
            raise


def _all_devices_of_host() -> list[int] | None:
    """Under Slurm jax gives each process one GPU; a process alone on its host has them all."""
    tasks, hosts = (os.environ.get(x) for x in ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES"))
    if tasks is None or tasks != hosts:
        return None
    visible, driver = os.environ.get("CUDA_VISIBLE_DEVICES"), Path("/proc/driver/nvidia/gpus")
    if visible is not None:
        gpus = len([x for x in visible.split(",") if x])
    else:
        gpus = len(list(driver.iterdir())) if driver.is_dir() else 0
    return list(range(gpus)) or None


class _JaxIsRunning(RuntimeError):
    """Too late to join: this process has its devices."""


def _initialize(**arguments) -> None:
    try:
        jax.distributed.initialize(**arguments)
    except RuntimeError as e:
        if "must be called before" in str(e):
            raise _JaxIsRunning(str(e)) from e
        reason = str(e).strip().splitlines()[0]
        raise ConfigError(f"the processes of this job did not find one another: {reason}") from e
