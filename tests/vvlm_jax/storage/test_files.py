"""Data in buckets read as they do from folders: from a client over a folder, and over HTTP from
servers of both kinds.
"""

import dataclasses
import json
import pickle
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import mixtures
from tests.buckets import FolderClient, upload
from tests.testdata import make_sources
from tools import prepare
from tools.common import die_in_one_line
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.pipeline import Examples, batches
from vvlm_jax.data.rows import open_rows
from vvlm_jax.data.video import VideoError, probe, read_frames
from vvlm_jax.models.variants import VISION
from vvlm_jax.storage import files
from vvlm_jax.storage.bucket import CLIENTS

VIDEOS = Path(__file__).parents[2] / "testdata" / "videos"
ROWS = make_sources.ROWS


@pytest.fixture
def client(tmp_path):
    """Return a client of a bucket that is a folder."""
    (tmp_path / "bucket").mkdir()
    return FolderClient(tmp_path / "bucket")


@pytest.fixture
def bucket(client, tmp_path, monkeypatch):
    """Return (a folder, its address in a bucket)."""
    monkeypatch.setitem(CLIENTS, "s3", lambda name: client)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    # A name of its own, as buckets are kept by their names.
    return client.folder, f"s3://{uuid.uuid4().hex[:8]}"


def evenly(info):
    return np.linspace(0, info.num_frames - 1, 3).astype(int)


def outcome(read, path):
    """Return what reading returns, or its error message without the folder's name."""
    try:
        return read(path)
    except VideoError as e:
        return str(e).replace(str(path), "FILE")


def test_a_path_is_of_a_folder_or_a_bucket():
    assert files.path_of("a/b") == Path("a/b")
    with pytest.raises(ValueError, match="^ftp://a/b: unknown scheme; must be a folder, gs://"):
        files.path_of("ftp://a/b")


def test_a_key_has_the_ways_of_a_path(bucket):
    root = files.path_of(bucket[1])
    key = root / "a" / "b.tar.gz"
    assert (key.name, key.stem, key.suffix) == ("b.tar.gz", "b.tar", ".gz")
    assert key.parent.parent == root
    assert str(key) == f"{bucket[1]}/a/b.tar.gz"
    assert key.is_relative_to(root / "a")
    assert key.is_relative_to(root)
    assert not key.is_relative_to(root / "a/b")
    assert str(key.relative_to(root)) == "a/b.tar.gz"
    assert pickle.loads(pickle.dumps([key, root])) == [key, root]
    assert sorted([key, root]) == [root, key]


def test_every_video_reads_as_it_does_here(bucket):
    folder, address = bucket
    shutil.copytree(VIDEOS, folder / "videos")
    names = sorted(p.name for p in VIDEOS.iterdir())
    assert len(names) > 10
    for name in [*names, "nowhere.mp4"]:
        here, there = VIDEOS / name, files.path_of(f"{address}/videos") / name
        assert outcome(probe, here) == outcome(probe, there), name
        np.testing.assert_array_equal(
            outcome(lambda p: read_frames(p, evenly, size=32), here),
            outcome(lambda p: read_frames(p, evenly, size=32), there),
            err_msg=name,
        )


def test_images_and_folders_of_them_read_too(bucket):
    folder, address = bucket
    (folder / "frames").mkdir()
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"frames/{i}.png")
    (folder / "words.png").write_text("words")
    reader = FrameReader(address, 2, 8, sampling="force")
    np.testing.assert_array_equal(reader.video("frames"), pictures[[0, 3]])
    np.testing.assert_array_equal(reader.image("frames/2.png", 1), pictures[[2]])
    for name, message in (("no.png", "no such file"), ("words.png", "not a readable image")):
        with pytest.raises(VideoError, match=f"^{address}/{name}: {message}"):
            reader.image(name)


