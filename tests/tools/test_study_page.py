"""The study's page and table, from made-up scores: nothing is trained."""

import re

import numpy as np
import pytest

from configs import study as study_lib
from configs import study_mini
from fitting.runs import read_runs
from tests.fitting.synthetic import true_error
from tools.study import page
from tools.study.jobs import star_center
from tools.study.results import Results, effects, mean_of
from vvlm_jax.data import synthetic

TASKS = ("flash", "cell", "most")


def result(score, spread=1.0):
    scores = dict.fromkeys((*TASKS, "avg"), score)
    return {
        "scores": scores,
        "stderr": dict.fromkeys(scores, spread),
        "num_questions": dict.fromkeys(TASKS, 12),
        "unreadable": [],
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, points): the page of a miniature whose scores follow a law; training read no file
    that was damaged but one.
    """
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    study = study_mini.config()
    options = dict(num_frames=study.num_frames, flash_lengths=study.flash_lengths)
    synthetic.write_videos(work, "val", 3, study.turns, size=study.image_size, seed=0, **options)
    points = study_lib.sweep(study, str(work)).points
    units = [60_000, 4, 9, 40]
    x = np.array([(p.lm_params, p.num_frames, p.tokens_per_frame) for p in points], float)
    n = np.array([p.num_examples for p in points], float)
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(points)))
    errors = noise * true_error("add", x, n, units)
    by_run = {p.run_id: result(100 - e) for p, e in zip(points, errors, strict=True)}
    rows = [
        dict(
            **{name: getattr(p, name) for name in ("run_id", "sweep", "lm_params", "num_frames")},
            tokens_per_frame=p.tokens_per_frame,
            num_examples=p.num_examples,
            seed=0,
            protocol="questions",
            metric=metric,
            score=score,
            score_se=1.0,
        )
        for p in points
        for metric, score in by_run[p.run_id]["scores"].items()
    ]
    found = Results(by_run, [result(20.0), result(22.0)], result(21.0), ["train/3.mp4: damaged"])
    cost, domain = study_lib.inference_cost(study), study_lib.domain(study)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "PAPER_FORMS", ("mult", "add"))  # the others compile for long
        page.write(study, points, rows, found, work, out, cost, domain)
    return out, points, found


def test_the_page_has_the_controls_the_law_and_the_notice(made):
    out, points, _ = made
    text = (out / "report.html").read_text()
    for words in (
        "What this is", "Is it learning?", "21.0 ± 0.7", "21.0 ± 1.0", "train/3.mp4: damaged",
        "no number here", "In short", "Table 2",
        "Evaluation protocol: questions.",
    ):  # fmt: skip
        assert words in text, words
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    names = {path.stem.partition("_")[0] for path in (out / "figures").glob("*.svg")}
    assert names >= {"clip", *(f"figure{n}" for n in ("2", "3a", "3b", "3c", "4", "6", "7"))}
    assert (out / "fit" / "fit.json").is_file()
    assert len(read_runs(out / "runs.csv", metric="avg")) == len(points)


def test_an_effect_is_the_fall_from_the_smallest_level_to_the_largest(made):
    _, points, found = made
    by_factor = {effect.factor: effect for effect in effects(points, found.by_run)}
    assert set(by_factor) == {"lm_params", "num_frames", "tokens_per_frame", "num_examples"}
    frames = by_factor["num_frames"]
    assert (frames.task, frames.levels) == ("flash", (2, 4))
    assert frames.drop == pytest.approx(frames.errors[0] - frames.errors[1])
    assert frames.drop_in_stderrs == pytest.approx(frames.drop / 2**0.5)
    center = star_center(points)
    largest = 100 - found.by_run[center.run_id]["scores"]["flash"]
    assert frames.errors[1] == pytest.approx(largest)


def test_means_of_controls_have_smaller_standard_errors():
    mean = mean_of([result(20.0), result(22.0)])
    assert mean["scores"]["flash"] == 21.0
    assert mean["stderr"]["flash"] == pytest.approx(2**0.5 / 2)
