import json

import numpy as np
import pytest

from vvlm_jax.config import ConfigError
from vvlm_jax.data.datasets import (
    media_in,
    nested_subset,
    read_conversations,
    read_jsonl,
    row_media,
)


def row(text="red", **extra):
    return {"id": "0", "conversations": [{"from": "gpt", "value": text}], **extra}


def written(path, text):
    path.write_text(text)
    return path


def test_json_and_jsonl_hold_the_same_rows(tmp_path):
    rows = [row("one"), row("two", video="a.mp4")]
    as_json = written(tmp_path / "a.json", json.dumps(rows, indent=1))
    as_lines = written(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, rows)) + "\n")
    assert read_conversations(as_json) == read_conversations(as_lines) == rows


def test_only_a_line_break_ends_a_json_line(tmp_path):
    # JSON allows these inside a string, and Python's splitlines() would cut there.
    rows = [row("one\u2028two"), row("next\x85line"), row("\u2029")]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\r\n" for r in rows)
    file = tmp_path / "a.jsonl"
    file.write_bytes(text.encode())
    assert read_conversations(file) == rows


def test_broken_json_names_file_and_line(tmp_path):
    lines = written(tmp_path / "a.jsonl", f"{json.dumps(row())}\n\n{{broken\n")
    with pytest.raises(ValueError, match=r"a\.jsonl: line 3 is not JSON: Expecting property name"):
        read_jsonl(lines)
    whole = written(tmp_path / "a.json", '[\n{"id": 1},\n{"id": }\n]')
    with pytest.raises(ValueError, match=r"a\.json: line 3 is not JSON: Expecting value"):
        read_conversations(whole)


@pytest.mark.parametrize(
    "bad",
    [
        {"id": "1"},
        {"id": "1", "conversations": []},
        {"id": "1", "conversations": "red"},
        {"id": "1", "conversations": [{"from": "gpt"}]},
        {"id": "1", "conversations": [row()["conversations"][0], {"value": "red"}]},
        {"id": "1", "conversations": ["red"]},
        ["red"],
        None,
    ],
)
def test_a_row_without_its_conversation_is_named(tmp_path, bad):
    file = written(tmp_path / "a.json", json.dumps([row(), bad, row()]))
    with pytest.raises(ValueError, match=r"a\.json: row 2 has no `conversations` list"):
        read_conversations(file)


def test_a_file_that_is_no_list_or_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json: must be a JSON list"):
        read_conversations(written(tmp_path / "a.json", "{}"))
    with pytest.raises(ValueError, match=r"b\.json: no such annotation file \(data\.annotations\)"):
        read_conversations(tmp_path / "b.json")


def test_smaller_subsets_lie_inside_larger_ones():
    all_of_them = nested_subset(50, None, 3)
    assert sorted(all_of_them) == list(range(50))
    for n in (1, 7, 20, 50):
        np.testing.assert_array_equal(nested_subset(50, n, 3), all_of_them[:n])


def test_the_seed_alone_fixes_the_order():
    np.testing.assert_array_equal(nested_subset(50, 50, 3), nested_subset(50, 50, 3))
    assert (nested_subset(50, 50, 3) != nested_subset(50, 50, 4)).any()
    assert (nested_subset(50, 50, 3) != np.arange(50)).any()


@pytest.mark.parametrize("n", [0, -1, 51])
def test_a_subset_that_cannot_be_had_says_what_can(n):
    with pytest.raises(ConfigError, match=rf"data\.num_examples = {n}: must be from 1 to 50,"):
        nested_subset(50, n, 0)


@pytest.mark.parametrize("bad", [{"video": 3}, {"image": ["a.png", None]}, {"video": ""}])
def test_a_path_that_is_no_text_is_named(tmp_path, bad):
    file = written(tmp_path / "a.json", json.dumps([row(), row(**bad)]))
    with pytest.raises(ValueError, match=r"a\.json: row 2: (video|image) = .*: must be a path or"):
        read_conversations(file)


def media(text, **row):
    row["conversations"] = [{"from": "human", "value": text}, {"from": "gpt", "value": "red"}]
    return [tuple(m) for m in row_media(row, 8)]


def test_an_image_alone_stands_still_and_beside_others_is_one_frame():
    assert media("<image>", image="a.png") == [("image", "a.png", 8)]
    assert media("<image>", image=["a.png"]) == [("image", "a.png", 8)]
    assert media("<image><image>", image=["a.png", "b.png"]) == [
        ("image", "a.png", 1),
        ("image", "b.png", 1),
    ]
    assert media("<video>", video="a.mp4", image=None) == [("video", "a.mp4", 8)]
    assert media("what?") == []


def test_media_stand_in_the_order_of_their_placeholders():
    names = {"video": ["a.mp4", "b.mp4"], "image": "a.png"}
    expected = [("video", "a.mp4", 8), ("image", "a.png", 1), ("video", "b.mp4", 8)]
    assert media("<video> <image> <video>", **names) == expected
    # LLaVA-Video calls its videos <image>.
    assert media("<image> <video>", video=["a.mp4", "b.mp4"]) == [expected[0], expected[2]]
    with pytest.raises(ValueError, match="conversation has 1 <video> placeholders for 2 videos"):
        media("<image> <image> <video>", **names)
    assert sorted(media_in({"conversations": [], **names}, 8)) == sorted(expected)
