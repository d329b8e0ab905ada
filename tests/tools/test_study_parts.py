"""Pretrained parts: packed from trained runs, put in the place of training, refused when stale."""

import dataclasses
import json
import re

import numpy as np
import pytest

from configs import study as study_lib
from configs import study_mini
from tools import study as command
from tools.common import die_in_one_line
from tools.study import jobs, parts
from tools.study.folder import content_hash
from tools.sweep import kinds
from vvlm_jax.config import ConfigError
from vvlm_jax.exit_codes import Exit
from vvlm_jax.override import override
from vvlm_jax.sweep.worker import Stop, run_job
from vvlm_jax.train import model_dir

STUDY = study_mini.config()


def params(run, seed=0):
    rng = np.random.default_rng([seed, len(run)])
    part = study_lib.parts_of(run)[0]
    tree = {"block": {"kernel": rng.standard_normal((3, 2)).astype(np.float32)}}
    return {part: tree, "projector": {"kernel": np.ones((2, 2), np.float32)}}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Parts of runs that were not trained, but look like it."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("parts")
    for run in study_lib.part_stages(STUDY, ""):
        model_dir.save_params(work / "runs" / run, params(run))
    parts.pack(STUDY, work, out)
    return work, out


def test_a_part_takes_the_place_of_its_training(packed, tmp_path):
    _, folder = packed
    found = parts.find(STUDY, folder)
    store = jobs.create(STUDY, tmp_path / "work", parts=found)
    assert {store.job(f"{run}/train").kind for run in study_lib.part_stages(STUDY, "")} == {"part"}
    assert "data/stories" not in store.jobs, "nothing reads them"
    assert "data/captions" in store.jobs, "stage 1 does"
    for run in ("vision", "lm-study-s"):
        assert run_job(store, f"{run}/train", kinds(), Stop())[0] == Exit.DONE
        held = model_dir.load_params(store.folder(run))
        assert held.keys() == {study_lib.parts_of(run)[0]}, (
            "the other parts of the run are not shipped"
        )
        wanted = params(run)[study_lib.parts_of(run)[0]]["block"]["kernel"]
        np.testing.assert_array_equal(held[study_lib.parts_of(run)[0]]["block"]["kernel"], wanted)
    assert jobs.phase_of(store.job("vision/train")) == jobs.PARTS


def test_the_same_runs_give_the_same_files(packed, tmp_path):
    work, folder = packed
    parts.pack(STUDY, work, tmp_path)
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_file_that_was_changed_is_refused(packed, tmp_path):
    work, _ = packed
    parts.pack(STUDY, work, tmp_path / "parts")
    store = jobs.create(STUDY, tmp_path / "work", parts=parts.find(STUDY, tmp_path / "parts"))
    (tmp_path / "parts" / "vision.npz").write_bytes(b"other")
    code, message = run_job(store, "vision/train", kinds(), Stop())
    assert code == Exit.FAILED
    assert "not the file that the manifest names" in message


def test_parts_serve_every_seed_and_other_runs_but_no_other_stage(packed):
    _, folder = packed
    for same in ("seed=3", "budgets=[10e6, 24e6]", "train_videos=400", "resamples=9"):
        assert parts.find(override(STUDY, [same]), folder) is not None, same
    for other in ("captions=65", "stories=129", 'turns=[["cell", 1]]'):
        with pytest.raises(ConfigError, match="were made with other options or data"):
            parts.find(override(STUDY, [other]), folder)


def test_a_world_that_looks_different_needs_other_parts(packed, monkeypatch):
    from vvlm_jax.data import synthetic

    render = synthetic.render
    before = parts.digest(STUDY)
    monkeypatch.setattr(synthetic, "render", lambda *args: 255 - render(*args))
    assert parts.digest(STUDY) != before


def test_shipped_parts_of_another_study_are_made_anew(packed, monkeypatch):
    _, folder = packed
    monkeypatch.setattr(parts, "SHIPPED", folder)
    assert parts.find(STUDY, None) is not None
    assert parts.find(override(STUDY, ["captions=65"]), None) is None
    monkeypatch.setattr(parts, "SHIPPED", folder / "nowhere")
    assert parts.find(STUDY, None) is None


def test_a_study_from_parts_has_a_folder_of_its_own(packed, tmp_path):
    work, folder = packed
    found = parts.find(STUDY, folder)
    assert content_hash(STUDY, found) != content_hash(STUDY)
    files = {**found.manifest["files"], "vision": {"name": "vision.npz", "sha256": "0"}}
    other = dataclasses.replace(found, manifest={**found.manifest, "files": files})
    assert content_hash(STUDY, other) != content_hash(STUDY, found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(from_scratch=True, parts="there"), "--parts: is not for --from-scratch"),
        (dict(parts="nowhere"), "--parts .*nowhere: no parts.json; vvlm study --make-parts"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, options, message):
    options |= {"parts": tmp_path / options["parts"]}
    args = command.Args(out=tmp_path / "out", **options)
    with pytest.raises(SystemExit):
        die_in_one_line(lambda: command.main(args))
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {message}", line), line
    assert not (tmp_path / "out").exists()


def test_what_ships_is_whole_and_small():
    """The files in the repository, where there are any; a stale one only costs time."""
    file = parts.SHIPPED / parts.MANIFEST
    if not file.is_file():
        assert not list(parts.SHIPPED.glob("*.npz")), "parts without a manifest"
        return
    manifest = json.loads(file.read_text())
    assert manifest["synthetic"] is True
    total = sum((parts.SHIPPED / f["name"]).stat().st_size for f in manifest["files"].values())
    assert total <= 3e6
