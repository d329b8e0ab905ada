import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vvlm_jax.sweep import launch
from vvlm_jax.sweep.launch import Job, RunFailed, run_local

ROOT = Path(__file__).parents[3]

# Jobs live in a module of their own, which worker processes import without pytest.
WORK = """
import os, time
from pathlib import Path
from vvlm_jax.sweep.launch import report


def square(x):
    return x * x


def note(argument):
    file, name = argument
    with open(file, "a") as f:
        f.write(name + "\\n")


def talk(count):
    for i in range(count):
        report((i, count))


def whereabouts(_):
    return os.getpid(), sorted(os.sched_getaffinity(0))


def sleep(folder):  # leaves its process id behind
    (Path(folder) / "partial").write_text(str(os.getpid()))
    (Path(folder) / "partial").rename(Path(folder) / f"{os.getpid()}.pid")
    time.sleep(300)


def fail(folder):  # once the other one sleeps
    while not list(Path(folder).glob("*.pid")):
        time.sleep(0.01)
    raise ValueError("no luck")


def die(_):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("some_work", None)
    import some_work

    yield some_work
    sys.modules.pop("some_work", None)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(folder):
    return [int(p.stem) for p in folder.glob("*.pid")]


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_jobs_no_results():
    assert run_local([], 2) == {}


def test_results_by_name_and_every_job_is_announced(work):
    seen = []
    jobs = [Job(f"job {i}", work.square, i, 1.0) for i in range(4)]
    results = run_local(jobs, 2, lambda *update: seen.append(update))
    assert results == {"job 0": 0, "job 1": 1, "job 2": 4, "job 3": 9}
    assert sorted(seen) == [(f"job {i}", None) for i in range(4)]


def test_costly_jobs_come_first(work, tmp_path):
    file = tmp_path / "order.txt"
    costs = {"b": 2.0, "d": 0.5, "a": 3.0, "c": 1.0}
    run_local([Job(n, work.note, (str(file), n), c) for n, c in costs.items()], 1)
    assert file.read_text().split() == ["a", "b", "c", "d"]


def test_every_update_arrives_before_its_job_is_done(work):
    seen = []
    jobs = [Job(name, work.talk, 20, 1.0) for name in ("x", "y", "z")]
    run_local(jobs, 1, lambda *update: seen.append(update))
    for name in "xyz":
        assert [m for n, m in seen if n == name] == [*((i, 20) for i in range(20)), None]


def test_reporting_outside_a_worker_does_nothing():
    launch.report("nobody listens")


@pytest.mark.skipif(sys.platform != "linux", reason="pins cores on Linux only")
def test_a_worker_keeps_to_one_core(work):
    cores = sorted(os.sched_getaffinity(0))
    results = run_local([Job(f"{i}", work.whereabouts, None, 1.0) for i in range(4)], 2)
    by_worker = dict(results.values())
    assert os.getpid() not in by_worker
    assert all(len(mine) == 1 and mine[0] in cores for mine in by_worker.values())
    if len(by_worker) == 2 and len(cores) > 1:
        assert len({tuple(mine) for mine in by_worker.values()}) == 2


def test_a_failing_job_is_named_and_stops_the_others(work, tmp_path):
    jobs = [
        Job("sleeper", work.sleep, str(tmp_path), 2.0),
        Job("bad", work.fail, str(tmp_path), 1.0),
    ]
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"^bad: ValueError: no luck$"):
        run_local(jobs, 2)
    assert time.monotonic() - start < 200
    (sleeper,) = pids(tmp_path)
    wait_until(lambda: not alive(sleeper))


def test_a_worker_that_dies_is_a_failed_run(work):
    with pytest.raises(RunFailed, match=r"^doomed: BrokenProcessPool: "):
        run_local([Job("doomed", work.die, None, 1.0)], 1)


def test_an_interruption_stops_the_workers(work, tmp_path):
    def interrupt(name, message):
        raise KeyboardInterrupt

    jobs = [
        Job("sleeper", work.sleep, str(tmp_path), 2.0),
        Job("quick", work.square, 1, 1.0),
    ]
    with pytest.raises(KeyboardInterrupt):
        run_local(jobs, 2, interrupt)
    wait_until(lambda: not any(map(alive, pids(tmp_path))))


SWEEP = """
import sys
sys.path.insert(0, sys.argv[1])
import some_work
from vvlm_jax.sweep.launch import Job, run_local

if __name__ == "__main__":
    run_local([Job(f"{i}", some_work.sleep, sys.argv[1], 1.0) for i in range(2)], 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent has died")
def test_workers_die_with_a_killed_parent(tmp_path):
    (tmp_path / "some_work.py").write_text(WORK)
    script = tmp_path / "sweep.py"
    script.write_text(textwrap.dedent(SWEEP))
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        wait_until(lambda: len(pids(tmp_path)) == 2 or parent.poll() is not None)
        workers = pids(tmp_path)
        assert len(workers) == 2
        assert all(map(alive, workers))
        assert parent.pid not in workers
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(map(alive, workers)), 20)


def test_a_job_is_shown_as_what_it_is():
    job = Job("x", len, "abc", 2.0)
    assert json.dumps([job.name, job.argument, job.cost]) == '["x", "abc", 2.0]'
