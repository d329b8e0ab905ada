import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import pytest

from configs.sweeps import mini
from tests.patience import LONG
from tests.processes import FAST_TO_COMPILE
from tools.sweep_plan import load
from vvlm_jax.config import ConfigError
from vvlm_jax.sweep import clusters
from vvlm_jax.sweep.jobs import create
from vvlm_jax.sweep.launch import slurm
from vvlm_jax.sweep.launch.slurm import SlurmOptions
from vvlm_jax.sweep.store.store import Store
from vvlm_jax.sweep.table import collect

ROOT = Path(__file__).parents[4]
CLUSTER = ROOT / "tests/slurm/cluster.sh"
N1 = "127.0.0.1"  # its first node; both have four cores
PATH = f"{os.environ['PATH']}:/usr/sbin"
HAS_SLURM = all(shutil.which(x, path=PATH) for x in ("slurmctld", "slurmd", "munged", "sbatch"))
needs_slurm = pytest.mark.skipif(not HAS_SLURM, reason="needs Slurm: bash tests/system.sh")
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="needs submitit"
)

# A run with the exit codes of `vvlm sweep work`: it counts to `steps`, ten in a second, and saves
# where it is when it is told to stop.
RUN = """
import json, os, signal, sys, time
from pathlib import Path

folder, name, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with open(folder / f"{name}.attempts", "a") as f:
    f.write(os.environ["SLURMD_NODENAME"] + "\\n")
if name == "fails":
    sys.exit("error: it cannot be")
saved = folder / f"{name}.saved"
step = int(saved.read_text()) if saved.exists() else 0
if name == "claimed" and step == 0:
    saved.write_text("1")
    sys.exit(3)
if saved.exists():
    steps = step + 1
while step < steps:
    time.sleep(0.1)
    step += 1
    if asked:
        saved.write_text(str(step))
        print("saved step", step, flush=True)
        sys.exit(75)
(folder / f"{name}.done").write_text(str(step))
"""


def free_ports():
    """Return the first of four free ports."""
    for first in range(26000 + os.getpid() % 1000 * 4, 32000, 4):
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            try:
                for offset, s in enumerate((a, b, c)):
                    s.bind(("127.0.0.1", first + offset))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


