import json
import re

import pytest

from tests.testdata.make_full_sources import make_full_sources
from tools.bench import bench_prepare
from tools.bench.bench_prepare import Args, Differs
from vvlm_jax.config import Stopped
from vvlm_jax.data.prepare import sources


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return the folder of a ten-thousandth of the full mixture."""
    root = tmp_path_factory.mktemp("full")
    make_full_sources(root, 1e-4)
    return root


def test_the_sources_have_the_mixture_s_layout_and_shares(full):
    from configs import mixtures

    paper = mixtures.paper()
    rows = list(sources.rows_of(paper, full))
    assert not any(row.problem for row in rows)
    assert all((full / name).exists() for row in rows for _, name in row.media)
    for subset in paper.subsets:
        assert sum(r.subset == subset.name for r in rows) == round(1e-4 * subset.examples)


@pytest.mark.slow(reason="prepares three times, in processes of their own")
def test_runs_are_timed_and_compared(full, tmp_path, capfd):
    file = next(full.glob("*/annotations/vqa_webvid_qa.json"))
    rows = json.loads(file.read_text())
    assert len(rows) == 10
    args = Args(full / "VideoGPT-plus_Training_Dataset/instruction_tuning/webvid", str(file), 1)
    bench_prepare.main(args)
    lines = capfd.readouterr().out.splitlines()
    number = r"[1-9][\d,]*"
    assert re.fullmatch(
        # A worker may come and go while nobody looks.
        rf"to the end: {number} s, {number} s of CPU, {number} MiB, a worker [\d,]+ MiB",
        lines[0],
    )
    assert re.fullmatch("0 MiB of examples in 1 shards", lines[1])
    assert [line.partition(":")[0].partition(",")[0] for line in lines[2:]] == [
        "until it is killed",
        "again",
        "both are the same",
    ]


def test_what_fails_is_told(full, tmp_path, monkeypatch, capfd):
    with pytest.raises(Stopped, match="tools.prepare ended with 2"):
        bench_prepare.main(Args(tmp_path / "nowhere"))
    assert "nowhere: no such folder" in capfd.readouterr().err
    found = iter("ab")
    monkeypatch.setattr(bench_prepare, "run", lambda *a, **k: bench_prepare.Run(0, 1, 1, 1, 1))
    monkeypatch.setattr(bench_prepare, "digest", lambda out: next(found))
    with pytest.raises(Differs):
        bench_prepare.main(Args(full))


def test_half_of_the_shards_is_half(tmp_path):
    folder = tmp_path / "paper/.partial-1.0.0"
    folder.mkdir(parents=True)
    for i in range(2):
        (folder / f"paper-train.array_record-{i:05d}-of-00004").touch()
        assert not bench_prepare._half_written(tmp_path)
    (folder / "paper-train.array_record-00002-of-00004").touch()
    assert bench_prepare._half_written(tmp_path)
