import pytest

from configs.sweeps import mini
from tests.vvlm_jax.sweep.entries import done, prepare
from vvlm_jax.sweep import jobs, status
from vvlm_jax.sweep.store import journal

A, B, C, D = (p.run_id for p in mini.sweep().points)


@pytest.fixture
def store(tmp_path):
    return jobs.create(tmp_path / "s", mini.sweep())


def test_the_table_says_what_each_run_does(store):
    prepare(store)
    done(store, f"{A}/train", loss=2.5)
    store.end(store.claim(f"{B}/train"), journal.FAILED, error="ValueError: no luck")
    store.claim(f"{C}/train")
    file = store.folder(C) / "metrics.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"step": 1}\n{"step": 2, "loss": 0.5, "examples_per_second": 4.0}\n{"ste')
    store.end(store.claim(f"{D}/train"), journal.STOPPED)
    (store.folder(D) / "metrics.jsonl").write_text('{"step": 1, "loss": 0.75}\n')
    found = status.overview(store, store.states())
    by_run = {r.run: r for r in found.runs}
    assert (by_run[A].phase, by_run[A].loss) == ("waiting", 2.5)
    assert by_run[A].progress == pytest.approx(1 / 1.01)
    assert (by_run[B].phase, by_run[B].error) == ("failed", "ValueError: no luck")
    assert (by_run[C].phase, by_run[C].doing, by_run[C].loss) == ("running", "train", 0.5)
    assert by_run[C].progress == pytest.approx(2 / 3 / 1.01)
    assert by_run[C].seconds_left == pytest.approx(1.0), "a step of 4 examples, 4 a second"
    assert (by_run[D].phase, by_run[D].loss) == ("waiting", 0.75), "left after a step of three"
    assert by_run[D].progress == pytest.approx(1 / 3 / 1.01)
    assert found.phases == {"done": 2, "waiting": 2, "failed": 1, "running": 1}
    assert found.workers == 1
    costs = {id: job.cost for id, job in store.jobs.items()}
    did = [*(f"stage1-{llm}/train" for llm in mini.LLMS), f"{A}/train"]
    left = sum(
        costs[f"{run}/evaluate-s3-val"] + costs[f"{run}/train"] * share
        for run, share in ((A, 0), (C, 1 / 3), (D, 2 / 3))
    )
    assert found.seconds_left == pytest.approx(left * 30 / sum(costs[id] for id in did))


def test_the_time_left_is_unknown_before_the_first_job_ends(store):
    assert status.overview(store, store.states()).seconds_left is None
    assert status.last_metrics(store.path / "none.jsonl") == {}
