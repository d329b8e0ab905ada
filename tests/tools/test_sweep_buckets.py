"""A sweep with real trainings in a bucket, over HTTP: interrupted, taken up elsewhere, and with the
table of a local one. (Workers that are killed: tests/vvlm_jax/storage/test_bucket.py.)
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.sweeps import mini
from tools import sweep as command
from tools.sweep_plan import load
from vvlm_jax.sweep import jobs
from vvlm_jax.sweep.store.store import Store
from vvlm_jax.sweep.worker import Interrupted, Stop, pull

# A broken connection is left to the collector by requests and its urllib3.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
        "ignore:unclosed <socket:ResourceWarning",
    ),
]
MINI = Path(mini.__file__)
SWEEP = """
import dataclasses
from configs.sweeps import mini


def sweep():
    config = mini.sweep()
    points = [p for p in config.points if p.num_frames == 1]
    return dataclasses.replace(config, points=points)
"""


def stopped(context):
    """Return a finetuning that is asked to stop before its second step."""
    if context.job.run.startswith("stage1"):
        return jobs.train(context)
    return jobs.train(replace(context, agreed=lambda step: step == 1))


@pytest.mark.slow(reason="trains and evaluates a miniature sweep twice")
def test_a_sweep_in_a_bucket_ends_in_the_table_of_a_local_one(ask, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Path("mine.py").write_text(SWEEP)
    mini.write_data(Path(mini.DATA))
    config, kinds = load(Path("mine.py")), command.kinds()
    pull(jobs.create("s", config), kinds, Stop())
    ask("collect", "s")

    url = "gs://bucket/sweeps/mine"
    server(share=0.02)
    store = jobs.create(url, config)
    run = store.folder(store.runs[0]["run_id"])
    with pytest.raises(Interrupted):
        pull(store, kinds | {"train": stopped}, Stop())
    names = {item.name for item in run.bucket.listing(run)}
    assert {"checkpoints/1/manifest.json", "files.json", "metrics.jsonl"} < names
    assert "params/manifest.ocdbt" not in names
    pull(Store.open(url), kinds, Stop())
    story = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert {"stopped", "resume"} <= {line["event"] for line in story}
    names = {item.name for item in run.bucket.listing(run)}
    assert {"summary.json", "params/manifest.ocdbt"} < names
    assert not [name for name in names if name.startswith("checkpoints")]
    assert not list(tmp_path.glob("vvlm_jax-sweep-*"))

    ask("launch", "mine.py", "--store", url)  # nothing is left to do
    assert "mini: 2 runs: 2 done" in ask("status", url)[0]
    assert f"{url}/runs.csv: 4 scores, 0 missing" in ask("collect", url)[0]
    assert (store.path / "runs.csv").read_text() == Path("s/runs.csv").read_text()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (("status", "gs://nobodys/s"), "gs://nobodys: no such bucket"),
        (("collect", "s3://forbidden/s"), "no permission (AccessDenied: Access Denied)"),
        (("work", "az://b/s"), "az://b/s: unknown scheme; must be a folder, gs://"),
        (("launch", MINI, "--store", "s3://b"), "s3://b: must be s3://BUCKET/FOLDER"),
        (
            ("launch", MINI, "--on", "slurm", "--store", "gs://bucket/s"),
            "--store gs://bucket/s: --on slurm keeps its files in the store",
        ),
        (("retry", "gs://bucket/none"), "gs://bucket/none: no sweep here (no sweep.json)"),
    ],
)
def test_what_cannot_be_in_a_bucket_is_said_in_one_line(ask, server, argv, line):
    assert line in ask(*argv, code=2)[1]
