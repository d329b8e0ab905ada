"""Stores in buckets, over HTTP: one winner however answers get lost, ages by the server's clock."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.patience import LONG, wait_until
from vvlm_jax.config import ConfigError
from vvlm_jax.exit_codes import Exit
from vvlm_jax.storage import bucket
from vvlm_jax.storage.bucket import Key, Unreachable
from vvlm_jax.sweep import worker
from vvlm_jax.sweep.store import backends, journal, sweep_json, sync
from vvlm_jax.sweep.store.store import Job, NotClaimed, Store
from vvlm_jax.sweep.store.sync import FILES, RunSync, remove_left_behind
from vvlm_jax.sweep.worker import Hosts, Stop, run_job

# A broken connection is left to the collector by requests and its urllib3.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
        "ignore:unclosed <socket:ResourceWarning",
    ),
]
ROOT = Path(__file__).parents[3]
KILLS = 12  # of each kind
ELSEWHERE = ["another boot", "pid:[1]", 1, "1"]


def start(*argv):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.vvlm_jax.sweep.child", *map(str, argv)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    try:
        out, err = process.communicate(timeout=LONG)
    finally:
        process.kill()
    assert process.returncode == code, err
    return out


def squares(url, count, seconds=0.0, **options):
    jobs = [Job(f"r{i}/train", "square", dict(value=i, seconds=seconds)) for i in range(count)]
    jobs.append(Job("r0/check", "square", dict(value=10), ("r0/train",)))
    return Store.create(url, "squares", jobs, **options)


def assert_whole(store):
    """Assert that every job is done once, with its own result."""
    for id, state in Store.open(store.path).states().items():
        assert state.phase == "done", (id, state)
        value = store.jobs[id].argument["value"]
        assert state.entry.body["result"]["scores"] == {"task": value**2}
    folder = store.path / "jobs"
    done = [
        file.name
        for file in backends.of(folder).listing(folder)
        if journal.read(file.path, 0).event == journal.DONE
    ]
    assert len(done) == len(store.jobs)


# One request.


@pytest.mark.parametrize("faults", [[], ["lost"], ["503"], ["429", "lost"], ["lost", "503"]])
def test_of_many_that_create_an_object_one_wins_though_answers_get_lost(url, server, faults):
    file = Key.of(url) / "train.0001.json"
    server(next=list(faults))
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda i: (i, journal.create(file, "claim", worker=i)), range(4)))
    winners = [i for i, made in told if made]
    assert [journal.read(file, 1).body["worker"]] == winners
    assert not journal.create(file, "claim", worker="late")


def test_a_claim_is_touched_though_the_answer_is_lost_and_never_made_again(url, server):
    file = Key.of(url) / "train.0001.json"
    journal.create(file, "claim", worker="me")
    before = journal.read(file, 1)
    time.sleep(1.01)
    server(next=["lost"])
    with pytest.raises(Unreachable):
        journal.touch(file)
    journal.touch(file)
    after = journal.read(file, 1)
    assert after.touched > before.touched
    assert after.body == before.body
    file.bucket.delete(file)
    with pytest.raises(FileNotFoundError):
        journal.touch(file)
    assert not file.exists()


def test_a_store_that_gives_no_answer_is_left_in_time(url, server, monkeypatch):
    monkeypatch.setattr(bucket, "PATIENCE", 0.5)
    store = squares(url, 1)
    server(share=0, next=["503"] * 100)
    with pytest.raises(Unreachable, match="cannot be reached .*503") as e:
        store.claim("r0/train")
    assert str(e.value.filename) == f"{url.partition(':')[0]}://bucket"


@pytest.mark.light
def test_a_listing_of_several_pages_has_all_and_a_name_that_begins_another(url):
    folder = Key.of(url)
    names = [f"{i:04d}" for i in range(30)]
    folder.bucket.each(lambda name: folder.bucket.replace(folder / name, name), names)
    folder.bucket.replace(Key.of(f"{url}-beside") / "x", "")
    assert [item.name for item in folder.bucket.listing(folder)] == names
    assert not (folder / "000").exists()
    assert (folder / "0001").exists()


# The clock.


@pytest.mark.parametrize("minutes", [-30, 30])
def test_a_claims_age_is_by_the_servers_clock(url, server, monkeypatch, minutes):
    server(minutes=minutes)
    store = squares(url, 1, lease=300.0)
    with monkeypatch.context() as patch:
        patch.setattr(journal, "identity", lambda: ELSEWHERE)
        first = store.claim("r0/train")
    fresh = Store.open(url)
    assert fresh.states()["r0/train"].phase == "running"
    with pytest.raises(NotClaimed, match="claimed by"):
        fresh.claim("r0/train")
    # Later, as the store has it.
    bucket = store.path.bucket
    seconds, at = bucket._clock
    bucket._clock = seconds + 3600.0, at
    second = Store.open(url).claim("r0/train")
    assert second.number == 2
    assert not store.end(first, journal.DONE, result={})
    assert store.end(second, journal.DONE, result={"scores": {}})


def test_the_clock_is_never_ahead_of_what_the_server_gives_next(url):
    folder = Key.of(url) / "clock"
    start = time.monotonic()
    early = journal.now(folder)
    between = time.monotonic()
    folder.bucket.replace(folder / "later", "")
    assert early <= folder.bucket.read(folder / "later")[1]
    time.sleep(0.2)
    passed = time.monotonic() - between
    assert passed - 0.01 < journal.now(folder) - early < time.monotonic() - start + 0.01


# Sweeps.


def test_workers_that_race_with_faults_do_every_job_once(url, server):
    store = squares(url, 10)
    server(share=0.05)
    for process in [start("pull", url) for _ in range(2)]:
        finish(process)
    counts = server()
    server(share=0)
    assert counts.get("lost", 0) + counts.get("503", 0) + counts.get("429", 0) > 0
    assert_whole(store)
    ran = {run: (store.folder(run) / "ran").read_text().split() for run in ("r0", "r5")}
    assert {run: len(times) for run, times in ran.items()} == {"r0": 2, "r5": 1}


def test_workers_killed_at_random_lose_and_double_nothing(url, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    store = squares(url, 24)
    finish(start("kill", url, KILLS))
    assert_whole(store)
    assert not list(tmp_path.glob("vvlm_jax-sweep-*")), "what dead workers left was removed"


def test_a_worker_takes_up_what_another_has_left(url):
    store = squares(url, 1)
    stop, seen = Stop(asked=True), []
    code, _ = run_job(store, "r0/train", {"square": lambda c: train(c, stop, seen)}, stop)
    assert code == 75
    code, _ = run_job(store, "r0/train", {"square": lambda c: train(c, Stop(), seen)}, Stop())
    assert code == Exit.DONE
    assert seen == [[], ["checkpoints/1/data/a", "checkpoints/1/manifest.json", "log"]]
    files = {item.name for item in store.path.bucket.listing(store.folder("r0"))}
    assert files == {"log", "params/a", FILES}, "an old checkpoint has gone here, too"


def train(context, stop, seen):
    from vvlm_jax.sweep.worker import Interrupted

    folder = context.folder
    seen.append(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()))
    write(folder / "log", "x")
    if stop.asked:
        write(folder / "checkpoints/1/data/a", "weights")
        write(folder / "checkpoints/1/manifest.json", "{}")
        write(folder / "checkpoints/2/data/a", "not whole: no manifest")
        write(folder / "params.orbax-checkpoint-tmp/a", "not whole")
        raise Interrupted
    (folder / "checkpoints/1/manifest.json").unlink()
    (folder / "checkpoints/1/data/a").unlink()
    write(folder / "params/a", "weights")
    return {"scores": {}}


def write(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_files_of_an_interrupted_upload_are_ignored(url, monkeypatch):
    store = squares(url, 1)
    copies = RunSync(store.folder, "r0", lambda: True, 60.0)
    sent = []

    def upload(file, key):
        if len(sent) == 2:
            raise Unreachable(5, "cannot be reached", "s3://bucket")
        sent.append(key.name)
        return real(file, key)

    real = store.path.bucket.upload
    with copies:
        for name in ("data/a", "data/b", "data/c", "manifest.json"):
            write(copies.folder("r0") / "checkpoints/1" / name, name)
        with monkeypatch.context() as patch:
            patch.setattr(store.path.bucket, "upload", upload)
            with pytest.raises(Unreachable):
                copies.finish()
    assert sent == ["a", "b"]
    with RunSync(store.folder, "r0", lambda: True, 60.0) as again:
        assert not list(again.folder("r0").rglob("*"))
    assert not (store.folder("r0") / "checkpoints").is_dir(), "it is removed: it may be large"


def test_a_worker_that_lost_its_claim_uploads_nothing(url):
    store = squares(url, 1)
    with RunSync(store.folder, "r0", lambda: False, 60.0) as copies:
        write(copies.folder("r0") / "log", "of a lost claim")
        copies.finish()
    assert not store.folder("r0").is_dir()


def test_a_copy_of_a_living_worker_is_left_alone(url, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = squares(url, 1)
    life = journal.identity()
    with monkeypatch.context() as patch:  # a process of this id that started at another time
        patch.setattr(journal, "identity", lambda: [*life[:3], "0"])
        (tmp_path / f"{sync.local_prefix()}x").mkdir()
    (tmp_path / "vvlm_jax-sweep-elsewhere-1-0-x").mkdir()
    with RunSync(store.folder, "r0", lambda: True, 60.0) as copies:
        remove_left_behind()
        assert copies.folder("r0").is_dir()
        assert len(list(tmp_path.iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["vvlm_jax-sweep-elsewhere-1-0-x"]


def test_metrics_are_uploaded_while_a_job_runs(url, monkeypatch):
    store, there, looks = squares(url, 1), threading.Event(), []

    def quick_sync(*args):
        *others, seconds = args
        looks.append(seconds)
        return RunSync(*others, seconds / 100)  # this test has no half a minute

    def slow(context):
        write(context.folder / "metrics.jsonl", '{"step": 1}\n{"step": 2}\n')
        assert there.wait(LONG)
        return {"scores": {}}

    monkeypatch.setattr(worker, "RunSync", quick_sync)
    with ThreadPoolExecutor(1) as threads:
        job = threads.submit(run_job, store, "r0/train", {"square": slow}, Stop())
        file = store.folder("r0") / "metrics.jsonl"
        wait_until(file.exists, lambda: not job.done())
        assert looks == [store.lease / 4]
        assert backends.of(file).tail(file, 12) == b'{"step": 2}\n'
        there.set()
        assert job.result()[0] == Exit.DONE


def test_results_of_many_jobs_are_in_one_listing_and_the_index(url, server, monkeypatch):
    from vvlm_jax.sweep.store import store as store_module

    monkeypatch.setattr(store_module, "INDEX_AFTER", 5)
    store = squares(url, 12)
    for i in range(12):
        store.end(store.claim(f"r{i}/train"), journal.DONE, result={"scores": {"task": i}})
    first = Store.open(url).states()
    assert (store.path / "index.json").exists()
    server(share=0)
    assert Store.open(url).states() == first
    requests = {"s3": 3, "gs": 5}[url[:2]]  # the document, the index, one listing
    assert server()[""] == requests


# What cannot be.


@pytest.mark.parametrize(
    ("address", "error", "line"),
    [
        ("az://bucket/s", ConfigError, "az://bucket/s: unknown scheme; must be a folder, gs://"),
        ("s3://bucket", ConfigError, "s3://bucket: must be s3://BUCKET/FOLDER"),
        ("gs:///s", ConfigError, "must be gs://BUCKET/FOLDER"),
        ("gs://bucket/s", ConfigError, "gs://bucket/s: no sweep here"),
        ("s3://bucket/s", ConfigError, "s3://bucket/s: no sweep here"),
        ("gs://nobodys/s", OSError, "no such bucket"),
        ("s3://nobodys/s", OSError, "no such bucket"),
        ("gs://forbidden/s", PermissionError, "no permission .*storage.objects"),
        ("s3://forbidden/s", PermissionError, "no permission .*AccessDenied"),
    ],
)
def test_addresses_that_hold_no_sweep(server, address, error, line):
    for spelled in (address, Path(address)):  # which has one slash less
        with pytest.raises(error, match=line):
            Store.open(spelled)


@pytest.mark.parametrize(
    ("scheme", "module", "line"),
    [
        ("gs", "gcs", r"needs google-cloud-storage: pip install 'vvlm_jax\[gs\]'"),
        ("s3", "s3", r"needs boto3: pip install 'vvlm_jax\[s3\]'"),
    ],
)
def test_a_library_that_is_not_installed(monkeypatch, scheme, module, line):
    monkeypatch.setitem(sys.modules, f"vvlm_jax.storage.{module}", None)
    with pytest.raises(ConfigError, match=line):
        Store.open(f"{scheme}://another-bucket/s")


def test_a_server_without_preconditions_is_found_out(url, server):
    server(share=0, deaf=True)
    with pytest.raises(ConfigError, match="creates the same object twice"):
        squares(url, 1)
    assert not Key.of(url).is_dir(), "and nothing is left there"


def test_a_folder_that_holds_something_else_is_refused(url):
    folder = Key.of(url)
    folder.bucket.replace(folder / "thesis.tex", "x")
    with pytest.raises(ConfigError, match="holds something else"):
        squares(url, 1)
    assert sweep_json.folder(Path("runs/s")) == Path("runs/s")


def test_several_hosts_need_a_filesystem(url):
    store = squares(url, 1)
    with pytest.raises(ConfigError, match="mount a filesystem"):
        run_job(store, "r0/train", {}, Stop(), Hosts(agreed=lambda step: False))
    assert store.states()["r0/train"].phase == "ready"


def test_a_job_fails_with_its_files_kept(url):
    def fail(context):
        write(context.folder / "log", "why")
        raise ValueError("no luck")

    store = squares(url, 1)
    assert run_job(store, "r0/train", {"square": fail}, Stop())[0] == Exit.FAILED
    assert (store.folder("r0") / "log").read_text() == "why"
    assert store.retry("r0/train")
    assert store.states()["r0/train"].phase == "ready"
    assert store.cancel("r0/train")
