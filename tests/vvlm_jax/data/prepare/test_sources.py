"""Public sets in their published layouts become rows; what cannot is told in one line."""

import errno
import json
import re

import pytest

from configs import mixtures
from tests.testdata import make_sources
from vvlm_jax.data.prepare import sources
from vvlm_jax.data.prepare.archives import archives_of, extract_all
from vvlm_jax.data.prepare.mixture import MixtureConfig, SourceConfig, SubsetConfig, without

ROWS = make_sources.ROWS
FILES = {
    "llava_hound": 1, "llava_video_178k": 24, "activitynet_qa": 4, "next_qa": 8,
    "perception_test": 2, "video_instruct_100k": 1, "vcg_plus_112k": 1, "vcg_human": 1,
    "videochat": 2, "kinetics_710": 1, "ssv2": 1, "clevrer": 2, "webvid": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_sources.make_sources(folder)
    return folder


def row(**values):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    return {"id": "a", "video": "a.mp4", "conversations": turns, **values}


def said(*texts):
    roles = ("human", "gpt") * len(texts)
    return [{"from": r, "value": t} for r, t in zip(roles, texts, strict=False)]


def mine(root, *rows, name="a.json", media=(".",)):
    """Return rows of a mixture of one file."""
    text = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (root / name).write_text(text)
    return MixtureConfig("mine", (SubsetConfig("a", (SourceConfig(name, media),)),))


@pytest.mark.light
def test_every_layout_gives_its_rows_in_order(root):
    rows = list(sources.rows_of(mixtures.paper(), root))
    assert not [r.problem for r in rows if r.problem]
    counts = {}
    for r in rows:
        counts[r.subset] = counts.get(r.subset, 0) + 1
    assert list(counts.items()) == [(name, ROWS * files) for name, files in FILES.items()]
    assert [r.place for r in rows] == [
        f"{file}: row {i}"
        for _, _, file in sources.files_of(mixtures.paper(), root)
        for i in range(1, ROWS + 1)
    ]


def test_every_medium_is_found_below_the_root(root):
    for mixture in (mixtures.paper(), mixtures.lcs()):
        for r in sources.rows_of(mixture, root):
            ((kind, path),) = r.media
            assert kind == ("image" if r.subset == "lcs_558k" else "video")
            assert (root / path).is_dir() if r.subset == "llava_hound" else (root / path).is_file()


def test_what_the_paper_leaves_out_is_not_read(root):
    files = {file.name for _, _, file in sources.files_of(mixtures.paper(), root)}
    assert "reasoning_next_qa.json" not in files
    there = {f.name for f in (root / "VideoGPT-plus_Training_Dataset/annotations").iterdir()}
    assert there - files == {"reasoning_next_qa.json"}


def test_archives_are_extracted_once_where_rows_look(tmp_path):
    make_sources.make_sources(tmp_path, archives=True)
    both = (mixtures.paper(), mixtures.lcs())
    for mixture in both:
        paths = [p for r in sources.rows_of(mixture, tmp_path) for _, p in r.media]
        assert not all((tmp_path / p).exists() for p in paths)
        archives = archives_of(mixture, tmp_path)
        assert len(archives) == (1 if mixture.name == "lcs" else 18)
        extract_all(archives, lambda done, total: None)
        assert archives_of(mixture, tmp_path) == []
        paths = [p for r in sources.rows_of(mixture, tmp_path) for _, p in r.media]
        assert all((tmp_path / p).exists() for p in paths)


def test_a_damaged_archive_is_named_and_taken_up_again(tmp_path, monkeypatch):
    make_sources.make_sources(tmp_path, archives=True)
    folder = tmp_path / "LLaVA-Video-178K" / "0_30_s_nextqa"
    (archive,) = folder.glob("*.tar.gz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    archives = [one for one in archives_of(mixtures.paper(), tmp_path) if one[0] == archive]
    with pytest.raises(ValueError, match=rf"{archive.name}: damaged or truncated \(.*download it"):
        extract_all(archives, lambda done, total: None)
    archive.write_bytes(whole)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with monkeypatch.context() as patch:
        patch.setattr("vvlm_jax.data.prepare.archives.shutil.copyfileobj", full)
        with pytest.raises(OSError, match="No space left"):  # nothing to download again
            extract_all(archives, lambda done, total: None)
    extract_all(archives, lambda done, total: None)
    assert len(list(folder.rglob("*.mp4"))) == ROWS


def test_a_missing_root_or_set_is_named_with_what_to_do(root, tmp_path):
    with pytest.raises(ValueError, match="--source .*nowhere: no such folder"):
        list(sources.rows_of(mixtures.paper(), tmp_path / "nowhere"))
    with pytest.raises(
        ValueError,
        match=r"subset llava_hound: no LLaVA-Video-178K/llava_hound/.* in .* \(as lmms-lab/LLaVA-"
        "Video-178K is published\\); get it, or leave the subset out: --without llava_hound",
    ):
        list(sources.rows_of(mixtures.paper(), tmp_path))
    video = without(mixtures.paper(), [s for s in FILES if s != "clevrer"])
    assert len(list(sources.rows_of(video, root))) == 2 * ROWS


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (row(conversations=said("what?", "red")), "has no <image> or <video> placeholder for 1 v"),
        (row(conversations=said("<image><video> what?", "red")), "has 2 .* placeholders for 1 v"),
        (row(conversations=said("<video>", "red", "<video>", "red")), "has 2 .* for 1 video"),
        (row(conversations=said("<video> what?", " \n")), "turn 2: the answer is empty"),
        (row(conversations=said("<video> what?")), "no answer at the end of the conversation"),
        (row(conversations=[]), "has no `conversations` list"),
        (row(conversations=[{"from": "bot", "value": "a"}]), "turn 1 is not {from: human or gpt"),
        (row(video=3), "video or image is neither a path"),
        (row(video="a\0.mp4"), "video or image is neither a path"),
        (row(video="\ud800.mp4"), "video or image is neither a path"),
        (row(id="\ud800"), "id contains an unpaired"),
        (row(conversations=said("<video>", "red \ude00")), "turn 2 contains an unpaired"),
        (row(video="/etc/a.mp4"), "'/etc/a.mp4' is outside"),
        (row(video="../a.mp4"), "'../a.mp4' is outside"),
        (row(video=None), "has 1 .* placeholder for 0 videos"),
        ("words", "has no `conversations` list"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_rows_that_can_be_no_example_say_why_and_where(tmp_path, name, bad, problem):
    good, wrong = sources.rows_of(mine(tmp_path, row(), bad, name=name), tmp_path)
    assert good.problem == ""
    assert wrong.place == f"{tmp_path / name}: row 2"
    assert re.search(problem, wrong.problem)


def test_a_broken_line_is_named(tmp_path):
    mixture = mine(tmp_path, row(), name="a.jsonl")
    (tmp_path / "a.jsonl").write_text(json.dumps(row()) + '\n\n{"id": 3,\n')
    with pytest.raises(ValueError, match=r"a\.jsonl: line 3 is not JSON"):
        list(sources.rows_of(mixture, tmp_path))
    mixture = mine(tmp_path, row(), name="b.json")
    (tmp_path / "b.json").write_text('[\n{"id": 3},\n{"id" 4}]')
    with pytest.raises(ValueError, match=r"b\.json: line 3 is not JSON"):
        list(sources.rows_of(mixture, tmp_path))
    for text in ("[" * 10**6, f"[{'1' * 10_000}]"):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ValueError, match=r"b\.json: is not readable JSON"):
            list(sources.rows_of(mixture, tmp_path))
    (tmp_path / "a.jsonl").write_text(f"\n{text}")
    with pytest.raises(ValueError, match=r"a\.jsonl: line 2 is not readable JSON"):
        list(sources.rows_of(sources.from_file(tmp_path / "a.jsonl"), tmp_path))


def test_a_mixture_file_of_llava(tmp_path):
    for name, count in (("x.json", 10), ("y.json", 4)):
        mine(tmp_path, *(row(id=f"{name}{i}") for i in range(count)), name=name)
    mine(tmp_path, *(row(id=f"z{i}") for i in range(3)), name="z.jsonl")
    file = tmp_path / "Mix-1.yaml"
    file.write_text(
        f"datasets:\n  - json_path: {tmp_path / 'x.json'}\n    sampling_strategy: first:15%\n"
        '  - json_path: y.json\n    sampling_strategy: "end:1"\n  - json_path: z.jsonl\n'
    )
    mixture = sources.from_file(file)
    assert mixture.name == "mix_1"
    ids = [r.id for r in sources.rows_of(mixture, tmp_path)]
    assert ids == ["x.json0", "x.json1", "y.json3", "z0", "z1", "z2"]
    braces = sources.from_file(tmp_path / "{x,y}.json")
    assert [s.name for s in braces.subsets] == ["x", "y"]
    assert len(list(sources.rows_of(braces, tmp_path))) == 14
    assert len(list(sources.rows_of(sources.from_file(tmp_path / "z.jsonl"), tmp_path))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: [", r"m\.yaml: line 1 is not YAML"),
        ("data: []", r"m\.yaml: must hold `datasets:`"),
        ("datasets:\n  - path: a", r"m\.yaml: entry 1 of datasets has no json_path"),
        ("datasets:\n  - {json_path: a.json, sampling_strategy: some}", "a: sampling 'some': must"),
    ],
)
def test_a_wrong_mixture_file_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        sources.from_file(tmp_path / "m.yaml")
    with pytest.raises(ValueError, match=r"n\.yaml: no such mixture file"):
        sources.from_file(tmp_path / "n.yaml")
