"""A prepared set is read by TFDS, gives what its rows gave, and trains."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from configs import mixtures
from tests.testdata import make_sources
from vvlm_jax.data import prepared
from vvlm_jax.data.pipeline import Examples, batches
from vvlm_jax.data.prepare import sources
from vvlm_jax.data.prepare.check_media import check_media
from vvlm_jax.data.rows import count_rows, open_rows
from vvlm_jax.models.variants import VISION
from vvlm_jax.train.loop import train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_sources.make_sources(folder)
    return folder


@pytest.fixture(scope="module")
def rows(root):
    return list(sources.rows_of(mixtures.paper(), root))


@pytest.fixture(scope="module")
def folder(root, rows, tmp_path_factory):
    """Return the paper's mixture in three shards."""
    out = tmp_path_factory.mktemp("out")
    media = check_media(root, [one for row in rows for one in row.media], out / "media.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "_SHARD", 50)
        return prepared.write(out, "paper", rows, media, len(rows), {"examples": len(rows)})


@pytest.fixture(scope="module")
def as_json(rows, tmp_path_factory):
    """Return the same rows as an annotation file."""
    file = tmp_path_factory.mktemp("json") / "rows.json"
    file.write_text(
        json.dumps(
            [
                {"id": r.id, "conversations": r.conversations, "video": [p for _, p in r.media]}
                for r in rows
            ]
        )
    )
    return file


@pytest.fixture
def config(stage, root, folder):
    def make(*assignments, annotations=folder):
        return stage(
            "unused",
            f"data.annotations={annotations}",
            f"data.media_root={root}",
            "data.frame_cache_mb=64",  # what is shown here is which rows come, not how they decode
            *assignments,
        )

    return make


@pytest.fixture
def examples(config, tok):
    def make(*assignments, annotations=None, seed=0):
        c = config(*assignments, **({"annotations": annotations} if annotations else {}))
        return Examples(c.data, c.model, VISION["study/12"], tok, seed)

    return make


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for name in x._fields:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)


@pytest.mark.light
def test_tfds_reads_it_by_name_and_by_folder(folder, rows):
    for builder in (
        tfds.builder("paper", data_dir=folder.parents[1]),
        tfds.builder_from_directory(folder),
    ):
        source = builder.as_data_source("train")
        assert len(source) == len(rows) == builder.info.splits["train"].num_examples
        assert source[0]["video"] == [rows[0].media[0][1].encode()]
    assert len(tfds.data_source("paper", data_dir=folder.parents[1], split="train")) == len(rows)
    assert sorted(p.name for p in folder.glob("*array_record*"))[-1].endswith("00002-of-00003")


def test_records_are_the_rows_and_hold_no_pixels(folder, rows, root):
    there = open_rows(folder)
    assert count_rows(folder) == len(rows)
    for i, row in enumerate(rows):
        assert there[i]["id"] == row.id
        assert there[i]["conversations"] == row.conversations
        assert there[i]["video"] == [path for _, path in row.media]
        about = there.about(i)
        assert about["subset"] == row.subset
        assert about["num_frames"][0] in range(3, 7)
        assert about["duration_s"] == [about["num_frames"][0] / 2]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 400_000


def test_records_are_the_same_bytes_in_every_process(folder):
    """Features are sorted by name, not by a hash that differs between processes."""
    reader = array_record_module.ArrayRecordReader(str(next(folder.glob("*array_record-00000*"))))
    names = [b"conversations/from", b"conversations/value", b"duration_s", b"id", b"image"]
    names = [bytes([10, len(name)]) + name for name in [*names, b"num_frames", b"subset", b"video"]]
    for record in reader.read_all():
        places = [record.index(name) for name in names]
        assert places == sorted(places)
    reader.close()


def test_batches_are_those_of_the_rows(examples, as_json):
    ours, theirs = examples(), examples(annotations=as_json)
    assert_same(list(batches(ours, 20, 1, 3)), list(batches(theirs, 20, 1, 3)))
    assert ours.fingerprint() == examples().fingerprint()
    assert ours.fingerprint() != examples(seed=1).fingerprint()


def test_a_bucket_is_found_without_reading_what_other_hosts_have(examples, as_json, monkeypatch):
    options = "data.text_buckets=[20,28,36]", "data.system=Look twice."
    ours, theirs = examples(*options), examples(*options, annotations=as_json)
    expected = list(batches(theirs, 5, 1, 3))
    assert len({batch.target_pos_BM.shape for batch in expected}) > 1
    assert_same(list(batches(ours, 5, 1, 3)), expected)
    read, get = [], prepared.PreparedRows.__getitem__
    monkeypatch.setattr(
        prepared.PreparedRows, "__getitem__", lambda self, i: read.append(int(i)) or get(self, i)
    )
    every = np.arange(len(ours))
    (one,) = ours.load(every, slice(0, None, len(every))).index_B
    assert one in read
    assert len({*read}) < 20 < len(every)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batches_of_one(examples, hosts):
    whole = list(batches(examples(), 20, 1, 3))
    shares = [list(batches(examples(), 20, 1, 3, shard=i, num_shards=hosts)) for i in range(hosts)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for i, part in enumerate(parts):
            np.testing.assert_array_equal(part.tokens_BL, batch.tokens_BL[i::hosts])
            np.testing.assert_array_equal(part.index_B, batch.index_B[i::hosts])


@pytest.mark.parametrize("threads", [1, 4])
def test_it_goes_on_where_it_was(examples, threads):
    source = examples(f"data.read_threads={threads}")
    every = list(batches(source, 20, 2, 3))
    stream = iter(batches(source, 20, 2, 3))
    for _ in range(3):
        next(stream)
    state = stream.get_state()
    again = iter(batches(examples(), 20, 2, 3))
    again.set_state(state)
    assert_same(list(again), every[3:])


def test_smaller_sets_lie_in_larger_ones(examples):
    sets = [examples(f"data.num_examples={n}") for n in (10, 40, 147)]
    numbers = [s.row_numbers.tolist() for s in sets]
    assert numbers[0] == numbers[1][:10]
    assert numbers[1] == numbers[2][:40]
    assert len({tuple(s.fingerprint()) for s in sets}) == 3


def test_it_trains(config, tmp_path):
    values = dict(out_dir=str(tmp_path / "run"), batch_size=4)
    summary = train(dataclasses.replace(config("data.num_examples=16"), **values))
    assert summary["steps"] == 4
    assert np.isfinite(summary["loss"])
    assert summary["unreadable"] == []


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="not a data set that vvlm prepare made"):
        open_rows(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "paper" / "1.0.0")
    (shard,) = copy.glob("*00001-of*")
    whole = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(whole[:-5000]), shard.unlink):
        damage()
        with pytest.raises(ValueError, match=rf"^{copy}: incomplete data set: .*"):
            open_rows(copy)
    shutil.copy(folder / shard.name, shard)
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps(card | {"examples": 5}))
    with pytest.raises(ValueError, match=f"holds {card['examples']} examples, its card says 5"):
        open_rows(copy)
    shutil.copy(folder / "card.json", copy)
    np.save(copy / "lengths.npy", np.zeros(5, np.int32))
    with pytest.raises(ValueError, match=f"holds 5 lengths, its card says {card['examples']}"):
        open_rows(copy)
    (copy / "lengths.npy").unlink()
    with pytest.raises(ValueError, match=rf"^{copy}: incomplete data set: .*lengths.npy"):
        open_rows(copy)