class Cluster:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, verb, *arguments):
        command = ["bash", str(CLUSTER), verb, str(self.folder), *map(str, arguments)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        logs = "".join(log.read_text()[-2000:] for log in sorted(self.folder.glob("*.log")))
        assert done.returncode == 0, done.stderr.decode() + logs


@pytest.fixture(scope="module")
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="slurm.", dir="/tmp"))
    cluster = Cluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", PATH)
        patch.setenv("PYTHONPATH", str(ROOT))
        try:
            cluster("start", free_ports())
            idle = ("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "batch")
            wait_until(lambda: ask(*idle) == "2")
            cluster.long = submit_long(folder / "long")
            yield cluster
        finally:
            cluster("stop")
            shutil.rmtree(folder, ignore_errors=True)


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def wait_until(true):
    deadline = time.monotonic() + LONG
    while not (found := true()):
        assert time.monotonic() < deadline, ask("squeue", "--states=all") + ask("sinfo", "-N")
        time.sleep(0.1)
    return found


def jobs(folder, *runs):
    file = folder / "run.py"
    file.write_text(RUN)
    return [[(sys.executable, str(file), str(folder), name, str(n))] for name, n in runs]


def attempts(folder, name):
    file = folder / f"{name}.attempts"
    return file.read_text().split() if file.exists() else []


def ended(ids):
    """Return the states of jobs, once none will change any more."""
    found = slurm.states(ids)
    return found if set(found.values()) <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"} else None


def submit_long(folder):
    """Submit a run that its time limit ends once, after half a minute (see the last test).

    It takes one of the first node's four cores.
    """
    folder.mkdir()
    options = SlurmOptions(minutes=1, grace_seconds=20, cpus_per_node=1, sbatch=(f"nodelist={N1}",))
    runs = jobs(folder, ("long", 3000))
    return slurm.submit(runs, options, name="long", folder=folder / "logs", cwd=folder)


@needs_slurm
@needs_submitit
@pytest.mark.slow(reason="waits for a real cluster's queue")
def test_an_array_ends_as_its_commands_do_and_what_is_claimed_comes_back(cluster, tmp_path):
    steps = dict(quick=2, fails=1, claimed=1)
    options = SlurmOptions(partition="batch", minutes=10, parallel=2)
    runs = jobs(tmp_path, *steps.items())
    ids = slurm.submit(runs, options, name="sweep", folder=tmp_path / "logs", cwd=tmp_path)
    quick, fails, claimed = ids
    assert len({job.partition("_")[0] for job in ids}) == 1
    wait_until(lambda: ended(ids))
    assert slurm.states(ids) == {quick: "COMPLETED", fails: "FAILED", claimed: "COMPLETED"}
    times = dict(quick=1, fails=1, claimed=2)
    assert {name: len(attempts(tmp_path, name)) for name in times} == times
    assert {p.stem for p in tmp_path.glob("*.done")} == {"quick", "claimed"}
    assert "cannot be" in (tmp_path / "logs" / f"{fails}_0_log.err").read_text()


# Two processes that find one another by what Slurm tells them, and count together.
HOSTS = """
import signal, sys, time
from pathlib import Path

signal.signal(signal.SIGTERM, lambda *_: None)
from vvlm_jax import distributed

agreed = distributed.join()
import jax

folder, me = Path(sys.argv[1]), jax.process_index()
saved = folder / "hosts.saved"
first = int(saved.read_text()) if saved.exists() else 0
(folder / f"host{me}.from{first}").write_text(str(jax.process_count()))
for step in range(first, 10**6):
    time.sleep(0.05)
    if agreed(step):
        (folder / f"host{me}.stopped").write_text(str(step))
        if me == 0:
            saved.write_text(str(step))
        sys.exit(75)
    if first and step == first + 3:
        (folder / f"host{me}.done").write_text(str(step))
        break
"""


@needs_slurm
@needs_submitit
@pytest.mark.slow(reason="waits for jax to start four times, and for the queue")
def test_two_hosts_are_one_run_and_a_preemption_stops_both_at_one_step(cluster, tmp_path):
    (tmp_path / "hosts.py").write_text(HOSTS)
    command = (sys.executable, str(tmp_path / "hosts.py"), str(tmp_path))
    low = SlurmOptions(partition="low", minutes=10, nodes=2, cpus_per_node=2)
    (job,) = slurm.submit([[command]], low, name="hosts", folder=tmp_path / "logs", cwd=tmp_path)
    wait_until(lambda: len(list(tmp_path.glob("host?.from0"))) == 2)
    assert {p.read_text() for p in tmp_path.glob("host?.from0")} == {"2"}

    urgent = SlurmOptions(partition="high", minutes=10, nodes=2, cpus_per_node=3)
    (other,) = slurm.submit(
        jobs(tmp_path, ("urgent", 10)), urgent, name="high", folder=tmp_path / "l", cwd=tmp_path
    )
    wait_until(lambda: ended([job, other]))
    assert slurm.states([job, other]) == {job: "COMPLETED", other: "COMPLETED"}
    stopped = [(tmp_path / f"host{i}.stopped").read_text() for i in (0, 1)]
    assert stopped[0] == stopped[1]
    assert {p.name for p in tmp_path.glob("host?.from*")} == {
        f"host{i}.from{step}" for i in (0, 1) for step in (0, stopped[0])
    }
    assert len(list(tmp_path.glob("host?.done"))) == 2


@needs_slurm
@needs_submitit
@pytest.mark.slow(reason="waits for a real cluster's queue")
def test_a_cancelled_run_saves_and_does_not_come_back(cluster, tmp_path):
    options = SlurmOptions(minutes=10)
    runs = jobs(tmp_path, ("long", 10**6))
    ids = slurm.submit(runs, options, name="sweep", folder=tmp_path / "logs", cwd=tmp_path)
    wait_until(lambda: attempts(tmp_path, "long"))
    time.sleep(0.5)  # so that it counts
    slurm.cancel(ids)
    wait_until(lambda: (tmp_path / "long.saved").exists())
    wait_until(lambda: slurm.states(ids) == dict.fromkeys(ids, "CANCELLED"))
    time.sleep(1)
    assert slurm.states([*ids, "99999_0"]) == {ids[0]: "CANCELLED", "99999_0": "GONE"}
    assert slurm.states(["99999"]) == {"99999": "GONE"}


@needs_slurm
@needs_submitit
@pytest.mark.slow(reason="waits for a real cluster's queue")
def test_a_run_that_never_gets_on_is_not_requeued_for_ever(cluster, tmp_path):
    options = SlurmOptions(minutes=10, max_requeues=0)
    runs = jobs(tmp_path, ("claimed", 1))
    (job,) = slurm.submit(runs, options, name="sweep", folder=tmp_path / "logs", cwd=tmp_path)
    wait_until(lambda: ended([job]))
    assert slurm.states([job]) == {job: "FAILED"}
    assert "not requeued, after 0 times" in (tmp_path / "logs" / f"{job}_0_log.err").read_text()


SWEEP = """
import dataclasses
from configs.sweeps import mini


def sweep():
    config = mini.sweep()
    (point,) = [p for p in config.points if p.num_frames == 1]
    ids = {"dies": 12, "stops": 16, "fails": 8}  # the same x, so that one program is compiled
    points = [dataclasses.replace(point, run_id=id, num_examples=n) for id, n in ids.items()]
    return dataclasses.replace(config, points=points)
"""


# As `sitecustomize`, in every process: these two runs begin their steps once their gates are there,
# or when they have been asked to stop.
GATES = """
import signal, sys, time
from pathlib import Path


def hook(event, args):
    if event == "open" and str(args[0]).endswith(("/dies/metrics.jsonl", "/stops/metrics.jsonl")):
        gate = Path(__file__).with_name(Path(args[0]).parent.name)
        while not (gate.exists() or getattr(signal.getsignal(signal.SIGTERM), "asked", False)):
            time.sleep(0.05)


sys.addaudithook(hook)
"""


def swept(folder):
    """Return a sweep's store in which one run cannot but fail, and its config."""
    config = load(folder.parent / "mine.py")
    store = create(folder, config)
    (store.folder("fails")).mkdir(parents=True)
    (store.folder("fails") / "checkpoints").write_text("not a folder")
    return Store.open(folder), config


def events(store, job):
    run, _, name = job.rpartition("/")
    found = sorted(store.folder(run).glob(f"jobs/{name}.????.json"))
    return [json.loads(file.read_text())["event"] for file in found]


@needs_slurm
@needs_submitit
@pytest.mark.slow(reason="trains four times and waits for a node to be missed")
def test_a_sweep_ends_with_the_table_it_has_on_one_machine(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "DATA", str(tmp_path / "data"))
    mini.write_data(Path(mini.DATA))
    (tmp_path / "mine.py").write_text(SWEEP)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.jax_compilation_cache_dir))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    monkeypatch.setenv("XLA_FLAGS", FAST_TO_COMPILE)
    here, config = swept(tmp_path / "here")
    store, _ = swept(tmp_path / "there")
    work = (sys.executable, "-m", "vvlm", "sweep", "work")
    worker = subprocess.Popen([*work, str(here.path)])  # while the cluster waits for its jobs
    gates = tmp_path / "gates"
    gates.mkdir()
    (gates / "sitecustomize.py").write_text(GATES)
    monkeypatch.setenv("PYTHONPATH", f"{gates}:{ROOT}")
    asked = ("minutes=10", "grace_seconds=60", "cpus_per_node=4")

    for told in ("4 runs submitted, 0 were queued", "0 runs submitted, 4 were queued"):
        assert told in clusters.launch("slurm", store.path, config, asked, work[1:], dry_run=False)
    ids = clusters.queued(store)
    wait_until(lambda: "claim" in events(store, "dies/train"))
    node = ask("squeue", "-h", "-j", ids["dies"], "-o", "%N")
    cluster("kill", node)
    (gates / "dies").touch()
    wait_until(lambda: "claim" in events(store, "stops/train"))
    ask("scancel", "--signal=USR2", ids["stops"])  # what Slurm does before the time limit
    pending = (ids["dies"], "PENDING")
    wait_until(
        lambda: (
            clusters.slurm_states(store)["dies"] == pending
            or events(store, "dies/train").count("claim") > 1
        )
    )
    cluster("node", node)
    wait_until(lambda: "stopped" in events(store, "stops/train"))
    (gates / "stops").touch()
    wait_until(lambda: ended(list(ids.values())))
    assert worker.wait(LONG) == 0

    phases = {id: state.phase for id, state in store.states().items()}
    assert phases == {id: state.phase for id, state in here.states().items()}
    assert phases.pop("fails/train") == "failed"
    assert phases.pop("fails/evaluate-s2-val") == "blocked"
    assert set(phases.values()) == {"done"}
    assert events(store, "dies/train") == ["claim", "claim", "done"]
    assert events(store, "stops/train") == ["claim", "stopped", "claim", "done"]
    assert collect(store, store.states()).rows == collect(here, here.states()).rows
    assert len({row["run_id"] for row in collect(store, store.states()).rows}) == 2