def test_a_service_that_does_not_answer_breaks_no_file(bucket, client):
    """Otherwise the file would be left out for ever."""
    folder, address = bucket
    shutil.copy(VIDEOS / "hevc.mp4", folder)
    reader = FrameReader(address, 2, 8)
    client.fails = PermissionError(13, "no credentials", address)
    for read in (reader.video, reader.image, lambda name: open_rows(f"{address}/{name}")):
        with pytest.raises(PermissionError, match="no credentials"):
            read("hevc.mp4")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_sources.make_sources(folder)
    return folder


def prepared(source, out, **options):
    args = prepare.Args("paper", str(source), str(out), **{"workers": 0, **options})
    prepare.main(dataclasses.replace(args, allow_counts=True))
    return Path(out) / "paper/1.0.0"


def same_but_for_places(ours, theirs):
    """Compare cards but for the folders of the annotation files, which they name."""
    cards = [json.loads((folder / "card.json").read_text()) for folder in (ours, theirs)]
    files = [card.pop("files") for card in cards]
    assert cards[0] == cards[1]
    assert len(files[0]) == len(files[1]) > 10
    for shard in ours.glob("*array_record*"):
        assert shard.read_bytes() == (theirs / shard.name).read_bytes()


def test_a_bucket_is_prepared_and_trained_on_like_a_folder(
    bucket, sources, tmp_path, stage, tok, capsys
):
    folder, address = bucket
    shutil.copytree(sources, folder / "data")
    ours = prepared(sources, tmp_path / "ours")
    theirs = prepared(f"{address}/data", tmp_path / "theirs")
    same_but_for_places(ours, theirs)
    assert f"data.media_root={address}/data" in capsys.readouterr().out
    shutil.copytree(theirs, folder / "sets/paper")

    def first(annotations, media):
        config = stage("unused", f"data.annotations={annotations}", f"data.media_root={media}")
        examples = Examples(config.data, config.model, VISION["study/12"], tok, 0)
        return list(batches(examples, 8, 1, 3))[:2]

    here, there = first(ours, sources), first(f"{address}/sets/paper", f"{address}/data")
    for a, b in zip(here, there, strict=True):
        for name in a._fields:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_prepared_set_is_copied_once(bucket, sources, tmp_path):
    folder, address = bucket
    shutil.copytree(prepared(sources, tmp_path / "out", without=("webvid",)), folder / "set")
    first = open_rows(f"{address}/set")
    caches = tmp_path / "caches" / "vvlm_jax"
    (copy,) = caches.iterdir()
    written = [p.stat().st_mtime_ns for p in sorted(copy.iterdir())]
    again = open_rows(f"{address}/set")
    assert [again[i] for i in range(len(again))] == [first[i] for i in range(len(first))]
    assert [p.stat().st_mtime_ns for p in sorted(copy.iterdir())] == written
    card = json.loads((folder / "set/card.json").read_text())
    (folder / "set/card.json").write_text(json.dumps(card | {"fingerprint": 1}))
    open_rows(f"{address}/set")
    assert len([*caches.iterdir()]) == 2


def test_a_mixture_may_name_files_in_a_bucket(bucket, sources, tmp_path):
    folder, address = bucket
    shutil.copytree(sources, folder / "data")
    names = [
        str(file.relative_to(sources))
        for file in sorted((sources / "LLaVA-Video-178K/0_30_s_academic_v0_1").glob("*.json"))[:2]
    ]
    entries = [f"  - json_path: {address}/data/{name}" for name in names]
    (folder / "data/two.yaml").write_text("\n".join(["datasets:", *entries]))
    args = prepare.Args(f"{address}/data/two.yaml", f"{address}/data", str(tmp_path / "out"))
    prepare.main(dataclasses.replace(args, workers=0))
    card = json.loads((tmp_path / "out/two/1.0.0/card.json").read_text())
    assert [s["examples"] for s in card["subsets"]] == [ROWS, ROWS]


