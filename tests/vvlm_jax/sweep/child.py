"""Workers for the tests: processes of their own that do cheap jobs by the real code. No jax.

python -m tests.vvlm_jax.sweep.child pull STORE          one worker, until nothing is left
python -m tests.vvlm_jax.sweep.child job STORE JOB       one job; exits with its code
python -m tests.vvlm_jax.sweep.child drive STORE N       a driver with N workers of `pull`
python -m tests.vvlm_jax.sweep.child kill STORE N        N workers killed at random instants, and
                                                         one that is left to end
python -m tests.vvlm_jax.sweep.child die STORE           workers that die before their first, second
                                                         … operation on files, until one does not
"""

import json
import os
import random
import signal
import sys
import time
import urllib.request
from pathlib import Path

from vvlm_jax.sweep.launch import local
from vvlm_jax.sweep.store import store
from vvlm_jax.sweep.store.store import Store
from vvlm_jax.sweep.worker import Interrupted, Stop, pull, run_job


def square(context):
    """Do a job of three steps and keep each, as training keeps checkpoints; record every start.

    With a `gate`, the first step writes `at_gate` and lasts until that file exists or a signal asks
    the job to stop.
    """
    argument = context.job.argument
    context.folder.mkdir(parents=True, exist_ok=True)
    with (context.folder / "ran").open("a") as ran:
        ran.write(f"{os.getpid()}\n")
    steps = context.folder / "steps"
    done = len(steps.read_text()) if steps.exists() else 0
    for step in range(done, 3):
        if context.should_stop(step):
            raise Interrupted
        time.sleep(argument.get("seconds", 0) / 3)
        if gate := argument.get("gate"):
            (context.folder / "at_gate").touch()
            while not (step or context.stop.asked or os.path.exists(gate)):
                time.sleep(0.005)
        steps.write_text("x" * (step + 1))
    return {"scores": {"task": argument["value"] ** 2}, "steps": 3}


def fail(context):
    raise ValueError("first line\nno luck")


def die(context):
    os.kill(os.getpid(), signal.SIGKILL)


KINDS = {"evaluate": square, "square": square, "fail": fail, "die": die}
OPERATIONS = {
    *("open", "os.mkdir", "os.rename", "os.remove", "os.scandir", "os.link", "os.utime"),
}


def die_before(n: int) -> None:
    """Send this process SIGKILL before the n-th operation on the store's files."""
    left = n

    def hook(event, args):
        nonlocal left
        if event in OPERATIONS and args and sys.argv[2] in str(args[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fork(path: str, deaths: int | None = None, kinds=KINDS) -> int:
    """Start a worker that dies before its n-th operation; return its process id."""
    if (pid := os.fork()) == 0:
        if deaths is not None:
            die_before(deaths + 1)
        pull(Store.open(path), kinds, Stop(), poll=0.01)
        os._exit(0)
    return pid


def mortal() -> dict:
    """Return the kinds of a worker that kills itself after its second job, so that work is left
    even if its killer comes late.
    """
    done = 0

    def do(context):
        nonlocal done
        result, done = square(context), done + 1
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return KINDS | {"square": do}


def has_ended(pid: int) -> bool:
    """Return whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(path: str, count: int) -> bool:
    """Start and kill workers, each at most 0.25 s after its first claim; return whether all were
    working when they were killed.
    """
    rng = random.Random(7)
    for _ in range(count):
        before = entries(path)
        pid = fork(path, kinds=mortal())
        while entries(path) == before and not has_ended(pid):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.25))
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] != signal.SIGKILL:
            return False
    return True


def entries(path: str) -> int:
    return len(list(Path(path).glob("runs/*/jobs/*.json")))


def kill_at_requests(path: str, count: int) -> bool:
    """Do the same for a store in a bucket, each after a few requests; a job takes a dozen.

    Requests are counted, not seconds, because a server on a busy machine may be slow.
    """
    rng = random.Random(7)
    Store.open(path)  # what it imports is there for all forks
    for _ in range(count):
        made = answered()["created"]
        pid = fork(path, kinds=mortal())
        while answered()["created"] == made and not has_ended(pid):
            time.sleep(0.005)
        last = answered()[""] + rng.randint(0, 24)
        while answered()[""] < last and not has_ended(pid):
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        if os.waitpid(pid, 0)[1] != signal.SIGKILL:
            return False
    return True


def answered() -> dict:
    with urllib.request.urlopen(f"{os.environ['STORAGE_EMULATOR_HOST']}/control") as answer:
        return json.load(answer)


def main() -> int:
    what, path, *more = sys.argv[1:]
    if what == "die":
        store.MAX_DEATHS = 10**6
        deaths, status = 0, signal.SIGKILL
        while status == signal.SIGKILL:
            status = os.waitpid(fork(path, deaths), 0)[1]
            deaths += status == signal.SIGKILL
        print(deaths)
        return os.waitstatus_to_exitcode(status)
    if what == "kill":
        store.MAX_DEATHS = 10**6  # one job may be begun again and again
        how = kill_at_requests if "://" in path else kill
        if not how(path, int(more[0])):
            return 1
        return os.waitstatus_to_exitcode(os.waitpid(fork(path), 0)[1])
    opened, stop = Store.open(path), Stop()
    if what == "drive":
        command = [sys.executable, "-m", "tests.vvlm_jax.sweep.child", "pull", path]
        shares = [local.Share({}, frozenset(os.sched_getaffinity(0)), "")] * int(more[0])
        local.LOOK_EVERY = 0.05
        return 0 if local.drive(opened, command, shares) else 1
    signal.signal(signal.SIGTERM, stop)
    if what == "job":
        code, line = run_job(opened, more[0], KINDS, stop)
        print(line)
        return code
    pull(opened, KINDS, stop, poll=0.02)
    return 0


if __name__ == "__main__":
    sys.exit(main())
