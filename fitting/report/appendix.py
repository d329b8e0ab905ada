"""The page's last sections: which form to trust, and what each option of a fit changes."""

from fitting import formatting
from fitting.naming import labels as labels_of
from fitting.report.results import Appendix, Subject
from fitting.report.text import absent_forms, bagging_table, comparison_table, named, signed


def add_forms(page) -> None:
    """Add Table 2 and Figure 3c to a `Page`."""
    report, settings, rows = page.report, page.settings, []
    report.section("Forms", "Which form of the law predicts unseen runs best.")
    if settings.check is None:
        for what in ("Table 2", "Figure 3c"):
            report.absent(what, settings.skipped)
        return
    for subject in page.subjects:
        found = page.compared.get(subject.metric)
        with report.of(subject.metric):
            if found is None:
                report.absent("Table 2", subject.why or "No form could be fitted.")
                continue
            headers, table = comparison_table(found, "form")
            how = _how(settings.check, found)
            report.table(headers, table, f"As the paper's Table 2. {how}")
            for name in absent_forms(subject, found, settings.forms):
                why = "It has at least as many parameters as there are runs."
                report.absent(f"Table 2 has no {name}", why)
            if not found.extrapolation:
                report.absent("Star → isoFLOP", "It needs runs of both sweeps.")
            if subject.one_n is not None:
                why = f"All runs have n = {formatting.count(subject.one_n)}."
                report.absent("Forms in which factors and n interact", why)
            rows += named(subject.metric, headers, table)
    _save(page, "table2", rows)
    page.figure_of_all(
        "3c",
        "errors_by_task",
        errors_figure(page.compared),
        "As the paper's Figure 3c: mean relative error of each form on unseen runs.",
        "Relative error of every form for each task",
    )


def add_appendix(page, tables: Appendix) -> None:
    """Add Tables 8, 9 and 10 to a `Page`."""
    report, settings = page.report, page.settings
    report.section("Appendix", "What each option of the fit and of the elasticity changes.")
    saved = {"table8": [], "table9": [], "table10": []}
    for subject, _ in page.each():
        metric = subject.metric
        eight = tables.table8.get(metric)
        if eight is None or isinstance(eight, str):
            report.absent("Tables 8 and 9", eight or _left_out(page, subject))
        else:
            nine = tables.table9[metric]
            found, text = comparison_table(eight, "variation"), _how(settings.check, eight)
            report.table(*found, f"As the paper's Table 8: one option changed at a time. {text}")
            saved["table8"] += named(metric, *found)
            found, text = bagging_table(nine), _how(settings.bag, nine)
            report.table(
                *found,
                "As the paper's Table 9: the number of members, and how they become one prediction."
                f" {text}",
            )
            saved["table9"] += named(metric, *found)
        ten = tables.table10.get(metric)
        if ten is None or isinstance(ten, str):
            report.absent("Table 10", ten or _left_out(page, subject))
            continue
        found = _table10(ten, subject)
        report.table(*found, _table10_caption(ten, subject))
        saved["table10"] += named(metric, *found)
    for name, rows in saved.items():
        _save(page, name, rows)


def _table10(ten, subject: Subject) -> tuple[tuple, list]:
    heads = ("changed", "to", *labels_of(subject.table.factors))
    return heads, [(what, formatting.count(v), *map(signed, e)) for what, v, e in ten[2]]


def _table10_caption(ten, subject: Subject) -> str:
    top, unit, _ = ten
    budgets = f"{formatting.flops(top / 100)} to {formatting.flops(top)}"
    return (
        "As the paper's Table 10: mean elasticity of x* to n with one choice changed from 300 "
        f"budgets of {budgets}, 100 data sizes of {formatting.count(unit)} to "
        f"{formatting.count(10 * unit)}, and a step of {formatting.count(5 * unit)}. n above "
        f"{formatting.count(subject.table.n.max())} extrapolates."
    )


def errors_figure(compared: dict):
    """Return a function that draws Figure 3c, or a sentence that says why it cannot be drawn."""
    from fitting import figures

    there = {metric: found for metric, found in compared.items() if found is not None}
    if not there:
        return "No form was tested on unseen runs."
    shapes = {(tuple(e.name for e in c.entries), c.splits) for c in there.values()}
    if len(shapes) > 1:
        return "The metrics were tested on different forms or splits; Table 2 has the numbers."
    return lambda: figures.errors_by_task(there)


def _left_out(page, subject: Subject) -> str:
    if subject.why:
        return subject.why
    if page.settings.check is None:
        return page.settings.skipped
    return f"Computed for {page.first} alone; --appendix full computes it for every metric."


def _how(config, compared) -> str:
    """Say how the fits behind a table were made and scored."""
    fits = f"each fit from {config.starts} random starts"
    if config.resampling != "none":
        fits = f"each fit the median of {config.resamples} resamples of {config.starts} starts"
    split = compared.extrapolation
    split = f"; {split}: trained on the first, tested on the second" if split else ""
    return (
        f"CV: random folds ({compared.splits[0]}){split}; {fits}. MSE in squared error points, E% "
        "the mean relative error; lower is better."
    )


def _save(page, name: str, rows: list[dict]) -> None:
    """Save a table of all metrics as CSV, if it has rows; metrics may lack columns of others."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    if rows:
        lines = [[row.get(key, "") for key in header] for row in rows]
        page.report.file(f"tables/{name}.csv", page.report.csv_bytes(header, lines))