def test_mistakes_in_a_bucket_are_told_in_one_line(bucket, tmp_path, capsys):
    folder, address = bucket

    def says(source, out=tmp_path / "out", **options):
        with pytest.raises(SystemExit) as stopped:
            die_in_one_line(lambda: prepared(source, out, **options))
        assert stopped.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert says(f"{address}/no") == f"error: --source {address}/no: no such folder"
    (folder / "some").mkdir()
    (folder / "some" / "file").touch()
    assert f"in {address}/some (as lmms-lab/LLaVA-Video-178K is" in says(f"{address}/some")
    with pytest.raises(ValueError, match="no such annotation file"):
        open_rows(f"{address}/rows.json")
    (folder / "rows.jsonl").write_text('{"id": 1, "conversations"\n')
    with pytest.raises(ValueError, match=f"^{address}/rows.jsonl: line 1 is not JSON"):
        open_rows(f"{address}/rows.jsonl")
    make_sources.make_sources(folder / "packed", archives=True)
    assert "must be a folder of this machine" in says(f"{address}/some", out="s3://bucket/out")
    line = says(f"{address}/packed")
    assert "archives are not extracted" in line
    line = says(f"{address}/packed", extract=True)
    assert f"in {address}/packed cannot be extracted there; extract them in a folder" in line


def test_buckets_over_http(service, sources, tmp_path, stage, tok):
    """Sources, prepared set and media are all in a bucket."""
    kept = ("llava_hound", "next_qa", "videochat", "webvid")
    options = {"without": [s.name for s in mixtures.paper().subsets if s.name not in kept]}
    upload(sources, f"{service}/data")
    ours = prepared(sources, tmp_path / "ours", **options)
    theirs = prepared(f"{service}/data", tmp_path / "theirs", workers=1, **options)
    same_but_for_places(ours, theirs)
    upload(theirs, f"{service}/set")
    here, there = open_rows(ours), open_rows(f"{service}/set")
    assert [here[i] for i in range(len(here))] == [there[i] for i in range(len(there))]

    def first(annotations, media):
        options = f"data.annotations={annotations}", f"data.media_root={media}"
        config = stage("unused", *options, "data.num_examples=24")
        examples = Examples(config.data, config.model, VISION["study/12"], tok, 0)
        return list(batches(examples, 8, 1, 3))

    here, there = first(ours, sources), first(f"{service}/set", f"{service}/data")
    for a, b in zip(here, there, strict=True):
        for name in a._fields:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    with pytest.raises(VideoError, match="no such file"):
        FrameReader(f"{service}/data", 3, 16).video("no.mp4")


def test_a_folder_of_media_is_asked_for_as_a_whole(service, server, tmp_path):
    names = [f"videos/{i:02d}.mp4" for i in range(40)]
    for i, name in enumerate(names):
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * i)
    upload(tmp_path / "data", service)
    root = files.path_of(service)
    server(share=0)  # counts from here
    stamps = files.stamps_below(root)
    found = [stamps(name) for name in names]
    assert not stamps("videos/40.mp4")
    assert not stamps("nowhere/40.mp4")
    assert stamps("videos")  # as a folder of frames
    assert server()[""] <= 6
    assert found == [files.stamp(root / name) for name in names]  # as workers ask
    assert len({*found}) == 40
    assert files.glob(root, "v*/1?.mp4") == [root / name for name in names[10:20]]
    assert files.glob(root, "**/1?.mp4") == [root / name for name in names[10:20]]


def test_a_service_that_says_no_is_no_empty_folder(service, tmp_path):
    scheme = service.partition(":")[0]
    with pytest.raises(PermissionError, match=f"no permission .*'{scheme}://forbidden/data"):
        prepared(f"{scheme}://forbidden/data", tmp_path / "out")
    with pytest.raises(OSError, match=f"no such bucket: '{scheme}://nobodys'"):
        prepared(f"{scheme}://nobodys/data", tmp_path / "out")
    with pytest.raises(ValueError, match="no such folder"):
        prepared(f"{scheme}://bucket/nowhere", tmp_path / "out")
