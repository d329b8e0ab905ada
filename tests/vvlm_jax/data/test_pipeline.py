import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from tests.vvlm_jax.byte_level import save_byte_level
from vvlm_jax.config import DataConfig, ModelConfig
from vvlm_jax.data import chat, media, pipeline, tokenizer
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.pipeline import Examples, TooManyUnreadable, batches, global_order
from vvlm_jax.data.tokenizer import EOT, FAMILIES, NEWLINE, VIDEO
from vvlm_jax.data.video import VideoError
from vvlm_jax.models.variants import VISION
from vvlm_jax.train.run_dir import FIXED

VIDEOS = Path(__file__).parents[2] / "testdata" / "videos"
FRAMES = dict(num_frames=3, image_size=48)


@pytest.fixture
def examples(stage, tok):
    """Return examples("data.read_threads=4", …): of the training clips."""

    def make(*assignments, seed=0, **data):
        config = stage("unused", *assignments)
        data = dataclasses.replace(config.data, **data)
        return Examples(data, config.model, VISION["study/12"], tok, seed)

    return make


def encode(row, tok):
    """Return the example of a row with one video of 2 frames × 4 tokens."""
    return chat.encode(row["conversations"], tok, [[tok.special[VIDEO]] * 8])


@pytest.fixture
def cache(monkeypatch):
    kept = media.ClipCache()
    monkeypatch.setattr(media, "_CACHE", kept)
    return kept


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        for name in x._fields:
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name), err_msg=name)


def names(source, batch_size, epochs):
    """Return which rows come in which order, without decoding: a list of lists of ids."""
    order = global_order(len(source), batch_size, epochs, 0)
    return [[source.rows[place]["id"] for place in places] for places in order]


# Order.


@pytest.mark.light
def test_a_batch_is_its_examples_stacked(examples, world):
    source = examples()
    first = next(iter(batches(source, 4, 1, 0)))
    assert first.tokens_BL.shape == (4, 2 * 4 + 160)
    assert first.frames_BTHWC.shape == (4, 2, 48, 48, 3)
    assert first.frames_BTHWC.dtype == np.uint8
    for row, id in enumerate(names(source, 4, 1)[0]):
        index = next(i for i, r in enumerate(source.rows) if r["id"] == id)
        for whole, part in zip(*map(jax.tree.leaves, (first, source[index])), strict=True):
            np.testing.assert_array_equal(whole[row], part)


def test_a_batch_knows_its_rows_of_the_annotations(examples, world):
    source = examples("data.num_examples=20", seed=1)
    rows = json.loads((world / "train.json").read_text())
    expected = names(source, 4, 2)
    found = [[rows[i]["id"] for i in batch.index_B] for batch in batches(source, 4, 2, 0)]
    assert found == expected


def test_targets_are_the_answer_tokens(examples, tok):
    source = examples()
    ids, is_answer = encode(source.rows[0], tok)
    example = source[0]
    m = sum(is_answer)
    assert example.target_weight_M.tolist() == [1.0] * m + [0.0] * (160 - m)
    assert [ids[p + 1] for p in example.target_pos_M[:m]] == example.target_ids_M[:m].tolist()
    assert [p + 1 for p in example.target_pos_M[:m]] == [i for i, a in enumerate(is_answer) if a]
    assert example.tokens_L.tolist() == ids + [0] * (168 - len(ids))


def test_threads_do_not_change_the_batches(examples):
    one, four = (
        list(batches(examples(f"data.read_threads={threads}"), 4, 2, 0)) for threads in (1, 4)
    )
    assert len(one) == 12
    assert_same(one, four)


def test_hosts_share_each_global_batch(examples):
    source = examples()
    alone = list(batches(source, 4, 2, 0))
    shares = [list(batches(source, 4, 2, 0, shard=i, num_shards=2)) for i in (0, 1)]
    assert len(alone) == 12
    for whole, even, odd in zip(alone, *shares, strict=True):
        for x, a, b in zip(*map(jax.tree.leaves, (whole, even, odd)), strict=True):
            np.testing.assert_array_equal(x[0::2], a)
            np.testing.assert_array_equal(x[1::2], b)