@needs_slurm
@needs_submitit
@pytest.mark.slow(reason="Slurm looks at time limits every 30 s")
def test_at_its_time_limit_a_run_saves_and_goes_on_in_the_next_attempt(cluster):
    folder, (job,) = cluster.folder / "long", cluster.long
    wait_until(lambda: ended([job]))
    assert slurm.states([job]) == {job: "COMPLETED"}
    assert attempts(folder, "long") == [N1, N1]
    saved = int((folder / "long.saved").read_text())
    assert int((folder / "long.done").read_text()) == saved + 1
    assert (folder / "logs" / f"{job}_0_log.out").read_text().count("saved step") == 1


@needs_slurm
@needs_submitit
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(partition="gpuu"), "slurm: partition gpuu: not one of batch, high, low"),
        (dict(partition="batch,gpuu"), "slurm: partition batch,gpuu: not one of"),
        (dict(nodes=3), "sbatch refuses these jobs: allocation failure: Requested node conf"),
        (dict(gpus_per_node=8), "sbatch refuses these jobs: Invalid generic resource"),
        (dict(sbatch=("bogus=1",)), "sbatch refuses these jobs: sbatch: unrecognized option"),
    ],
)
def test_what_the_cluster_would_refuse_is_said_before_anything_is_written(
    cluster, tmp_path, options, says
):
    with pytest.raises(ConfigError, match=f"^[^\\n]*{re.escape(says)}[^\\n]*$"):
        slurm.submit(
            [[("true",)]], SlurmOptions(**options), name="s", folder=tmp_path / "l", cwd=tmp_path
        )
    assert list(tmp_path.iterdir()) == []
    assert ask("squeue", "-h", "-n", "s") == ""


