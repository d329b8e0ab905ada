import os
import subprocess
import sys

import jax
import pytest

from tests.patience import LONG, free_port
from vvlm_jax import distributed
from vvlm_jax.config import ConfigError

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
}  # fmt: skip


@pytest.fixture
def initialized(monkeypatch):
    """Return what jax.distributed.initialize was called with; no process is joined."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
    for name in [n for n in os.environ if n.startswith(("SLURM_", "TPU_", "OMPI_", "JOB_"))]:
        monkeypatch.delenv(name)
    return calls


def test_two_processes_become_one_machine(tmp_path):
    """The processes are real, on loopback: each sees both processes' devices, the sum over them,
    and what either has to tell, however long.
    """
    program = (
        "import sys; from vvlm_jax import distributed\n"
        "distributed.join(sys.argv[1], 2, int(sys.argv[2]))\n"
        "import jax; from jax.experimental import multihost_utils as m\n"
        "host = jax.process_index()\n"
        "print(jax.device_count(), m.process_allgather(jax.numpy.array(host)).sum())\n"
        "told = distributed.gather({'é' * (1 + 99 * host): None})\n"
        "print(*[len(next(iter(x))) for x in told])"
    )
    where = f"127.0.0.1:{free_port()}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, where, str(i)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in both:
        out, err = process.communicate(timeout=LONG)
        assert out.split()[-4:] == ["2", "1", "1", "100"], err


def test_a_process_by_itself_hears_itself():
    assert distributed.gather({"a": None}) == [{"a": None}]


def test_a_process_by_itself_joins_nobody():
    """jax really looks for a cluster here, and finds none."""
    program = (
        "from vvlm_jax import distributed\n"
        "assert distributed.join() is None\n"
        "assert distributed.join(processes=1) is None\n"
        "import jax; print(jax.process_count())"
    )
    cluster = ("SLURM_", "TPU_", "OMPI_", "JOB_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(cluster)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr


def test_slurm_with_one_task_a_host_uses_all_its_gpus(initialized, monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    distributed.join()
    monkeypatch.setenv("SLURM_NTASKS", "8")  # four tasks a host: jax gives each its own
    distributed.join()
    assert initialized == [{"local_device_ids": [0, 1, 2, 3]}, {"local_device_ids": None}]


def test_a_single_slurm_task_stays_alone(initialized, monkeypatch):
    for name, value in {**SLURM, "SLURM_NTASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert initialized == []


def test_the_arguments_say_it_anywhere(initialized):
    distributed.join("host:1234", 4, 3)
    assert initialized == [
        {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 3}
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", 2, None), "give all three"),
        (("host:1", 2, 2), "--process 2: must be from 0 to 1"),
        (("host", 2, 0), "--coordinator host: must be host:port"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        distributed.join(*arguments)


def test_pods_that_cannot_find_one_another_do_not_train_apart(initialized, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.raises(ConfigError, match=r"install jax\[k8s\].*--processes 1"):
        distributed.join()


def test_processes_that_do_not_come_are_one_line(initialized, monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ConfigError, match="could not find each other: DEADLINE_EXCEEDED") as e:
        distributed.join("host:1", 2, 0)
    assert "\n" not in str(e.value)