def test_a_batch_that_hosts_cannot_share_is_refused(examples):
    with pytest.raises(ValueError, match=r"batch_size = 4: must be divisible by the 3 hosts"):
        batches(examples(), 4, 2, 0, num_shards=3)


def test_every_example_comes_once_an_epoch_in_a_new_order(examples):
    order = [id for batch in names(examples(), 4, 3) for id in batch]
    epochs = [order[:24], order[24:48], order[48:]]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"train-{i}" for i in range(24))


def test_what_one_epoch_drops_the_next_may_hold(examples):
    epochs = np.array(names(examples(), 10, 8)).reshape(8, 20)
    assert all(len(set(epoch)) == 20 for epoch in epochs.tolist())
    assert len(set(epochs.ravel().tolist())) == 24


def test_the_seed_changes_the_order(examples):
    source = examples()
    a, b = (next(iter(batches(source, 24, 1, seed))).tokens_BL for seed in (0, 1))
    assert (a != b).any()
    np.testing.assert_array_equal(np.unique(a, axis=0), np.unique(b, axis=0))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("position", [0, 1, 5, 6, 11])
def test_a_resumed_iterator_goes_on_where_it_was(examples, position, threads):
    source = examples(f"data.read_threads={threads}", "data.frame_cache_mb=8")
    iterator = iter(batches(source, 4, 2, 0))
    for _ in range(position):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = list(iterator)
    assert len(rest) == 12 - position
    again = iter(batches(examples(f"data.read_threads={threads}"), 4, 2, 0))
    again.set_state(state)
    assert_same(list(again), rest)


def test_only_fixed_options_say_which_examples_a_step_sees(stage, tok, cache):
    """A run that has begun must keep the options `run_dir.FIXED`; it may change others."""

    def rows(*assignments):
        config = stage("unused", "epochs=2", "data.frame_cache_mb=64", *assignments)
        source = Examples(config.data, config.model, VISION["study/12"], tok, config.seed)
        order = batches(source, config.batch_size, config.epochs, config.seed)
        return [batch.index_B.tolist() for batch in order]

    expected = rows()
    assert len(expected) == 12
    fixed = ("batch_size=6", "seed=1", "data.num_examples=20")
    assert tuple(option.partition("=")[0] for option in fixed) == FIXED
    for option in fixed:
        assert rows(option)[0] != expected[0], option
    for option in (
        *("data.text_buckets=[150]", "data.max_text_tokens=200", "data.read_threads=3"),
        *("data.max_unreadable=1", "data.max_read_seconds=9", "data.frame_cache_mb=0"),
        *("model.num_frames=1", "microbatches=2", 'mesh=[["data",2],["tensor",2]]'),
    ):
        assert rows(option) == expected, option
    assert rows("epochs=1") == expected[:6]
    assert rows("epochs=3")[:12] == expected


def test_a_batch_larger_than_the_data_is_an_error(examples):
    with pytest.raises(ValueError, match=r"batch_size = 25: must be at most .* examples, 24"):
        batches(examples(), 25, 1, 0)


# Text.


