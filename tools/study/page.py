"""The study's page: the outcome first, then its controls and the common report."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fitting.report.jobs import describe
from fitting.report.page import write_page
from fitting.report.results import Results as PageResults
from fitting.report.results import Settings, Subject
from fitting.runs import RunTable
from vvlm_jax.data.video import read_frames

from ..common import shipped
from . import laws
from .findings import findings
from .outcome import add_findings, add_outcome
from .results import MARGIN, NAMES, Effect, Results, effects, mean_of, star_center

study_lib = shipped("study")

MARK = "Synthetic clips, small models: no number here says anything about a public benchmark."
"""Notice on the page and its figures."""


_QUESTIONS = {
    "board": [
        ["flash", "which colour flashes ?", "open, exact", "frames"],
        ["cell", "what is at b3 ?", "open, exact", "visual tokens a frame"],
        ["most", "which colour is most frequent ? A…D", "multiple choice", "LM size"],
    ],
    "graded": [
        ["flash", "flash", "the colour that lights the ground for a while", "frames"],
        ["cell", "b3", "the colour of a named cell", "visual tokens a frame"],
        ["word", "balu", "the ground's colour in a dialect's words", "LM size, examples"],
    ],
}
"""World → its tasks: name, an example, kind of answer, the factor that it is made for."""


def write(study, points, table: RunTable, results: Results, analysis, verdict, work, out: Path):
    """Write OUT/report.html, OUT/fit, OUT/figures and OUT/tables.

    Args:
      points: the runs that the law is fitted to.
      table: the runs of all sweeps, as in OUT/runs.csv.
      analysis: of the law.
      verdict: as in verdict.json.
      work: the study's folder, which holds its clips.
    """
    cost, domain = study_lib.inference_cost(study), study_lib.domain(study)
    analysis.law.save(out / "fit")

    def add_first(report):
        add_outcome(report, verdict, analysis, domain)
        run_sd = verdict["run_noise"]["replicates"]["sd"]
        run_sd = np.nan if run_sd is None else run_sd
        add_findings(report, findings(analysis, domain, run_sd, verdict["level"]), verdict["level"])
        _add_facts(report, study, points, results)
        _add_clip(report, work)
        _add_learning(report, study, points, results)

    law, found = analysis.law, analysis.comparison
    settings = Settings(law.config, law.config, None, cost, MARK)
    subject = Subject("avg", analysis.table, law.config)
    metrics = {"avg": describe(subject, analysis, settings, domain)}
    write_page(
        out,
        laws.of_law(table),
        PageResults([subject], metrics, {"avg": found}),
        settings,
        title="Inference compute-optimal video VLMs: a small study, end to end",
        subtitle=f"{len(points)} runs of the real system on synthetic clips",
        offer="the study's (three language models, several numbers of frames and of tokens)",
        add_first=add_first,
    )


def _add_facts(report, study, points, results):
    star = sum(p.sweep == "star" for p in points)
    questions = next(iter(results.by_run.values()))["num_questions"]
    budgets = ", ".join(f"{b / 1e6:g}" for b in study.budgets)
    report.section(
        "What this is",
        f"The data on this page are synthetic: clips of {study.num_frames} frames from seed "
        f"{study.seed}, and a SoViT encoder and three Llama sizes small enough for two CPU cores, "
        "pretrained on generated pictures and text. The system is the real one: H.264 files, "
        "decoding, both training stages, the sweeps, the evaluation and the fits run the code of "
        "full-size models.",
        f"{len(points)} runs: {star} of a star sweep around a centre and "
        f"{len(points) - star} isoFLOP runs at {budgets} MFLOPs a video, to within "
        f"{100 * study.tolerance:g}% (equation 1 with the study's encoder). Every run answers at "
        f"least {min(questions.values()):,} unseen questions of each task. Scores are percent "
        "correct, error is 100 − score, and avg is the mean of the three tasks.",
        f"Each law is fitted with {study.resamples} bootstrap resamples (stratified by sweep and "
        f"language model) and {study.starts} random starts; the paper uses 100 and 500.",
    )
    report.table(["task", "question", "kind", "designed to need"], _QUESTIONS[study.world])
    _warn_unreadable(report, results)


def _warn_unreadable(report, results):
    unanswered = sorted({m for r in results.by_run.values() for m in r["unreadable"]})
    for kind, messages in (("training", results.unreadable), ("validation", unanswered)):
        if messages:
            shown = "; ".join(messages[:3])
            report.warning(
                f"{len(messages)} {kind} files could not be read and were left out: {shown}"
            )


def _add_clip(report, work):
    rows = [json.loads(line) for line in (work / "val.jsonl").read_text().splitlines()[:3]]
    frames = read_frames(work / rows[0]["video"], lambda info: np.arange(info.num_frames))
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    for i, axes in enumerate(figure.subplots(2, len(frames) // 2).ravel()):
        axes.imshow(frames[i], interpolation="nearest")
        axes.set_title(f"{i} s", fontsize=8)
        axes.set_axis_off()
    asked = "; ".join(f"{row['prompt']} → {row['answer']}" for row in rows)
    report.figure(
        "clip",
        figure,
        f"A validation clip, all {len(frames)} frames, with its questions: {asked}.",
        "A four by four board of coloured shapes; its background changes colour for a while.",
    )


def _add_learning(report, study, points, results):
    largest = star_center(points)
    center, n = results.by_run[largest.run_id], largest.num_examples
    untrained, other = results.untrained, results.other_clip
    report.section(
        "Is it learning?",
        "Chance is the score of guessing among the valid answers. Untrained is the pretrained "
        f"encoder and language model with a random projector, the mean of {len(untrained)}; it "
        "chooses among the valid answers. Other clip is the trained star centre, with each "
        "question asked about the next clip, which shows what is right without seeing the clip.",
    )
    report.table(
        ["task", "chance", "untrained", "other clip", f"star centre, n = {n:,}"],
        [
            [
                task,
                f"{chance:.1f}",
                _pm(mean_of(untrained), task),
                _pm(other, task),
                _pm(center, task),
            ]
            for task, chance in study_lib.world(study).CHANCE.items()
        ],
        "Score ± standard error, percent.",
    )
    found = effects(points, results.by_run)
    report.table(
        ["factor", "task", "from → to", "error from", "error to", "fall", "in standard errors"],
        [_effect_row(e) for e in found],
        "What each factor gains on the task designed for it, all else at the star's centre.",
    )
    for e in found:
        if e.drop_in_stderrs <= MARGIN:
            report.warning(
                f"{NAMES[e.factor]} has no measurable effect on {e.task}: {e.drop:.1f} points."
            )
    for task, chance in study_lib.world(study).CHANCE.items():
        if center["scores"][task] - chance < 5 * center["stderr"][task]:
            report.warning(f"The star centre is close to chance on {task}.")


def _effect_row(e: Effect) -> list[str]:
    errors = [f"{x:.1f} ± {s:.1f}" for x, s in zip(e.errors, e.stderrs, strict=True)]
    levels = " → ".join(f"{level:,g}" for level in e.levels)
    return [NAMES[e.factor], e.task, levels, *errors, f"{e.drop:.1f}", f"{e.drop_in_stderrs:.1f}"]


def _pm(result, task):
    return f"{result['scores'][task]:.1f} ± {result['stderr'][task]:.1f}"
