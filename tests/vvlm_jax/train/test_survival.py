"""Trainers in child processes, interrupted in several ways, end as uninterrupted ones do.

Compared bit by bit are the whole state before every step (parameters, optimiser), the batch, the
schedule, the lines of metrics, and the finished parameters.
"""

import contextlib
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests import patience
from tests.patience import LONG
from tests.processes import FAST_TO_COMPILE
from tests.vvlm_jax.train.test_loop import assert_same_run, lines
from vvlm_jax.override import to_json
from vvlm_jax.train import model_dir

ROOT = Path(__file__).parents[3]
STEPS = 12
KILLS = 24


class Children:
    """Client of `child.py`, which runs tools.train in forks of one process."""

    def __init__(self, folder):
        environ = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": FAST_TO_COMPILE}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.vvlm_jax.train.child", str(folder / "cache")],
            cwd=ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def start(self, **job):
        """Start a job; return its process id."""
        self.server.stdin.write(json.dumps(job) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self):
        """Wait for the job; return its exit code, or minus the signal that killed it."""
        return int(self.server.stdout.readline())

    def close(self):
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait(LONG)


@pytest.fixture(scope="module")
def children(tmp_path_factory):
    children = Children(tmp_path_factory.mktemp("children"))
    yield children
    children.close()


@pytest.fixture(scope="module")
def job(stage, tmp_path_factory):
    """Return job(folder, *options, …), which describes a run of 12 steps with two microbatches."""

    def make(folder, *options, **values):
        folder.mkdir(exist_ok=True)
        config = stage(folder / "run", "microbatches=2", "checkpoint_every=1", epochs=2)
        (folder / "c.py").write_text(
            "from vvlm_jax.config import TrainConfig\nfrom vvlm_jax.override import from_json\n"
            f"def config():\n    return from_json(TrainConfig, {to_json(config)!r})\n"
        )
        argv = ["--config", str(folder / "c.py")]
        argv += ["--set", *options] if options else []
        files = {"stderr": str(folder / "stderr"), "record": str(folder / "record")}
        return dict(argv=argv, watch=str(folder / "run" / "checkpoints"), **files, **values)

    return make


@pytest.fixture(scope="module")
def straight(children, job, tmp_path_factory):
    """Return the folder of an uninterrupted run, with its record of every step."""
    folder = tmp_path_factory.mktemp("straight")
    children.start(**job(folder))
    assert children.end() == 0, (folder / "stderr").read_text()
    steps = records(folder)
    assert [line["step"] for line in steps] == list(range(STEPS))
    return folder


def records(folder):
    """Return the recorded steps, without a last line that a kill truncated."""
    text = (folder / "record").read_text() if (folder / "record").exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def assert_ends_alike(folder, straight):
    """Assert that every step and the end equal those of the uninterrupted run."""
    expected, seen = {line["step"]: line for line in records(straight)}, records(folder)
    assert {line["step"] for line in seen} == set(expected)
    for line in seen:
        assert line == expected[line["step"]]
    assert_same_run(folder / "run", straight / "run")


def wait_until(condition, children):
    patience.wait_until(condition, lambda: children.server.poll() is None)


def hold(folder, step):
    """Return a job's `hold`: it waits in this step, counted from 0, until `open_gate`."""
    return [step, str(folder / "gate")]


def open_gate(folder):
    (folder / "gate").touch()


def whole_steps(folder):
    found = (folder / "run" / "checkpoints").glob("*/manifest.json")
    return sorted(int(path.parent.name) for path in found)


# Resumed in another process.


@pytest.mark.slow(reason="starts a trainer several times")
@pytest.mark.parametrize("every", [1, 5])
def test_k_steps_and_a_resume_are_n_steps(children, job, straight, tmp_path, every):
    """Stop in a step, at a save (every 1; the continuation then recompiles) or between two."""
    held = dict(hold=hold(tmp_path, 8))
    pid = children.start(**job(tmp_path, f"checkpoint_every={every}", **held))
    wait_until(lambda: len(records(tmp_path)) == 9 and whole_steps(tmp_path), children)
    os.kill(pid, signal.SIGKILL)
    assert children.end() == -signal.SIGKILL
    begun, newest = len(records(tmp_path)), whole_steps(tmp_path)[-1]
    children.start(**job(tmp_path, f"checkpoint_every={every}", compile=every == 1))
    assert children.end() == 0, (tmp_path / "stderr").read_text()
    assert records(tmp_path)[begun]["step"] == newest
    assert_ends_alike(tmp_path, straight)


# SIGKILL.


def rubbish(folder):
    """Return {(kind, name, time)} of incomplete saves, manifests and clean-ups in the folder."""
    there, found = folder / "run" / "checkpoints", set()
    newest = max(whole_steps(folder), default=-1)
    for path in there.glob("*"):
        if not path.name.isdigit():
            found.add(("save", path.name, path.stat().st_ctime_ns))
        elif not (path / "manifest.json").exists():
            kind = "manifest" if int(path.name) > newest else "clean-up"
            found.add((kind, path.name, path.stat().st_ctime_ns))
    return found


BY_THEMSELVES = {"any": 150, "save": 25, "manifest": 6, "clean-up": 30}
"""Kinds of operations before which a child dies, and how many of them it survives at most."""


def goes_on(folder, begun):
    return len(records(folder)) > begun or model_dir.is_finished(folder / "run")


