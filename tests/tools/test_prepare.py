"""The prepare command, from published layouts to a data set with its card."""

import json
import shutil

import pytest

from configs import mixtures
from tests.testdata import make_sources
from tools import prepare
from tools.common import die_in_one_line
from vvlm_jax.data.prepare import check_media

PAPER = "paper"
ROWS = make_sources.ROWS


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_sources.make_sources(folder)
    return folder


@pytest.fixture
def root(sources, tmp_path):
    return shutil.copytree(sources, tmp_path / "root")


def run(root, out, *, mixture=PAPER, **options):
    prepare.main(
        prepare.Args(
            mixture, str(root), str(out), **{"workers": 0, "allow_counts": True, **options}
        )
    )
    return json.loads(next(out.glob("*/1.0.0/card.json")).read_text())


def says(capsys, *args, **options):
    """Return the one line that a failing call ends with."""
    with pytest.raises(SystemExit) as stopped:
        die_in_one_line(lambda: run(*args, **options))
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.light
def test_the_card_counts_every_subset(root, tmp_path, capsys):
    card = run(root, tmp_path / "out")
    paper = mixtures.paper()
    assert [s["name"] for s in card["subsets"]] == [s.name for s in paper.subsets]
    assert sum(s["published"] for s in card["subsets"]) == 2_192_374
    assert sum(s["examples"] for s in card["subsets"]) == card["examples"] == 49 * ROWS
    assert card["videos"]["count"] == 29 * ROWS  # many questions share a video
    least, *_, most = card["videos"]["num_frames"]
    assert 3 <= least <= most <= 6
    assert card["videos"]["duration_s"][-1] == most / 2
    assert card["media_broken"] == []
    printed = capsys.readouterr().out
    assert "| clevrer | 6 | 82,620 | 6 | 0 |" in printed
    assert f"data.annotations={tmp_path}/out/paper/1.0.0 data.media_root={root}" in printed
    assert (tmp_path / "out/paper/1.0.0/card.md").read_text() in printed


def test_counts_that_differ_name_subset_and_difference(root, tmp_path, capsys):
    line = says(capsys, root, tmp_path / "out", allow_counts=False)
    assert "clevrer has 6 examples, 82,614 fewer than the 82,620 published; " in line
    assert line.endswith("continue anyway with --allow-counts")
    assert not (tmp_path / "out").exists()


def test_subsets_are_left_out(root, tmp_path):
    shutil.rmtree(root / "LLaVA-Video-178K" / "llava_hound")
    card = run(root, tmp_path / "out", without=("llava_hound", "webvid"))
    assert card["examples"] == 47 * ROWS
    assert {"llava_hound", "webvid"} & {s["name"] for s in card["subsets"]} == set()


def test_images_of_stage_1_are_prepared_too(root, tmp_path):
    card = run(root, tmp_path / "out", mixture="mixtures:lcs")
    assert (card["examples"], card["images"], card["kinds"]) == (ROWS, ROWS, [[0, 1]])


def test_broken_media_stop_it_or_are_left_out(root, tmp_path, capsys):
    clips = sorted((root / "VideoGPT-plus_Training_Dataset/instruction_tuning/ssv2").iterdir())
    clips[0].write_bytes(b"not a video")
    clips[1].unlink()
    out = tmp_path / "out"
    line = says(capsys, root, out)
    assert "2 of 87 media are missing or broken" in line
    assert "--drop-broken" in line
    assert len((out / "broken.txt").read_text().splitlines()) == 2
    card = run(root, out, drop_broken=True)
    assert card["examples"] == 49 * ROWS - 2
    assert [s["examples"] for s in card["subsets"] if s["name"] == "ssv2"] == [ROWS - 2]
    names = [str(clip.relative_to(root)) for clip in clips[:2]]
    assert card["media_broken"] == names


