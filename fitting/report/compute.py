"""Compute what a report page shows, as jobs that several processes can share.

`compute` fits a law to the runs of each metric, tests the forms on unseen runs, and computes
frontiers, recommendations and figures; `fitting.report.page.build` lays out its `Results`.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fitting.report import jobs as work
from fitting.report.results import Appendix, Results, Settings, Subject

AS_ASKED = "as asked"  # the unchanged config in `fitting.ablations.variations`


def run_here(jobs: dict, on_done=lambda key, value: None) -> dict:
    """Run jobs {key: (function, *arguments)} one after another; return {key: value}."""
    done = {}
    for key, (function, *args) in jobs.items():
        done[key] = function(*args)
        on_done(key, done[key])
    return done


def compute(
    subjects: list[Subject],
    settings: Settings,
    folders: dict[str, Path],
    *,
    every_appendix: bool = False,
    run: Callable = run_here,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Results:
    """Fit laws, test them, and compute frontiers and figures; save laws as they come.

    Args:
      subjects: the metrics.
      settings: how much to compute.
      folders: metric -> where its law is kept; a law of the same runs and options is loaded.
      every_appendix: compute Tables 8, 9 and 10 for every metric, not for the first alone.
      run: as `run_here`, or what `fitting.report.processes.pool` gives.
      on_progress: called with (jobs done, all jobs).
    """
    ready = [one for one in subjects if not one.why]
    chosen = ready if every_appendix else ready[:1]
    laws = {s.metric: kept_law(folders[s.metric], s) or s.why for s in subjects}
    jobs = fit_jobs(ready, chosen, laws, settings)
    total, ended = len(jobs) + len(subjects) + len(chosen), itertools.count(1)

    def on_done(key, value):
        on_progress(next(ended), total)
        if key[0] == "law":
            laws[key[1]] = value
            if not isinstance(value, str):
                value.save(folders[key[1]])

    on_progress(0, total)
    done = run(jobs, on_done)
    compared = {s.metric: _compared(s, settings, done) for s in ready} if settings.check else {}
    jobs = {}
    for s in subjects:
        law = laws[s.metric]
        jobs["metric", s.metric] = work.metric_job, s, law, compared.get(s.metric), settings
        if s in chosen and settings.check and s.one_n is None and not isinstance(law, str):
            jobs["table 10", s.metric] = work.sensitivity_job, s.table, law, settings.cost
    found = run(jobs, on_done)
    failed = {metric: law for metric, law in laws.items() if isinstance(law, str)}
    subjects = [s._replace(why=failed.get(s.metric, "")) for s in subjects]
    metrics = {s.metric: found["metric", s.metric] for s in subjects}
    return Results(subjects, metrics, compared, _appendix(subjects, done, found))


def fit_jobs(ready, chosen, laws, settings: Settings) -> dict:
    """Return the jobs that fit: forms, variations and Table 9 first, then laws, the shortest."""
    from fitting.ablations import variations

    jobs = {}
    for name in reversed(settings.forms) if settings.check else ():
        tables = {s.metric: s.table for s in ready if s.supports(name)}
        if tables:
            config = settings.check.replace(form=name)
            jobs["form", name] = work.entries_job, tables, name, config
    for s in chosen if settings.check else ():
        one = {s.metric: s.table}
        for name, config in variations(settings.check.replace(form=s.form)).items():
            if name != AS_ASKED or ("form", s.form) not in jobs:
                jobs["variation", s.metric, name] = work.entries_job, one, name, config
        if settings.bag != settings.check:
            bag = settings.bag.replace(form=s.form)
            jobs["bag", s.metric] = work.entries_job, one, AS_ASKED, bag
    for s in ready:
        if isinstance(laws[s.metric], str):
            jobs["law", s.metric] = work.law_job, s.table, s.config
    return jobs


def kept_law(folder: Path, subject: Subject):
    """Load the law that an earlier report fitted to the same runs with these options, or None."""
    from fitting.law import FittedRuns
    from fitting.mixture import load_law

    table = subject.table
    z = table.x if table.n is None else np.column_stack([table.x, table.n])
    try:
        law = load_law(folder)
    except (ValueError, OSError):
        return None
    runs = FittedRuns(table.run_id, z, table.error, table.weights)
    same = law.verdict is not None and law.config == subject.config and law.metric == subject.metric
    same &= law.examples == table.examples and list(law.runs.run_id) == list(runs.run_id)
    return law if same and law.runs.sha256 == runs.sha256 else None


def _compared(subject: Subject, settings: Settings, done: dict):
    """Return the metric's `Comparison` of the forms, or None."""
    entries = [
        entries[subject.metric]
        for name in settings.forms
        if subject.metric in (entries := done.get(("form", name), {}))
    ]
    return work.comparison(subject.table, entries)


def _appendix(subjects, done: dict, found: dict) -> Appendix:
    eight, nine, ten = {}, {}, {}
    for one in subjects:
        metric, form = one.metric, one.form
        entries = [v[metric] for key, v in done.items() if key[:2] == ("variation", metric)]
        asked = done.get(("form", form), {}).get(metric)
        if entries and asked is not None and not isinstance(asked, str):
            entries.insert(0, asked._replace(name=AS_ASKED))
        if entries:
            bag = done.get(("bag", metric), {metric: entries[0]})[metric]
            eight[metric] = work.comparison(one.table, entries)
            nine[metric] = work.comparison(one.table, [bag])
            if eight[metric] is None or nine[metric] is None:
                eight[metric] = next(text for text in [*entries, bag] if isinstance(text, str))
        if one.one_n is not None:
            ten[metric] = f"All runs have n = {one.one_n:g}; elasticity is change with n."
        elif ("table 10", metric) in found:
            ten[metric] = found["table 10", metric]
    return Appendix(eight, nine, ten)