@pytest.mark.slow(reason="kills the trainer 24 times")
def test_a_run_killed_at_any_instant_ends_as_an_uninterrupted_one(
    children, job, straight, tmp_path
):
    rng, kills, instants, runs = random.Random(0), 0, Counter(), 0
    kinds = itertools.cycle([*BY_THEMSELVES.items(), ("time", 0), ("time", 0)])
    while kills < KILLS:
        folder, code = tmp_path / str(runs), None
        runs += 1
        while code != 0:
            kind, operations = next(kinds) if kills < KILLS else (None, 0)
            before = rubbish(folder)
            at = dict(kind=kind, kill_at=rng.randrange(1, operations)) if operations else {}
            pid = children.start(**job(folder, **at))
            if kind == "time":
                # While it starts, or after its first step.
                if rng.random() < 0.8:
                    wait_until(functools.partial(goes_on, folder, len(records(folder))), children)
                    time.sleep(rng.random() * 0.5)
                else:
                    time.sleep(rng.random() * 2)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            code = children.end()
            assert code in (0, -signal.SIGKILL), (folder / "stderr").read_text()
            kills += code != 0
            instants.update(kind for kind, *_ in rubbish(folder) - before)
        assert_ends_alike(folder, straight)
    print(f"{kills} kills, of them within a {dict(instants)}, in {runs} runs")
    assert kills >= KILLS
    assert min(instants[kind] for kind in ("save", "manifest", "clean-up")) >= 1, instants
    assert sum(instants.values()) >= 8, instants


# SIGTERM and Ctrl-C.


def test_signals_lose_nothing_and_have_exit_codes_of_their_own(children, job, straight, tmp_path):
    """One run: SIGTERM before its first step, SIGTERM in a step, Ctrl-C, and then to its end."""
    options = ("checkpoint_every=0",)  # so that what is there was saved because of a signal
    pid = children.start(**job(tmp_path, *options, hold=hold(tmp_path, 0)))
    wait_until(lambda: (tmp_path / "run" / "config.json").exists(), children)
    os.kill(pid, signal.SIGTERM)
    open_gate(tmp_path)  # where it was on the way into the first step
    assert children.end() == 75
    begun = len(records(tmp_path))
    assert len(whole_steps(tmp_path)) == begun <= 1

    (tmp_path / "gate").unlink()
    (tmp_path / "stderr").unlink()
    pid = children.start(**job(tmp_path, *options, hold=hold(tmp_path, 4)))
    wait_until(lambda: len(records(tmp_path)) == 5, children)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)  # changes nothing
    open_gate(tmp_path)
    assert children.end() == 75
    step = whole_steps(tmp_path)[-1]
    assert step == len(records(tmp_path)) == 5  # the step that was begun is saved
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert line.endswith(f"stopped on request, with {step} steps saved; run the same command again "
                         "to continue")  # fmt: skip

    (tmp_path / "gate").unlink()
    pid = children.start(**job(tmp_path, hold=hold(tmp_path, 8)))
    wait_until(lambda: whole_steps(tmp_path)[-1] >= 7, children)
    saved = whole_steps(tmp_path)[-1]
    start = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert children.end() == 130
    assert time.monotonic() - start < 100  # a second on an idle machine
    assert whole_steps(tmp_path)[-1] >= saved
    (line,) = (tmp_path / "stderr").read_text().split("\n")[-2:-1]
    assert line == "interrupted; run the same command again to continue"

    children.start(**job(tmp_path))
    assert children.end() == 0, (tmp_path / "stderr").read_text()
    assert len(records(tmp_path)) <= STEPS + 2  # only what Ctrl-C cut off was done twice
    assert_ends_alike(tmp_path, straight)


# A config that changes on the way.


@pytest.mark.slow(reason="starts a trainer four times")
def test_another_option_needs_to_be_allowed_and_the_story_keeps_the_earlier(
    children, job, tmp_path
):
    pid = children.start(**job(tmp_path, hold=hold(tmp_path, 4)))
    wait_until(lambda: len(whole_steps(tmp_path)) >= 2, children)
    os.kill(pid, signal.SIGTERM)
    open_gate(tmp_path)
    assert children.end() == 75
    step = whole_steps(tmp_path)[-1]
    (tmp_path / "stderr").unlink()
    other = ("optim.clip_norm=0.5", "log_every=2")
    refused = job(tmp_path, *other)
    children.start(**refused)
    assert children.end() == 2
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert line.endswith(
        "run holds a run with optim.clip_norm = 1.0, not 0.5; choose another out_dir, or "
        "continue with --allow optim.clip_norm"
    )
    allowed = {**refused, "argv": [*refused["argv"], "--allow", "optim.clip_norm"]}
    children.start(**allowed)
    assert children.end() == 0, (tmp_path / "stderr").read_text()
    story = [json.loads(t) for t in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (change,) = [line for line in story if line["event"] == "config"]
    assert change["step"] == step
    assert change["changed"] == {"optim.clip_norm": [1.0, 0.5], "log_every": [1, 2]}
    assert change["earlier"]["optim"]["clip_norm"] == 1.0
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["optim"]["clip_norm"] == 0.5
    assert model_dir.is_finished(tmp_path / "run")
    children.start(**refused)  # the finished run is of this config now
    assert children.end() == 0
    assert lines(tmp_path / "run")[-1]["step"] == STEPS