def test_without_slurm_one_line_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="^slurm: no sbatch, .* on this machine; launch from"):
        slurm.submit([[("true",)]], SlurmOptions(), name="s", folder=tmp_path / "l", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(minutes=0), "minutes=0: must be 1 or more"),
        (dict(minutes=1, grace_seconds=60), "grace_seconds=60: must be less than the 1 minutes"),
        (dict(sbatch=("--exclusive",)), "must be NAME=VALUE or NAME, without dashes"),
        (dict(sbatch=("comment=a\nrm -r /",)), "must be NAME=VALUE"),
    ],
)
def test_options_that_cannot_be(options, says):
    with pytest.raises(ConfigError, match=says):
        SlurmOptions(**options)


@pytest.mark.light
@needs_submitit
def test_a_script_asks_for_what_the_options_say_and_needs_no_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    options = SlurmOptions(
        partition="gpu", account="lab", qos="high", minutes=90, grace_seconds=120, nodes=4,
        gpus_per_node=8, cpus_per_node=96, mem_gb_per_node=0.5, parallel=6,
        sbatch=("exclusive", "constraint=h100"), setup=("module load cuda",), python="/env/python",
    )  # fmt: skip
    lines = slurm.script(options, "star", tmp_path / "logs", 88).splitlines()
    wanted = """account=lab array=0-87%6 constraint=h100 cpus-per-task=96 exclusive gpus-per-node=8
        job-name=star mem=512MB nodes=4 ntasks-per-node=1 open-mode=append partition=gpu qos=high
        requeue signal=USR2@120 time=90"""
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert {x for x in asked if not x.startswith(("output=", "error="))} == set(wanted.split())
    assert lines.index("module load cuda") < len(lines) - 1
    assert re.match("srun .*--kill-on-bad-exit=1 /env/python -u -m submitit", lines[-1])
    assert list(tmp_path.iterdir()) == []


@needs_submitit
def test_empty_options_are_left_to_the_cluster(tmp_path):
    text = slurm.script(SlurmOptions(), "one", tmp_path, 1)
    for option in ["account", "partition", "qos", "mem", "gpus", "array", "wckey", "constraint"]:
        assert f"--{option}" not in text