def test_a_row_that_can_be_no_example_stops_it_or_is_left_out(root, tmp_path, capsys):
    file = root / "VideoGPT-plus_Training_Dataset/annotations/vqa_webvid_qa.json"
    rows = json.loads(file.read_text())
    rows[1]["conversations"][-1]["value"] = " "
    file.write_text(json.dumps(rows))
    line = says(capsys, root, tmp_path / "out")
    assert f"{file}: row 2: turn " in line
    assert "the answer is empty" in line
    card = run(root, tmp_path / "out", drop_broken=True)
    assert (card["rows_left_out"], card["rows_wrong"]) == (1, 1)


def test_a_set_of_nothing_is_refused(root, tmp_path, capsys):
    (root / "none.jsonl").write_text("\n")
    line = says(capsys, root, tmp_path / "out", mixture=str(root / "none.jsonl"))
    assert line == "error: none: no example is left of 0 rows"
    turns = [{"from": "human", "value": "<video> what?"}, {"from": "gpt", "value": "red"}]
    (root / "gone.json").write_text(json.dumps([{"video": "gone.mp4", "conversations": turns}]))
    options = {"mixture": str(root / "gone.json"), "drop_broken": True}
    line = says(capsys, root, tmp_path / "out", **options)
    assert line == "error: gone: no example is left of 1 rows"


def test_archives_are_named_and_extracted(tmp_path, capsys):
    make_sources.make_sources(tmp_path / "root", archives=True)
    line = says(capsys, tmp_path / "root", tmp_path / "out")
    assert "18 archives are not extracted: --extract" in line
    card = run(tmp_path / "root", tmp_path / "out", extract=True)
    assert card["examples"] == 49 * ROWS


def test_an_interrupted_call_goes_on_and_a_finished_one_stays(root, tmp_path, monkeypatch, capsys):
    seen, real = [], check_media.look_at

    def look(path, *rest):
        if len(seen) == 20:
            raise KeyboardInterrupt
        seen.append(path)
        return real(path, *rest)

    monkeypatch.setattr(check_media, "look_at", look)
    with pytest.raises(KeyboardInterrupt):
        run(root, tmp_path / "out")
    known = {*seen}
    seen.clear()
    monkeypatch.setattr(check_media, "look_at", lambda p, *rest: seen.append(p) or real(p, *rest))
    card = run(root, tmp_path / "out")
    assert not known & {*seen}
    assert len(known) + len(seen) == 29 * ROWS
    whole = tmp_path / "other"
    assert run(root, whole) == card
    ours, theirs = (sorted((o / "paper/1.0.0").iterdir()) for o in (tmp_path / "out", whole))
    assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]
    seen.clear()
    written = (tmp_path / "out/paper/1.0.0/card.json").stat().st_mtime_ns
    assert run(root, tmp_path / "out") == card
    assert seen == []
    assert (tmp_path / "out/paper/1.0.0/card.json").stat().st_mtime_ns == written
    assert "choose another --out" in says(capsys, root, tmp_path / "out", without=("webvid",))


def test_mistakes_are_told_in_one_line(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert "nowhere: no such folder" in says(capsys, tmp_path / "nowhere", out)
    assert "no LLaVA-Video-178K/" in says(capsys, tmp_path, out)
    assert "did you mean 'webvid'?" in says(capsys, root, out, without=("webvids",))
    assert "no such mixture file" in says(capsys, root, out, mixture=str(tmp_path / "a.yaml"))
    line = says(capsys, root, out, mixture="papre")
    assert "nor a shipped mixture; did you mean 'paper'?" in line
    assert "must define nothing()" in says(capsys, root, out, mixture="configs/mixtures.py:nothing")
    assert "--workers -1: must be 0 or more" in says(capsys, root, out, workers=-1)
    assert "--seconds 0: must be above 0" in says(capsys, root, out, seconds=0)
    (tmp_path / "mix.yaml").write_text("datasets: [{json_path: no.json, sampling_strategy: some}]")
    line = says(capsys, root, out, mixture=str(tmp_path / "mix.yaml"))
    assert f"{tmp_path}/mix.yaml: no: sampling 'some': must be all, first:N" in line
    (tmp_path / "mix.yaml").write_text("datasets: [{json_path: no.json}]")
    line = says(capsys, root, out, mixture=str(tmp_path / "mix.yaml"))
    assert f"{tmp_path}/no.json: no such annotation file" in line
    assert not out.exists()
