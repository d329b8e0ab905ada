"""The study's page, table and verdict, from made-up scores: nothing is trained."""

import dataclasses
import json
import re

import numpy as np
import pytest

from configs import study as study_lib
from configs import study_mini
from fitting.runs import read_runs, write_runs
from tests.fitting.synthetic import true_error
from tools.study import findings, laws, outcome, page, verdict
from tools.study.results import Results, effects, mean_of, star_center
from vvlm_jax.data import synthetic

TASKS = ("flash", "cell", "most")
UNITS = [60_000, 4, 9, 40]


def result(score, spread=1.0):
    scores = dict.fromkeys((*TASKS, "avg"), score)
    return {
        "scores": scores,
        "stderr": dict.fromkeys(scores, spread),
        "num_questions": dict.fromkeys(TASKS, 12),
        "unreadable": [],
    }


def errors_of(points, noise=0.01, seed=0):
    x = np.array([(p.lm_params, p.num_frames, p.tokens_per_frame) for p in points], float)
    n = np.array([p.num_examples for p in points], float)
    ripple = np.exp(noise * np.random.default_rng(seed).standard_normal(len(points)))
    return ripple * true_error("add", x, n, UNITS)


def rows_of(points, by_run):
    return [
        dict(
            **{name: getattr(p, name) for name in ("run_id", "sweep", "lm_params", "num_frames")},
            tokens_per_frame=p.tokens_per_frame,
            num_examples=p.num_examples,
            seed=p.seed or 0,
            protocol="questions",
            metric=metric,
            score=score,
            score_se=1.0,
        )
        for p in points
        for metric, score in by_run[p.run_id]["scores"].items()
    ]


