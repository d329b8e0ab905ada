"""The store: what a job's journal says, who may change it, and what is read."""

import dataclasses
import json
import os
import threading
import time
from pathlib import Path

import pytest

from vvlm_jax.config import ConfigError
from vvlm_jax.sweep.store import backends, journal, store
from vvlm_jax.sweep.store.store import Job, NotClaimed, Store

JOBS = [
    Job("a/train", "square", {"value": 2}, cost=3.0),
    Job("a/evaluate", "square", {"value": 3}, ("a/train",)),
    Job("b/train", "square", {"value": 4}),
]
ELSEWHERE = ["another boot", "pid:[1]", 1, "1"]


@pytest.fixture
def sweep(tmp_path):
    return Store.create(tmp_path / "s", "test", JOBS)


def phases(sweep):
    return {id: state.phase for id, state in Store.open(sweep.path).states().items()}


def claim_elsewhere(sweep, job_id, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(journal, "identity", lambda: ELSEWHERE)
        return sweep.claim(job_id)


@pytest.mark.light
def test_a_job_goes_from_ready_to_done(sweep):
    assert phases(sweep) == {"a/train": "ready", "a/evaluate": "waiting", "b/train": "ready"}
    claim = sweep.claim("a/train")
    assert phases(sweep)["a/train"] == "running"
    assert sweep.end(claim, journal.DONE, result={"loss": 1.5})
    assert phases(sweep) == {"a/train": "done", "a/evaluate": "ready", "b/train": "ready"}
    assert sweep.state("a/train").entry.body == {"result": {"loss": 1.5}}
    claim = sweep.claim("a/evaluate")
    assert sweep.end(claim, journal.STOPPED)
    assert phases(sweep)["a/evaluate"] == "ready"


def test_only_one_may_claim_and_only_its_holder_may_end(sweep):
    first = sweep.claim("a/train")
    with pytest.raises(NotClaimed, match="a/train: claimed by ") as e:
        Store.open(sweep.path).claim("a/train")
    assert e.value.phase == "running"
    assert sweep.cancel("a/train")
    assert not sweep.end(first, journal.DONE, result={}), "the claim is lost"
    assert phases(sweep)["a/train"] == "cancelled"
    assert phases(sweep)["a/evaluate"] == "blocked"


def test_failures_are_kept_until_a_retry(sweep):
    sweep.end(sweep.claim("a/train"), journal.FAILED, error="ValueError: no luck")
    assert phases(sweep) == {"a/train": "failed", "a/evaluate": "blocked", "b/train": "ready"}
    with pytest.raises(NotClaimed, match="failed: ValueError: no luck; vvlm sweep retry"):
        sweep.claim("a/train")
    assert sweep.retry("a/train")
    assert not sweep.retry("b/train"), "it has not failed"
    assert phases(sweep)["a/train"] == "ready"
    assert sweep.end(sweep.claim("a/train"), journal.DONE, result={})
    assert not sweep.cancel("a/train"), "what is done stays done"


@pytest.mark.parametrize("links", [True, False])
def test_a_number_is_made_once_with_and_without_hard_links(tmp_path, monkeypatch, links):
    if not links:

        def no_links(*_):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", no_links)
    file = tmp_path / "jobs" / "train.0001.json"
    assert journal.create(file, "claim", worker="me")
    assert not journal.create(file, "claim", worker="you")
    assert journal.read(file, 1).body == {"worker": "me"}
    assert [p.name for p in file.parent.iterdir()] == [file.name]


# Leases.


def test_a_claim_from_elsewhere_lasts_its_lease_by_the_stores_clock(sweep, monkeypatch):
    claim = claim_elsewhere(sweep, "a/train", monkeypatch)
    now = journal.now(sweep.path / "clock")
    for age, phase in ((store.LEASE / 2, "running"), (store.LEASE + 1, "ready")):
        os.utime(claim.file, (now - age, now - age))
        assert phases(sweep)["a/train"] == phase
    second = sweep.claim("a/train")
    assert not sweep.end(claim, journal.DONE, result={"of": "the first"})
    assert sweep.end(second, journal.DONE, result={"of": "the second"})
    assert sweep.state("a/train").entry.body["result"] == {"of": "the second"}


@pytest.mark.parametrize("minutes", [-30, 0, 30])
def test_clocks_of_hosts_do_not_matter(sweep, monkeypatch, minutes):
    # The store's server is half an hour off: all times of its files are. Hosts' clocks are not
    # even read.
    clock, ago = time.time, 0.0

    def touched(disk, path):
        there = clock() + 60 * minutes - ago
        os.utime(path, (there, there))

    me = threading.get_ident()  # others may have to do with other tests

    def no_clock():
        if threading.get_ident() == me:
            raise AssertionError("a host's clock was read")
        return clock()

    monkeypatch.setattr(backends.Disk, "touch", touched)
    claim = claim_elsewhere(sweep, "a/train", monkeypatch)
    for ago, phase in ((store.LEASE / 2, "running"), (store.LEASE + 1, "ready")):  # noqa: B007
        journal.touch(claim.file)
        ago = 0.0
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", no_clock)
            assert sweep.states()["a/train"].phase == phase
            assert sweep.state("a/train").phase == phase


def test_a_slow_reader_takes_over_no_live_claim(sweep, monkeypatch):
    """The claim's worker touches it between the reader's look at the claim and at the clock."""
    claim, read = claim_elsewhere(sweep, "a/train", monkeypatch), journal.read

    def slowly(*args):
        entry = read(*args)
        journal.touch(claim.file)
        return entry

    monkeypatch.setattr(journal, "read", slowly)
    for look in (sweep.states, lambda: {"a/train": sweep.state("a/train")}):
        os.utime(claim.file, (0, 0))
        assert look()["a/train"].phase == "running"
    os.utime(claim.file, (0, 0))
    with pytest.raises(NotClaimed, match="claimed by"):
        sweep.claim("a/train")


def test_a_dead_process_of_this_machine_loses_its_claim_at_once(sweep, monkeypatch):
    life = journal.identity()
    with monkeypatch.context() as patch:
        patch.setattr(journal, "identity", lambda: [*life[:3], "0"])  # the id, but another start
        sweep.claim("a/train")
    assert phases(sweep)["a/train"] == "ready"
    assert sweep.claim("a/train").number == 2


def test_a_job_whose_workers_die_again_and_again_has_failed(sweep, monkeypatch):
    for _ in range(store.MAX_DEATHS):
        claim = claim_elsewhere(sweep, "a/train", monkeypatch)
        os.utime(claim.file, (0, 0))
    with pytest.raises(NotClaimed, match="died 10 times in a row"):
        sweep.claim("a/train")
    assert phases(sweep)["a/train"] == "failed"


def test_a_truncated_entry_is_an_abandoned_claim(sweep):
    file = journal.entry_file(sweep.path / "runs" / "a" / "jobs", "train", 1)
    file.parent.mkdir(parents=True)
    file.write_text('{"event": "do')
    assert phases(sweep)["a/train"] == "running"
    os.utime(file, (0, 0))
    assert sweep.claim("a/train").number == 2


# The folder.


def test_a_launch_again_takes_up_the_store_and_may_add_jobs(sweep):
    sweep.end(sweep.claim("a/train"), journal.DONE, result={})
    more = [*JOBS[:2], dataclasses.replace(JOBS[2], cost=5.0), Job("c/train", "square")]
    Store.create(sweep.path, "test", more)
    assert phases(sweep)["a/train"] == "done"
    assert phases(sweep)["c/train"] == "ready"


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(name="other"), 'holds a sweep with name = "test", not "other"'),
        (dict(shared={"a": {"b": 1}}), "holds a sweep with shared.a = null, not"),
        (dict(jobs=JOBS[:2]), "holds a sweep with b/train, which is not in this one"),
        (dict(jobs=[*JOBS[:2], Job("b/train", "other")]), r"whose b/train has \"square\", not"),
    ],
)
def test_another_sweep_is_refused_and_nothing_changes(sweep, change, message):
    before = contents(sweep.path)
    with pytest.raises(ConfigError, match=message):
        Store.create(sweep.path, **{"name": "test", "jobs": JOBS, **change})
    assert contents(sweep.path) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 2}', "written by another version of this program"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"version": 1, "name": "test"}', "damaged"),
    ],
)
def test_a_store_of_another_version_or_a_damaged_one_is_refused(tmp_path, text, message):
    (tmp_path / "sweep.json").write_text(text)
    for act in (lambda: Store.open(tmp_path), lambda: Store.create(tmp_path, "test", JOBS)):
        with pytest.raises(ConfigError, match=message):
            act()
    assert contents(tmp_path) == {tmp_path / "sweep.json": text.encode()}