def test_text_that_does_not_fit_names_the_example(examples, tok):
    source = examples()
    needed = max(len(encode(row, tok).ids) - 8 for row in source.rows)
    longest = {row["id"] for row in source.rows if len(encode(row, tok).ids) - 8 == needed}
    assert sum(1 for _ in batches(examples(max_text_tokens=needed), 4, 1, 0)) == 6
    tight = examples(max_text_tokens=needed - 1)
    with pytest.raises(ValueError, match="text tokens") as e:
        list(batches(tight, 4, 1, 0))
    assert any(
        f"train.json: example {id!r}: has {needed} text tokens" in str(e.value) for id in longest
    )
    assert f"data.max_text_tokens allows {needed - 1}" in str(e.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"conversations": [{"from": "human", "value": "<video> ?"}]},
            "has no answer to learn from",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "red"}]},
            "has 0 <image> or <video> placeholders",
        ),
        ({"video": None}, "has 1 <image> or <video> placeholders, expected 0"),
    ],
)
def test_rows_that_cannot_be_examples_are_named(examples, world, tmp_path, row, message):
    rows = json.loads((world / "train.json").read_text())[:2]
    rows[1] = {k: v for k, v in {**rows[1], **row}.items() if v}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = examples(annotations=str(tmp_path / "rows.json"))
    bad = next(i for i, r in enumerate(source.rows) if r["id"] == "train-1")
    with pytest.raises(ValueError, match=rf"rows\.json: example 'train-1'.*{message}"):
        source[bad]


def test_a_text_only_stage_has_no_frames(examples, world):
    source = examples(annotations=str(world / "stories.json"))
    example = source[0]
    assert example.frames_THWC.shape == (0, 48, 48, 3)
    assert example.tokens_L.shape == (160,)


# Buckets.


@pytest.fixture
def bucketed(examples, uneven, tok):
    """Return (bucketed("data.text_buckets=[…]") -> Examples, text tokens of every row) of 8
    lengths.
    """
    rows = json.loads(uneven.read_text())
    lengths = np.array([len(encode(row, tok).ids) - 8 for row in rows])
    assert (np.diff(np.unique(lengths)) == 5).all()
    return functools.partial(examples, annotations=str(uneven)), lengths


def test_a_batch_takes_the_smallest_bucket_that_holds_its_longest_text(bucketed):
    make, lengths = bucketed
    steps = np.unique(lengths)[[1, 4, 6]].tolist()
    source, seen = make(f"data.text_buckets={steps}"), set()
    for size in (1, 4):
        pairs = zip(batches(source, size, 1, 0), batches(make(), size, 1, 0), strict=True)
        for batch, whole in pairs:
            room = min(b for b in (*steps, 160) if b >= lengths[batch.index_B].max())
            seen.add(room)
            assert batch.tokens_BL.shape == (size, 8 + room)
            np.testing.assert_array_equal(batch.tokens_BL, whole.tokens_BL[:, : 8 + room])
            assert not whole.tokens_BL[:, 8 + room :].any()
            for x, y in zip(batch[1:4], whole[1:4], strict=True):
                np.testing.assert_array_equal(x, y[:, :room])
                assert not y[:, room:].any()
            np.testing.assert_array_equal(batch.frames_BTHWC, whole.frames_BTHWC)
    assert seen == {*steps, 160}


def test_a_host_tokenises_little_of_what_the_others_read(bucketed, monkeypatch):
    make, lengths = bucketed
    source, asked = make(f"data.text_buckets={np.unique(lengths)[[1, 4, 6]].tolist()}"), []
    text = type(source)._text
    monkeypatch.setattr(type(source), "_text", lambda s, row: asked.append(row) or text(s, row))
    monkeypatch.setattr("vvlm_jax.data.chat.most_tokens", lambda turns, _: known[id(turns)])
    tok = source.assembler.tokenizer
    known = {id(row["conversations"]): len(encode(row, tok).ids) for row in source.rows}
    every = np.arange(len(source))
    batch = source.load(every, slice(0, None, len(every)))
    assert batch.tokens_BL.shape == (1, 8 + 160)
    assert len(asked) == 2  # the longest of all, and the host's own


def test_hosts_agree_on_the_bucket_of_what_they_share(bucketed):
    make, lengths = bucketed
    steps = np.unique(lengths)[[2, 5]].tolist()
    source = make(f"data.text_buckets={steps}")
    alone = list(batches(source, 2, 2, 0))
    shares = [list(batches(source, 2, 2, 0, shard=i, num_shards=2)) for i in (0, 1)]
    assert any((lengths[x.index_B] > steps[1]).sum() == 1 for x in alone)  # one has the longest
    for whole, *parts in zip(alone, *shares, strict=True):
        for i, part in enumerate(parts):
            for x, y in zip(*map(jax.tree.leaves, (part, whole)), strict=True):
                np.testing.assert_array_equal(x, y[i::2])


