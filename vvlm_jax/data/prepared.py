"""Prepared data sets: TFDS folders of ArrayRecord shards, written and read without TensorFlow.

A record holds an example's id, subset and conversation, the path of each video and image below the
root of all sources, and the duration and frame count of videos. It holds no pixels. `card.json`
beside the shards describes the whole set. `tfds.builder` and `tfds.data_source` read the folder.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vvlm_jax import atomic
from vvlm_jax.data import chat
from vvlm_jax.data.prepare.check_media import Checked
from vvlm_jax.data.prepare.sources import Row
from vvlm_jax.storage import files

VERSION = "1.0.0"
SPLIT = "train"
CARD = "card.json"
LENGTHS = "lengths.npy"
"""`chat.most_tokens` of every example, int32 [examples]. Batches are bucketed by it, so that no
host reads the rows of other hosts.
"""
_SHARD = 65_536
"""Examples a shard."""
_GROUP = "group_size:1"
"""ArrayRecord option for random access: one record a group."""


def _features():
    import tensorflow_datasets as tfds  # takes a second; needed only to prepare data

    text, sequence = tfds.features.Text, tfds.features.Sequence
    return tfds.features.FeaturesDict(
        {
            "id": text(),
            "subset": text(),
            "conversations": sequence({"from": text(), "value": text()}),
            "video": sequence(text()),
            "image": sequence(text()),
            "duration_s": sequence(np.float32),
            "num_frames": sequence(np.int64),
        }
    )


def _serializer(features) -> Callable[[dict], bytes]:
    """Return a function from a record to its bytes, equal in every process.

    Protobuf's default order of features depends on a hash that differs between processes.
    """
    from tensorflow_datasets.core import example_serializer

    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def serialized(record):
        example = serializer.get_tf_example(features.encode_example(record))
        return example.SerializeToString(deterministic=True)

    return serialized


def write(
    out: Path,
    name: str,
    rows: Iterable[Row],
    media: Mapping[str, Checked],
    total: int,
    card: dict,
    progress=lambda done, total: None,
) -> Path:
    """Write the `total` rows in their order to OUT/NAME/1.0.0, atomically; return that folder.

    card.json gets the entries of `card`, `fingerprint` (a checksum of ids and media in their order)
    and `kinds` (every combination [videos, images] that a row has).
    """
    final = out / name / VERSION
    final.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(final) as partial:
        partial.mkdir()
        _write_shards(partial, name, rows, media, total, card, progress)
    return final


def _write_shards(folder: Path, name, rows, media, total: int, card: dict, progress) -> None:
    from array_record.python import array_record_module

    features = _features()
    serialized = _serializer(features)
    num_shards = max(1, -(-total // _SHARD))
    lengths = [len(part) for part in np.array_split(np.arange(total), num_shards)]
    rows, checksum, kinds, size, done = iter(rows), 0, set(), 0, 0
    most_tokens = np.zeros(total, np.int32)
    for shard, length in enumerate(lengths):
        path = folder / f"{name}-{SPLIT}.array_record-{shard:05d}-of-{num_shards:05d}"
        writer = array_record_module.ArrayRecordWriter(str(path), _GROUP)
        try:
            for _ in range(length):
                record = _record(next(rows), media)
                checksum = zlib.crc32(_identity(record).encode(), checksum)
                kinds.add((len(record["video"]), len(record["image"])))
                data = serialized(record)
                writer.write(data)
                size += len(data)
                most_tokens[done] = chat.most_tokens(record["conversations"])
                done += 1
                progress(done, total)
        finally:
            writer.close()
    if next(rows, None) is not None:
        raise RuntimeError("more rows than were counted")
    _write_metadata(folder, name, features, lengths, size)
    card = {**card, "fingerprint": checksum, "kinds": sorted(map(list, kinds))}
    np.save(folder / LENGTHS, most_tokens)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _record(row: Row, media: Mapping[str, Checked]) -> dict:
    videos = [name for kind, name in row.media if kind == "video"]
    return {
        "id": row.id,
        "subset": row.subset,
        "conversations": [{"from": t["from"], "value": t["value"]} for t in row.conversations],
        "video": videos,
        "image": [name for kind, name in row.media if kind == "image"],
        "duration_s": [media[name].duration_s for name in videos],
        "num_frames": [media[name].num_frames for name in videos],
    }


def _identity(record: dict) -> str:
    return "\t".join([record["id"], *record["video"], *record["image"]]) + "\n"


def _write_metadata(folder: Path, name: str, features, lengths: list[int], size: int) -> None:
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=SPLIT, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[split],
        description="Conversations about videos; made by vvlm prepare, described by card.json.",
        check_data=False,  # needs TensorFlow
    )
    # TFDS takes name and version from the folder's path, which the partial folder lacks.
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text()) | {"name": name, "version": VERSION}
    path.write_text(json.dumps(info, indent=1) + "\n")


def is_prepared(folder: str | Path) -> bool:
    """Return whether a folder was made by `write`."""
    return files.exists(files.path_of(folder) / CARD)


def _check_shard(path, length: int) -> None:
    """Raise ValueError for a truncated shard now, not in the middle of a run."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        if reader.num_records() != length:
            raise ValueError(f"{path.name} holds {reader.num_records()} of {length} examples")
    finally:
        reader.close()


class PreparedRows(Sequence):
    """Rows of a prepared set in LLaVA's form, read on access. Threads may share it.

    A set in a bucket is copied to this machine first, because ArrayRecord reads local files. Raises
    ValueError naming the folder when the set is incomplete.
    """

    def __init__(self, folder: str | Path):
        import tensorflow_datasets as tfds

        self.folder = files.path_of(folder)
        card = files.read_bytes(self.folder / CARD)
        self.card = json.loads(card)
        copy = files.local_copy(self.folder, card)
        try:
            builder = tfds.builder_from_directory(copy)
            split = builder.info.splits[SPLIT]
            for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
                _check_shard(path, length)
            self._source = builder.as_data_source(SPLIT)
            self.most_tokens = np.load(copy / LENGTHS)
        except Exception as e:  # TFDS and ArrayRecord raise many types for missing files
            raise ValueError(f"{self.folder}: incomplete data set: {e}".split("\n")[0]) from e
        for holds, what in ((len(self), "examples"), (len(self.most_tokens), "lengths")):
            if holds != self.card["examples"]:
                raise ValueError(
                    f"{self.folder}: holds {holds} {what}, its card says {self.card['examples']}"
                )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index) -> dict:
        record = self._source[int(index)]
        turns = record["conversations"]
        row = {
            "id": record["id"].decode(),
            "conversations": [
                {"from": role.decode(), "value": text.decode()}
                for role, text in zip(turns["from"], turns["value"], strict=True)
            ],
        }
        for kind in ("video", "image"):
            if len(record[kind]):
                row[kind] = [name.decode() for name in record[kind]]
        return row

    def about(self, index) -> dict:
        """Return a row's subset, and the duration_s and num_frames of its videos."""
        record = self._source[int(index)]
        return {
            "subset": record["subset"].decode(),
            "duration_s": [float(x) for x in record["duration_s"]],
            "num_frames": [int(x) for x in record["num_frames"]],
        }
