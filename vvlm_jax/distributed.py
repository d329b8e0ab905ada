"""Join the other processes of a job, so that jax sees the devices of all hosts."""

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
    """Join the other processes of this job, if there are any. Call it before anything uses jax.

    TPU pods and Slurm are detected, and Kubernetes if the `kubernetes` package is installed;
    elsewhere the three arguments are needed. Nothing happens in a job of one process, or when jax
    is already running.

    Args:
      coordinator: `host:port` of process 0, the same everywhere.
      processes, process: number of processes, and the index of this one, from 0.

    Returns:
      None for a job of one process. Otherwise a function that every process calls before each step:
      it returns True at the same step in all of them once any has received SIGTERM.

    Raises ConfigError when arguments are missing or wrong, the processes cannot reach each other,
    or the job has several processes that cannot be found from here.
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
    """Return the `value`, which must be JSON, of every process, in their order. All of them must
    call this at the same point of the program.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    room = 1 << int(sizes.max()).bit_length()  # powers of two: each size is compiled
    rows = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def _join_found() -> None:
    """Join the job that the environment variables describe."""
    if int(os.environ.get("SLURM_NTASKS", 1)) == 1 and "SLURM_JOB_ID" in os.environ:
        return  # one process; jax would use only the first device of the host
    kubernetes = "JOB_COMPLETION_INDEX" in os.environ and "TPU_WORKER_HOSTNAMES" not in os.environ
    if kubernetes and importlib.util.find_spec("kubernetes") is None:
        raise ConfigError(
            "a Kubernetes job: install jax[k8s] so that its pods find each other, or give "
            "--coordinator, --processes and --process (for one pod: --processes 1)"
        )
    try:
        _initialize(local_device_ids=_all_devices_of_host())
    except _JaxIsRunning:
        return
    except ValueError as e:
        if "coordinator_address" not in str(e):  # jax has found no cluster
            raise


def _all_devices_of_host() -> list[int] | None:
    """Return the indices of all GPUs for a process that is alone on its host under Slurm, where jax
    would use one; None leaves the choice to jax.
    """
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
    """Raised when it is too late to join: jax has its devices already."""


def _initialize(**arguments) -> None:
    try:
        jax.distributed.initialize(**arguments)
    except RuntimeError as e:
        if "must be called before" in str(e):
            raise _JaxIsRunning(str(e)) from e
        reason = str(e).strip().splitlines()[0]
        raise ConfigError(f"the processes of this job could not find each other: {reason}") from e