def test_buckets_survive_a_resume(bucketed):
    make, lengths = bucketed
    buckets = f"data.text_buckets={np.unique(lengths)[:7].tolist()}"
    iterator = iter(batches(make(buckets), 2, 2, 0))
    for _ in range(5):
        next(iterator)
    state = iterator.get_state()
    again = iter(batches(make(buckets), 2, 2, 0))
    again.set_state(state)
    rest = list(iterator)
    assert len({batch.tokens_BL.shape for batch in rest}) > 2
    assert_same(list(again), rest)


def test_what_replaces_an_unreadable_example_fits_its_bucket(bucketed, uneven, tmp_path):
    """All hosts know the bucket before any of them reads a file."""
    make, lengths = bucketed
    order, room = make().row_numbers.tolist(), int(np.unique(lengths)[1])
    # A row that fits the bucket, and is followed by one that does not.
    place = next(i for i in range(23) if lengths[order[i]] <= room and lengths[order[i + 1]] > room)
    expected = next(row for row in order[place + 1 :] + order[:place] if lengths[row] <= room)
    rows = json.loads(uneven.read_text())
    rows[order[place]]["video"] = "missing.mp4"
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = make(
        f"data.text_buckets=[{room}]", annotations=str(tmp_path / "rows.json"), max_unreadable=0.5
    )
    batch = source.load(np.array([place]))
    assert batch.index_B.tolist() == [expected]
    assert batch.target_pos_BM.shape == (1, room)
    assert source[place].index == order[place + 1]  # which has room where there are no buckets


# Media.

BROKEN = ("zero_bytes.mp4", "cut_short.mp4", "audio_only.m4a", "missing.mp4")


