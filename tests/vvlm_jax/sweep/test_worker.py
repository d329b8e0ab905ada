"""Workers as processes of their own, killed, stopped, paused, out of disk: nothing is lost and
nothing doubled. The jobs are cheap ones; claims, journals and workers are the real ones.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.patience import LONG, wait_until
from tests.vvlm_jax.sweep.child import KINDS
from vvlm_jax import devices
from vvlm_jax.config import ConfigError
from vvlm_jax.exit_codes import Exit
from vvlm_jax.sweep.launch import local
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import MAX_DEATHS, Job, Store
from vvlm_jax.sweep.worker import Heartbeat, Hosts, Stop, pull, run_job

ROOT = Path(__file__).parents[3]
KILLS = 24


STARTED = []


@pytest.fixture(autouse=True)
def _no_process_stays():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def start(*argv):
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.vvlm_jax.sweep.child", *map(str, argv)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


def finish(process, code=0):
    out, err = process.communicate(timeout=LONG)
    assert process.returncode == code, err
    return out, err


def squares(path, count, **options):
    jobs = [Job(f"r{i}/train", "square", dict(value=i, **options)) for i in range(count)]
    jobs += [Job(f"r{i}/check", "square", dict(value=10 * i), (f"r{i}/train",)) for i in range(2)]
    return Store.create(path, "squares", jobs)


def assert_whole(store):
    """Assert that every job is done once, with its own result."""
    for id, state in Store.open(store.path).states().items():
        assert state.phase == "done", (id, state)
        value = store.jobs[id].argument["value"]
        assert state.entry.body["result"]["scores"] == {"task": value**2}
    for id, job in store.jobs.items():
        events = [
            journal.read(file, 0).event
            for file in sorted((store.folder(job.run) / "jobs").glob(f"{job.name}.*.json"))
        ]
        assert events.count(journal.DONE) == 1, (id, events)
        assert events[-1] == journal.DONE


def times_run(store):
    return {run: len((store.folder(run) / "ran").read_text().split()) for run in runs_of(store)}


def runs_of(store):
    return dict.fromkeys(job.run for job in store.jobs.values())


def claims(store):
    files = store.path.glob("runs/*/jobs/*.json")
    return sum(1 for _ in files)


@pytest.mark.light
def test_drivers_that_race_do_every_job_once(tmp_path):
    store = squares(tmp_path / "s", 40)
    drivers = [start("drive", store.path, 2) for _ in range(2)]
    for driver in drivers:
        finish(driver)
    assert_whole(store)
    assert times_run(store) == {f"r{i}": 2 if i < 2 else 1 for i in range(40)}


def test_workers_killed_at_random_lose_and_double_nothing(tmp_path):
    store = squares(tmp_path / "s", 30, seconds=0.12)
    finish(start("kill", store.path, KILLS))
    assert_whole(store)


def test_death_before_every_operation_on_files_loses_and_doubles_nothing(tmp_path):
    store = squares(tmp_path / "s", 3)
    out, _ = finish(start("die", store.path))
    assert int(out) > KILLS
    assert_whole(store)


def test_a_claim_is_touched_several_times_a_lease(tmp_path, monkeypatch):
    store = squares(tmp_path / "s", 1)
    beat, waits, touched = Heartbeat(store, store.claim("r0/train")), [], []
    monkeypatch.setattr(journal, "touch", touched.append)
    monkeypatch.setattr(
        beat, "over", SimpleNamespace(wait=lambda seconds: waits.append(seconds) or len(waits) > 3)
    )
    beat.run()
    assert touched == [beat.claim.file] * 3
    assert max(waits) < store.lease / 3


def one_job(folder, lease):
    """Return a store with a job that lasts until its gate is there, and the gate."""
    gate = folder / "gate"
    job = Job("r/train", "square", dict(value=3, gate=str(gate)))
    return Store.create(folder / "s", "long", [job], lease=lease), gate


def test_a_worker_that_lives_keeps_its_claim_beyond_the_lease(tmp_path):
    store, gate = one_job(tmp_path, lease=0.6)
    worker = start("job", store.path, "r/train")
    wait_until(lambda: claims(store) == 1)
    (claim,) = store.path.glob("runs/r/jobs/*.json")
    begun = claim.stat().st_mtime
    wait_until(lambda: claim.stat().st_mtime > begun + 3 * store.lease)
    # It may just have been kept from touching it for a while.
    wait_until(lambda: store.state("r/train").phase == "running")
    gate.touch()
    finish(worker, Exit.DONE)
    assert_whole(store)
    assert claims(store) == 2


def test_a_worker_that_was_paused_beyond_its_lease_gives_way(tmp_path):
    store, gate = one_job(tmp_path, lease=0.8)
    paused = start("job", store.path, "r/train")
    wait_until(lambda: claims(store) == 1)
    paused.send_signal(signal.SIGSTOP)
    wait_until(lambda: store.state("r/train").phase == "ready")
    second = start("job", store.path, "r/train")
    wait_until(lambda: claims(store) == 2)
    paused.send_signal(signal.SIGCONT)
    assert "another worker has taken it" in "".join(finish(paused, Exit.CLAIMED))
    gate.touch()
    finish(second, Exit.DONE)
    assert_whole(store)


def test_exit_codes(tmp_path):
    jobs = [
        Job("r/train", "square", dict(value=2, gate=str(tmp_path / "never"))),
        Job("r/next", "square", dict(value=2), ("r/train",)),
        Job("f/train", "fail"),
        Job("f/next", "square", dict(value=2), ("f/train",)),
    ]
    store = Store.create(tmp_path / "s", "codes", jobs)
    start("job", store.path, "r/train")
    wait_until(lambda: (store.folder("r") / "ran").exists())
    for id, code in (("r/train", Exit.CLAIMED), ("r/next", Exit.CLAIMED), ("f/train", Exit.FAILED)):
        assert run_job(store, id, KINDS, Stop())[0] == code
    entry = store.state("f/train").entry
    assert entry.body["error"] == "ValueError: no luck"
    assert "first line" in entry.body["traceback"]
    assert run_job(store, "f/next", KINDS, Stop())[0] == Exit.FAILED
    finish(start("job", store.path, "f/next"), Exit.FAILED)
    assert store.cancel("r/train")
    code, line = run_job(store, "r/train", KINDS, Stop())
    assert code == Exit.FAILED
    assert "retry makes it ready again" in line


def test_sigterm_saves_and_the_next_goes_on(tmp_path):
    store, gate = one_job(tmp_path, lease=120.0)
    worker = start("job", store.path, "r/train")
    wait_until(lambda: (store.folder("r") / "at_gate").exists())
    worker.send_signal(signal.SIGTERM)
    finish(worker, Exit.RETRY)
    assert store.state("r/train").phase == "ready"
    assert (store.folder("r") / "steps").read_text() == "x"
    gate.touch()
    finish(start("job", store.path, "r/train"), Exit.DONE)
    assert_whole(store)
    assert "done already" in finish(start("job", store.path, "r/train"), Exit.DONE)[0]


def test_a_cancelled_job_is_left_by_its_worker(tmp_path):
    store, _ = one_job(tmp_path, lease=0.6)
    worker = start("job", store.path, "r/train")
    wait_until(lambda: claims(store) == 1)
    assert store.cancel("r/train")
    finish(worker, Exit.CLAIMED)
    assert store.state("r/train").phase == "cancelled"


def fill(disk):
    with contextlib.suppress(OSError), (disk / "filler").open("wb", 0) as file:
        while True:
            file.write(bytes(4096))


def test_on_a_full_disk_no_store_is_begun(small_disk):
    fill(small_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*/s/sweep.json'"):
        squares(small_disk / "s", 3)
    assert list((small_disk / "s").iterdir()) == []


def test_a_full_disk_stops_the_driver_and_loses_nothing(small_disk, tmp_path):
    gate = tmp_path / "gate"
    store = squares(small_disk / "s", 6, gate=str(gate))
    gate.touch()
    assert run_job(store, "r0/train", KINDS, Stop())[0] == Exit.DONE
    gate.unlink()
    driver = start("drive", store.path, 1)
    wait_until(lambda: claims(store) == 3)
    fill(small_disk)
    gate.touch()
    _, err = finish(driver, 1)
    assert "No space left on device; free some, and run the same command again" in err
    assert "failed" not in {state.phase for state in Store.open(store.path).states().values()}
    (small_disk / "filler").unlink()
    finish(start("drive", store.path, 1))
    assert_whole(store)


def test_others_go_on_when_one_fails_or_its_worker_dies(tmp_path):
    jobs = [Job(f"r{i}/train", "square", dict(value=i)) for i in range(4)]
    bad = [Job("bad/train", "fail", cost=9.0), Job("late/train", "square", {}, ("bad/train",))]
    store = Store.create(tmp_path / "s", "mixed", [*bad, Job("oom/train", "die", cost=8.0), *jobs])
    _, err = finish(start("drive", store.path, 2), 1)
    assert "failed: bad/train: ValueError: no luck\n" in err
    assert "2 failed, 1 blocked by them" in err
    assert "6/7 " in err, "a line for each run that ends"
    phases = {id: state.phase for id, state in Store.open(store.path).states().items()}
    assert {phases[job.id] for job in jobs} == {"done"}
    assert (phases["bad/train"], phases["late/train"]) == ("failed", "blocked")
    assert "died 10 times in a row" in store.state("oom/train").entry.body["error"]


def test_workers_end_with_their_driver(tmp_path):
    store = squares(tmp_path / "s", 3, gate=str(tmp_path / "never"))
    driver = start("drive", store.path, 2)
    wait_until(lambda: claims(store) >= 2)
    workers = psutil.Process(driver.pid).children(recursive=True)
    assert len(workers) == 2
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(workers, timeout=LONG)
    assert not alive
    phases = [state.phase for state in Store.open(store.path).states().values()]
    assert "running" not in phases, "what they had is free at once"


STILLBORN = """
import os, sys
from vvlm_jax.config import Stopped
from vvlm_jax.sweep.launch import local
from vvlm_jax.sweep.store.store import Store