def test_renew_leaves_jobs_out_and_takes_them_up_again(tmp_path):
    (tmp_path / "lock").touch()
    a, b = Job("a/train", "train", cost=1.0), Job("b/train", "train", {"x": 1}, ("a/train",))
    store = Store.renew(tmp_path, "study", [a, b], shared={"seed": 0})
    store.end(store.claim("a/train"), journal.DONE, result={})
    assert list(Store.renew(tmp_path, "study", [b], shared={"seed": 0}).jobs) == ["b/train"]
    again = Store.renew(tmp_path, "study", [b, a], shared={"folder": "moved"})
    assert {id: state.phase for id, state in again.states().items()} == {
        "a/train": "done", "b/train": "ready",
    }  # fmt: skip
    assert Store.open(tmp_path).shared == {"folder": "moved"}


def test_folders_without_a_sweep_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no sweep here"):
        Store.open(tmp_path)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds something else"):
        Store.create(tmp_path, "test", JOBS)
    assert Store.create(tmp_path / "new", "test", JOBS, dry_run=True) is None
    assert not (tmp_path / "new").exists()


# What is read.


def count_reads(sweep, monkeypatch):
    """Return how many journal entries a look at a store opens, by a process that begins."""
    opened = []
    read = journal.read
    monkeypatch.setattr(journal, "read", lambda *a: opened.append(a) or read(*a))
    states = Store.open(sweep.path).states()
    monkeypatch.setattr(journal, "read", read)
    return len(opened), states


def test_results_are_read_once_and_then_from_the_index(tmp_path, monkeypatch):
    jobs = [Job(f"r{i}/train", "square") for i in range(store.INDEX_AFTER + 20)]
    sweep = Store.create(tmp_path / "s", "many", jobs)
    for job in jobs[:-10]:
        claim = sweep.claim(job.id)
        sweep.end(claim, journal.DONE, result={"value": job.id})
    first, states = count_reads(sweep, monkeypatch)
    assert first == len(jobs) - 10, "an entry that has not begun costs no read"
    again, same = count_reads(sweep, monkeypatch)
    assert (again, same) == (0, states)
    # A run that is removed by hand and done again has an entry of the same number.
    file = journal.entry_file(sweep.path / "runs" / "r0" / "jobs", "train", 2)
    file.write_text(json.dumps({"event": "done", "result": {"value": "new"}}))
    again, states = count_reads(sweep, monkeypatch)
    assert (again, states["r0/train"].entry.body) == (1, {"result": {"value": "new"}})
    (sweep.path / "index.json").write_text("{")
    assert count_reads(sweep, monkeypatch)[1] == states