def answer(work, points, videos=300):
    """Write questions, and predictions that are right as often as the errors of the points say."""
    rng = np.random.default_rng(7)
    asked = [
        {"id": f"{v}-{task}", "task": task, "video": f"test/{v}.mp4"}
        for v in range(videos)
        for task in TASKS
    ]
    (work / "test.jsonl").write_text("".join(json.dumps(q) + "\n" for q in asked))
    luck = rng.random(len(asked))  # some questions are hard for every run
    for point, error in zip(points, errors_of(points, seed=1), strict=True):
        mixed = np.where(rng.random(len(asked)) < 0.5, luck, rng.random(len(asked)))
        file = work / "runs" / point.run_id / "evaluate-s12-test" / "predictions.jsonl"
        file.parent.mkdir(parents=True)
        right = (mixed > error / 100).tolist()
        lines = [{"id": q["id"], "correct": ok} for q, ok in zip(asked, right, strict=True)]
        if point is points[0]:
            lines[0] = {"id": asked[0]["id"], "error": "test/0.mp4: damaged"}
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return (folder, points, results, study, verdict): a miniature whose scores follow a law;
    training read no file that was damaged but one.
    """
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    study = study_mini.config()
    options = dict(num_frames=study.num_frames, flash_lengths=study.flash_lengths)
    synthetic.write_videos(work, "val", 3, study.turns, size=study.image_size, seed=0, **options)
    points = study_lib.sweep(study, str(work)).points
    further = study_lib.replicate_sweep(study, str(work)).points
    everything = [*points, *further]
    scores = zip(everything, errors_of(everything), strict=True)
    by_run = {p.run_id: result(100 - e) for p, e in scores}
    write_runs(out / "runs.csv", rows_of(everything, by_run))
    table = read_runs(out / "runs.csv")
    found = Results(by_run, [result(20.0), result(22.0)], result(21.0), ["train/3.mp4: damaged"])
    analysis = laws.law(study, table, forms=("mult", "add"))  # the others compile for long
    choices = laws.choose(study, analysis, work / "decision.json")
    assert laws.choose(study, analysis, work / "decision.json") == choices, "kept, and read again"
    tested = [one.x for choice in choices for one in choice.tested]
    answer(work, study_lib.decision_sweep(study, str(work), tested).points)
    said = verdict.make(study, analysis, table, choices, work)
    page.write(study, points, table, found, analysis, said, work, out)
    return out, points, found, study, said, analysis


def test_the_page_has_the_controls_the_law_and_the_notice(made):
    out, points, *_ = made
    text = (out / "report.html").read_text()
    for words in (
        "What this is", "Is it learning?", "21.0 ± 0.7", "21.0 ± 1.0", "train/3.mp4: damaged",
        "no number here", "In short", "Table 2",
        "Evaluation protocol: questions.",
    ):  # fmt: skip
        assert words in text, words
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    names = {path.stem.partition("_")[0] for path in (out / "figures").glob("*.svg")}
    assert names >= {
        "clip",
        "decision",
        *(f"figure{n}" for n in ("2", "3a", "3b", "3c", "4", "6", "7")),
    }
    assert (out / "fit" / "fit.json").is_file()
    assert len(read_runs(out / "runs.csv", metric="avg")) == len(points) + 2


def test_an_effect_is_the_fall_from_the_smallest_level_to_the_largest(made):
    _, points, found, *_ = made
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


# The verdict.


def test_the_verdict_of_a_true_law_is_good_and_says_where_it_is_synthetic(made):
    *_, said, _ = made
    law = said["law"]
    assert said["synthetic"] is True
    assert law["r2"] > 0.9
    assert law["star_to_isoflop"].keys() == {"r2", "mean_relative_error", "coverage", "half_width"}
    assert 0 <= law["coverage"] <= 1
    assert law["half_width"] > 0
    assert law["without_chance"]["runs"] <= law["runs"] == 21
    assert law["lack_of_fit"]["verdict"] in ("holds", "doubtful", "no law")
    assert said["run_noise"]["replicates"]["dof"] == 2


def test_every_tested_point_has_its_seeds_cost_and_regret(made):
    _, _, _, study, said, _ = made
    budgets = [test["budget"] for test in said["decision"]]
    assert budgets == pytest.approx([0.75 * 24e6, 1.3 * 24e6])
    for test in said["decision"]:
        best, *rivals = test["tested"]
        assert (best["rule"], best["x"]) == ("x*", test["x"])
        assert [r["rule"] for r in rivals] == list(study.decision.rivals)
        assert all(len(p["errors"]) == 2 and p["cost"] <= test["budget"] for p in test["tested"])
        assert all(p["cost"] >= 0.5 * test["budget"] for p in rivals)
        for rival in rivals:
            assert rival["regret"] == pytest.approx(best["error"] - rival["error"], abs=1e-3)
            assert rival["interval"][0] < rival["regret"] < rival["interval"][1]
        assert test["largest_regret"]["regret"] == max(r["regret"] for r in rivals)
        assert test["rank"] == 1 + sum(r["error"] < best["error"] for r in rivals)
        assert test["bound"] == max(study.decision.tolerance, test["regret_bound"])
        assert set(test["questions"]) == set(TASKS)
    asked = sum(said["decision"][0]["questions"].values())
    assert asked == 3 * 300 - 1, "a question that one run could not be asked is left out for all"


def test_the_page_opens_with_the_outcome(made):
    out, *_, said, _ = made
    text = (out / "report.html").read_text()
    main = text[text.index("<main>") :]
    first = re.search(r"<p>(.*?)</p>", main)[1]
    assert said["decision"][0]["outcome"].upper() in first
    for word in ("predicted", "measured", "regret", "bound", "rank"):
        assert word in first, word
    assert main.index("<img") < main.index("What this is"), "one picture before all else"


def test_outcomes_are_said_for_every_budget_or_why_there_is_none(made):
    *_, said, _ = made
    assert "was not tested" in outcome.sentences({"decision": []})[0]
    alone = {**said["decision"][0], "why": "there is no rival within reach"}
    del alone["measured"]
    assert "there is no rival within reach" in outcome.sentences({"decision": [alone]})[0]
    assert len(outcome.sentences(said)) == 2


def test_findings_are_said_plainly(made):
    study, analysis = made[3], made[5]
    found = findings.findings(analysis, study_lib.domain(study), 0.2, 0.9)
    joint = [f for f in found if f.claim.startswith("joint")]
    assert [f.factor for f in joint] == ["lm_params", "num_frames", "tokens_per_frame"]
    assert all(f.said in (findings.SEEN, findings.DIFFERS, findings.OPEN) for f in found)
    signs = {f.factor: f for f in found if f.claim.startswith("elasticity")}
    assert "below 0" in signs["lm_params"].claim
    assert all(f.said == findings.OPEN for f in signs.values()), "the form add has no elasticity"


def test_diminishing_returns_are_measured_not_taken_from_the_law(made):
    *_, analysis = made
    table = analysis.table
    error = table.error.copy()
    star = table.columns["sweep"] == "star"
    rows = star & (table.n == table.n[star].max())
    middle = rows & (table.x[:, 0] == 54000)
    straight = dataclasses.replace(table, error=np.where(middle, error[rows].max(), error))
    changed = dataclasses.replace(analysis, table=straight)
    (sizes,) = [
        f for f in findings.findings(changed, study_lib.domain(study_mini.config()), 0.0, 0.9)
        if f.claim.startswith("dim") and f.factor == "lm_params"
    ]  # fmt: skip
    assert sizes.value < 0
    assert sizes.said in (findings.DIFFERS, findings.OPEN)


def test_runs_near_chance_are_named(made):
    *_, analysis = made
    chance = np.mean(list(synthetic.CHANCE.values()))
    error = analysis.table.error.copy()
    error[:2] = 100 - chance - np.array([2.9, 3.1])
    table = dataclasses.replace(analysis.table, error=error)
    assert laws.near_chance(table)[:2].tolist() == [True, False]