@pytest.fixture
def damaged(world, tmp_path):
    """Return a copy of the world in which four clips of 24 cannot be read: {row number: file}."""
    rows = json.loads((world / "train.json").read_text())
    broken = {}
    for place, file in zip((2, 3, 10, 20), BROKEN, strict=True):
        rows[place]["video"] = f"bad/{file}"
        broken[f"train-{place}"] = file
    for row in rows[4:6]:  # the same file twice
        row["video"] = "bad/zero_bytes.mp4"
        broken[row["id"]] = "zero_bytes.mp4"
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "train").symlink_to(world / "train")
    (tmp_path / "bad").mkdir()
    for file in BROKEN[:3]:
        shutil.copy(VIDEOS / file, tmp_path / "bad")
    whole = (tmp_path / "train" / "000000.mp4").read_bytes()
    (tmp_path / "bad" / "cut_short.mp4").write_bytes(whole[: len(whole) // 2])
    return tmp_path, broken


def test_hosts_stop_together_and_keep_to_themselves_what_they_replace():
    """The limit applies to the sum over hosts; a resume restores what each had found."""
    ours, theirs = ({"a": "a: gone", "b": "b: gone"}, {"b": "b: cut", "c": "c: gone"})
    unreadable = pipeline.Unreadable(2, everywhere={})
    for name, text in {**ours, "d": "d: gone"}.items():
        unreadable.add(name, VideoError(text))  # three, and it does not stop alone
    assert unreadable.found() == {**ours, "d": "d: gone"}
    with pytest.raises(TooManyUnreadable, match="3 unreadable media files, more than the 2 "):
        unreadable.gathered([ours, theirs])
    unreadable.gathered([ours, {"b": "b: cut"}])
    assert unreadable.everywhere == ours
    for host, found in enumerate((ours, theirs)):
        resumed = pipeline.Unreadable(9)
        resumed.resume([ours, theirs], host, 2)
        assert resumed.found() == found
    # Two hosts before and one now, which reads what either did.
    resumed = pipeline.Unreadable(9)
    resumed.resume([ours, theirs], 0, 1)
    assert resumed.found().keys() == {"a", "b", "c"}


@pytest.mark.parametrize("cache_mb", [0, 8])
@pytest.mark.parametrize("threads", [1, 4])
def test_unreadable_media_are_counted_and_replaced(examples, damaged, cache, threads, cache_mb):
    folder, broken = damaged
    source = examples(
        annotations=str(folder / "train.json"), media_root=str(folder),
        max_unreadable=4 / 24, read_threads=threads, frame_cache_mb=cache_mb,
    )  # fmt: skip
    assert sum(1 for _ in batches(source, 4, 2, 0)) == 12
    assert sorted(source.unreadable.messages) == sorted(f"bad/{file}" for file in BROKEN)
    for file in BROKEN:
        assert str(folder / "bad" / file) in source.unreadable.messages[f"bad/{file}"]


def test_the_replacement_is_the_next_readable_example(examples, damaged):
    folder, broken = damaged
    source = examples(
        annotations=str(folder / "train.json"), media_root=str(folder), max_unreadable=4 / 24
    )
    for i, row in enumerate(source.rows):
        if row["id"] not in broken:
            continue
        j = i
        while source.rows[j % 24]["id"] in broken:
            j += 1
        assert_same([source[i]], [source[j % 24]])
        assert source[i].index == int(source.rows[j % 24]["id"].removeprefix("train-"))


@pytest.mark.parametrize("threads", [1, 4])
def test_more_unreadable_media_than_allowed_stop_the_run(examples, damaged, threads):
    folder, _ = damaged
    source = examples(
        annotations=str(folder / "train.json"), media_root=str(folder),
        max_unreadable=3.9 / 24, read_threads=threads,
    )  # fmt: skip
    with pytest.raises(TooManyUnreadable, match="4 unreadable media files, more than") as e:
        list(batches(source, 4, 1, 0))
    assert "the 3 that data.max_unreadable allows" in str(e.value)
    assert str(folder / "bad") in str(e.value)
    assert "\n" not in str(e.value)


def test_nothing_readable_at_all_stops_the_run(examples, damaged):
    folder, _ = damaged
    rows = [
        {**r, "video": "bad/missing.mp4"} for r in json.loads((folder / "train.json").read_text())
    ]
    (folder / "train.json").write_text(json.dumps(rows))
    source = examples(
        annotations=str(folder / "train.json"), media_root=str(folder), max_unreadable=1.0
    )
    with pytest.raises(TooManyUnreadable, match="no example has readable media"):
        source[0]


# Frames kept in memory.


@pytest.mark.parametrize("num_frames", [1, 3, 8, 12])
@pytest.mark.parametrize("sampling", ["uniform", "force"])
def test_frames_from_memory_are_the_frames_of_the_file(world, cache, num_frames, sampling):
    plain = FrameReader(world, num_frames, 24, sampling)
    kept = FrameReader(world, num_frames, 24, sampling, cache_mb=4)
    for name in ("train/000000.mp4", "train/000001.mp4"):
        for _ in range(2):
            np.testing.assert_array_equal(kept.video(name), plain.video(name))
    assert len(cache._clips) == 2


def test_a_kept_clip_is_not_read_again(world, cache, tmp_path):
    shutil.copy(world / "train/000000.mp4", tmp_path / "a.mp4")
    reader = FrameReader(tmp_path, **FRAMES, cache_mb=4)
    before = reader.video("a.mp4")
    (tmp_path / "a.mp4").unlink()
    np.testing.assert_array_equal(reader.video("a.mp4"), before)
    with pytest.raises(VideoError):
        FrameReader(tmp_path, **FRAMES).video("a.mp4")


def test_sizes_do_not_mix_in_memory(world, cache):
    sizes = [FrameReader(world, 2, s, cache_mb=4).video("train/000000.mp4").shape for s in (24, 48)]
    assert sizes == [(2, 24, 24, 3), (2, 48, 48, 3)]


def test_the_oldest_clips_leave_when_memory_is_full(world, cache):
    clip = 8 * 48 * 48 * 3
    fits = 2**20 // clip
    assert 2 < fits < 24
    reader = FrameReader(world, **FRAMES, cache_mb=1)
    for i in range(24):
        reader.video(f"train/{i:06d}.mp4")
        assert (str(world / "train/000000.mp4"), 48) in cache._clips  # in use, so it stays
        reader.video("train/000000.mp4")
        assert cache._bytes == sum(frames.nbytes for frames, _ in cache._clips.values()) <= 2**20
    held = [Path(path).stem for path, _ in cache._clips]
    assert sorted(held) == ["000000", *(f"{i:06d}" for i in range(25 - fits, 24))]


def test_a_long_clip_is_read_but_not_kept(cache):
    plain, kept = (FrameReader(VIDEOS, 4, 128, cache_mb=mb) for mb in (0, 64))
    np.testing.assert_array_equal(kept.video("h264.mkv"), plain.video("h264.mkv"))
    assert not cache._clips


# Pictures.


def test_a_picture_is_a_video_of_one_frame(examples, world):
    source = examples(annotations=str(world / "captions.json"), prompt="plain")
    frames = source[0].frames_THWC
    pixels = np.asarray(Image.open(world / source.rows[0]["image"]))
    assert frames.shape == (2, 48, 48, 3)
    np.testing.assert_array_equal(frames, np.stack([pixels, pixels]))


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "1", "CMYK"])
def test_any_kind_of_picture_becomes_a_square_of_colours(tmp_path, mode):
    name = "a.jpg" if mode == "CMYK" else "a.png"
    Image.new("RGB", (30, 20), (255, 255, 255)).convert(mode).save(tmp_path / name)
    frames = FrameReader(tmp_path, **FRAMES).image(name)
    assert frames.shape == (3, 48, 48, 3)
    assert frames.dtype == np.uint8
    assert frames.min() > 240


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "flipped", "text", "folder", "long chunk"]
)
def test_a_broken_picture_is_a_video_error_that_names_it(world, tmp_path, damage):
    whole = bytearray((world / "pictures/000000.png").read_bytes())
    file = tmp_path / "a.png"
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":  # bits inside the compressed pixels
        whole[len(whole) // 2] ^= 0xFF
        file.write_bytes(whole)
    elif damage == "long chunk":  # the pixels' chunk has no valid name
        at = whole.index(b"IDAT")
        whole[at : at + 4] = b"\0\0\0\0"
        file.write_bytes(whole)
    elif damage == "text":
        file.write_text("not a picture")
    elif damage == "folder":
        file.mkdir()
    with pytest.raises(VideoError, match=r"a\.png: ") as e:
        FrameReader(tmp_path, **FRAMES).image("a.png")
    assert "\n" not in str(e.value)


# Several videos and images, or none.


@pytest.fixture
def mixed(examples, world, tmp_path):
    """Return rows with two clips and a picture, two pictures, a clip, and neither."""
    clips = [row["video"] for row in json.loads((world / "train.json").read_text())[:2]]
    pictures = [row["image"] for row in json.loads((world / "captions.json").read_text())[:2]]
    rows = [
        ("both", "<video> <image> <video> which ?", {"video": clips, "image": pictures[0]}),
        ("pictures", "<image> <image> which ?", {"image": pictures}),
        ("clip", "<video> which ?", {"video": clips[1]}),
        ("picture", "<image> which ?", {"image": pictures[1]}),
        ("neither", "which ?", {}),
    ]
    turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": "red"}] for _, q, _ in rows]
    (tmp_path / "rows.json").write_text(
        json.dumps(
            [
                {"id": id, "conversations": said, **names}
                for (id, _, names), said in zip(rows, turns, strict=True)
            ]
        )
    )

    def make(*assignments):
        source = examples(*assignments, annotations=str(tmp_path / "rows.json"))
        return source, {row["id"]: source[i] for i, row in enumerate(source.rows)}

    return make, clips, pictures


def test_media_follow_one_another_and_are_padded_at_the_end(mixed, world, tok):
    make, clips, pictures = mixed
    source, found = make("data.read_threads=1")
    reader = FrameReader(world, 2, 48)
    first, second = map(reader.video, clips)
    one, two = (reader.image(name, 1) for name in pictures)
    expected = {
        "both": [first, one, second],
        "pictures": [one, two],
        "clip": [second],
        "picture": [two, two],
        "neither": [],
    }
    for id, media_of_row in expected.items():
        frames, T = found[id].frames_THWC, sum(map(len, media_of_row))
        assert frames.shape == (5, 48, 48, 3)
        for start, end, part in spans(media_of_row):
            np.testing.assert_array_equal(frames[start:end], part)
        assert not frames[T:].any()
        assert (found[id].tokens_L == tok.special[VIDEO]).sum() == 4 * T
        assert found[id].tokens_L.shape == (5 * 4 + 160,)
    (batch,) = batches(source, 5, 1, 0)
    assert batch.frames_BTHWC.shape == (5, 5, 48, 48, 3)


def spans(parts):
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return zip([0, *ends], ends, parts, strict=False)


def test_newlines_are_counted_in_the_room_for_visual_tokens(mixed, tok):
    _, found = mixed[0]("model.newline=grid")
    for id, frames in (("both", 5), ("clip", 2), ("neither", 0)):
        tokens = found[id].tokens_L
        assert (tokens == tok.special[VIDEO]).sum() == 4 * frames
        assert (tokens == tok.special[NEWLINE]).sum() == 2 * frames
        assert tokens.shape == (5 * 6 + 160,)


def test_room_for_text_does_not_depend_on_the_media(mixed):
    with pytest.raises(ValueError, match=r"example '\w+': has \d+ text tokens; .* allows 7"):
        mixed[0]("data.max_text_tokens=7")


# Labels and padding.


def test_llavas_labels_leave_out_the_first_token_only(examples, tok):
    source = examples(mask="llava")
    ids, is_answer = chat.encode(
        source.rows[0]["conversations"], tok, [[tok.special[VIDEO]] * 8], mask="llava"
    )
    example, m = source[0], sum(is_answer) - 1
    assert is_answer[0]
    assert example.target_weight_M.sum() == m
    expected = [i for i, shown in enumerate(is_answer) if shown][1:]
    assert (example.target_pos_M[:m] + 1).tolist() == expected
    assert example.target_ids_M[:m].tolist() == [ids[i] for i in expected]


def test_padding_swallows_no_exclamation_mark(tmp_path):
    """Id 0 is "!" in Llama 3 and here; it must be distinguished from padding."""
    save_byte_level(tmp_path, FAMILIES["llama3"].values())
    tok = tokenizer.load(tmp_path)
    assert tok.encode("!") == [0]
    turns = [{"from": "human", "value": "hi!!"}, {"from": "gpt", "value": "!yes!"}]
    encoded = chat.Assembler(DataConfig(), ModelConfig(), tok).conversation(turns, [])
    example = pipeline.pad(encoded, np.zeros((0, 4, 4, 3), np.uint8), 0, 100)
    length = len(encoded.ids)
    assert example.tokens_L.tolist() == encoded.ids + [0] * (100 - length)
    assert example.tokens_L[:length].tolist().count(0) == 4
    weighted = example.target_weight_M > 0
    assert example.target_ids_M[weighted].tolist() == [*tok.encode("!yes!"), tok.special[EOT]]
    assert tok.decode(example.target_ids_M[weighted]) == "!yes!"
    assert (example.target_pos_M[weighted] >= length - 7).all()