share = local.Share({}, frozenset(os.sched_getaffinity(0)), "")
try:
    local.run(Store.open(sys.argv[1]), ("sh", "-c", "kill -9 $$"), [share], look_every=0.001)
except Stopped as e:
    print(e)
"""


def alone(script, *argv):
    """Return what a script says in a process of its own: this one may have threads of jax's, beside
    which nobody forks.
    """
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, *map(str, argv)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_workers_that_all_die_before_they_begin_end_the_driver(tmp_path):
    store = squares(tmp_path / "s", 2)
    out, err = alone(STILLBORN, store.path)
    assert "workers in a row were killed by SIGKILL before they" in out
    ended = int(out.split()[0])  # more than are allowed when it looks at the store seldom
    assert ended >= MAX_DEATHS
    assert err == "a worker was killed by SIGKILL\n" * ended
    assert claims(store) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (15, Exit.RETRY)])
def test_an_interrupted_driver_lets_its_workers_save(tmp_path, number, code):
    store = squares(tmp_path / "s", 2, gate=str(tmp_path / "never"))
    driver = start("drive", store.path, 2)
    wait_until(lambda: all((store.folder(f"r{i}") / "ran").exists() for i in range(2)))
    driver.send_signal(number)
    assert "workers are saving" in finish(driver, code)[1]
    events = [state.entry.event for state in Store.open(store.path).states().values()]
    assert events.count(journal.STOPPED) == 2


def test_what_a_job_raises_in_this_process_is_kept(tmp_path):
    def trouble(context):
        raise RuntimeError

    store = Store.create(tmp_path / "s", "test", [Job("r/train", "trouble")])
    code, line = run_job(store, "r/train", {"trouble": trouble}, Stop())
    assert (code, line) == (Exit.FAILED, "r/train: RuntimeError")


def test_of_several_hosts_all_train_and_the_first_keeps_the_journal(tmp_path):
    at_work, told = threading.Barrier(2), [None]

    def train(context):
        at_work.wait(LONG)
        return {"host": "the first"}

    def host(index):
        def tell(code):
            at_work.wait(LONG)
            if index == 0:
                told[0] = code
            at_work.wait(LONG)
            return told[0]

        return Hosts(index, agreed=lambda step: False, broadcast=tell)

    store = Store.create(tmp_path / "s", "test", [Job("r/train", "train"), Job("r/x", "x")])
    kinds = {"train": train, "x": lambda context: {"by": 1}}
    with ThreadPoolExecutor(2) as pool:
        for id, result in (("r/train", {"host": "the first"}), ("r/x", {"by": 1})):
            ended = list(
                pool.map(lambda i, id=id: run_job(store, id, kinds, Stop(), host(i)), range(2))
            )
            assert [code for code, _ in ended] == [Exit.DONE, Exit.DONE]
            assert store.state(id).entry.body["result"] == result
        again = list(pool.map(lambda i: run_job(store, "r/x", kinds, Stop(), host(i)), range(2)))
    assert [code for code, _ in again] == [Exit.DONE, Exit.DONE]
    assert claims(store) == 4


def test_costly_jobs_come_first_and_each_gives_its_memory_back(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(devices, "release_memory", lambda: told.append("released"))
    costs = {"b": 2.0, "d": 0.5, "a": 3.0, "c": 1.0}
    jobs = [Job(f"{name}/train", "note", cost=cost) for name, cost in costs.items()]
    jobs.append(Job("e/train", "note", after=("d/train",), cost=9.0))
    store = Store.create(tmp_path / "s", "test", jobs)
    pull(store, {"note": lambda context: told.append(context.job.run) or {}}, Stop())
    assert told == [word for run in "abcde" for word in ("released", run)]


def test_jobs_of_one_model_follow_one_another_and_keep_its_programs(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(devices, "release_memory", lambda: told.append("released"))

    def train(name, llm, cost):
        return Job(f"{name}/train", "note", {"stage": "finetune", "model": {"llm": llm}}, cost=cost)

    jobs = [train("a", "m", 3.0), train("b", "l", 2.0), train("c", "m", 1.0)]
    jobs.append(Job("a/evaluate", "note", after=("a/train",), cost=0.1))
    store = Store.create(tmp_path / "s", "test", jobs)
    pull(store, {"note": lambda context: told.append(context.job.id) or {}}, Stop())
    assert told == ["released", "a/train", "c/train", "a/evaluate", "released", "b/train"]


def test_a_model_that_another_worker_compiles_comes_later(tmp_path):
    told = []

    def train(name, llm, cost):
        return Job(f"{name}/train", "note", {"stage": "finetune", "model": {"llm": llm}}, cost=cost)

    store = Store.create(
        tmp_path / "s", "test", [train("a", "m", 4.0), train("b", "m", 3.0), train("c", "l", 1.0)]
    )
    other = store.claim("a/train")

    def note(context):
        told.append(context.job.run)
        if len(told) == 2:
            store.end(other, journal.DONE, result={})
        return {}

    pull(store, {"note": note}, Stop(), poll=0.01)
    assert told == ["c", "b"]


PINNED = """
import os, sys
from vvlm_jax.sweep.launch import local

cores = sorted(os.sched_getaffinity(0))
shares = local.shares(len(cores) + 1)
assert [share.cores for share in shares] == [{core} for core in [*cores, cores[0]]]
code = "import os; print(*os.sched_getaffinity(0))"
for share in shares[:2]:
    assert local.start_worker([sys.executable, "-c", code], share, os.getpid()).wait() == 0
print(*cores)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pins cores on Linux only")
def test_a_worker_without_accelerators_keeps_to_one_core():
    *first_two, cores = alone(PINNED)[0].splitlines()
    assert first_two == (cores.split() * 2)[:2]


def test_gpus_are_divided_between_workers(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4,5")
    assert [share.environ for share in local.shares(2)] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "4,5"},
    ]
    assert [share.text for share in local.shares(0)] == ["GPUs 0, 1, 4, 5"]
    for workers in (3, 5):
        with pytest.raises(ConfigError, match=f"--workers {workers}: must divide the 4 GPUs"):
            local.shares(workers)
