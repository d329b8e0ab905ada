"""The page's last sections: which form to trust, and what the options are worth."""

from fitting import formatting
from fitting.figures.style import drawn
from fitting.forms import factor_labels

from ._report_jobs import Subject
from ._report_page import Page
from ._report_text import absent_forms, bagging_table, comparison_table, named, signed

FOLDS_TEXT = "CV: 5 random folds; isoFLOP: runs predicted by fits to the star alone"


def add_forms(page: Page, draw_errors) -> None:
    """Table 2 and Figure 3c."""
    report = page.report
    report.section("Forms", "Which form of law predicts runs that it has not seen.")
    if page.settings.check is None:
        for what in ("Table 2", "Figure 3c"):
            report.absent(what, "Left out by --appendix none.")
        return
    rows = []
    for subject in page.subjects:
        found = page.compared.get(subject.metric)
        with report.of(subject.metric):
            if found is None:
                report.absent("Table 2", subject.why or "No form could be fitted.")
                continue
            headers, table = comparison_table(found, "form")
            report.table(headers, table, f"As the paper's Table 2. {_how(page.settings.check)}")
            missing = [f"Table 2 has no {name}" for name in absent_forms(subject, found)]
            for text in missing:
                report.absent(text, "The runs do not outnumber its parameters.")
            if not found.extrapolation:
                report.absent("Star → isoFLOP", "It needs runs of both sweeps.")
            if subject.one_n is not None:
                why = f"All runs have n = {formatting.count(subject.one_n)}."
                report.absent("Forms in which factors and n interact", why)
            rows += named(subject.metric, headers, table)
    _save(page, "table2", rows)
    if isinstance(draw_errors, str):
        report.absent("Figure 3c", draw_errors)
    else:
        report.figure(
            "figure3c_errors_by_task",
            drawn(draw_errors(), mark=page.settings.mark),
            "As the paper's Figure 3c: mean relative error of each form on runs it has not seen.",
            "Relative error of every form for each task",
        )


def add_appendix(page: Page, tables8: dict, tables9: dict, tables10: dict) -> None:
    """Tables 8, 9 and 10: metric -> `Comparison`, `Entry` or rows; or why there is none."""
    report = page.report
    report.section("Appendix", "What the options of the fit and of the elasticity are worth.")
    saved = {"table8": [], "table9": [], "table10": []}
    for subject, _ in page.each():
        metric = subject.metric
        one = tables8.get(metric)
        if one is None or isinstance(one, str):
            report.absent("Tables 8 and 9", one or _left_out(page, subject))
        else:
            heads, rows = comparison_table(one, "variation")
            report.table(
                heads,
                rows,
                "As the paper's Table 8: one option changed at a time. "
                + _how(page.settings.check),
            )
            saved["table8"] += named(metric, heads, rows)
            heads, rows = bagging_table(tables9[metric])
            report.table(
                heads,
                rows,
                "As the paper's Table 9: how many members, and how they become one prediction. "
                + _how(page.settings.bag),
            )
            saved["table9"] += named(metric, heads, rows)
        ten = tables10.get(metric)
        if ten is None or isinstance(ten, str):
            report.absent("Table 10", ten or _left_out(page, subject))
            continue
        top, unit, rows = ten
        heads = ("changed", "to", *factor_labels(len(subject.table.factors)))
        rows = [(w, formatting.count(v), *map(signed, e)) for w, v, e in rows]
        report.table(
            heads,
            rows,
            "As the paper's Table 10: mean elasticity of x* to n where one choice differs from "
            f"300 budgets of {formatting.flops(top / 100)} to {formatting.flops(top)}, 100 data sizes "
            f"of {formatting.count(unit)} to {formatting.count(10 * unit)}, and a step of "
            f"{formatting.count(5 * unit)}. n above {formatting.count(subject.table.n.max())} "
            "extrapolates.",
        )
        saved["table10"] += named(metric, heads, rows)
    for name, rows in saved.items():
        _save(page, name, rows)


def _left_out(page: Page, subject: Subject) -> str:
    """Why a metric has no appendix."""
    if subject.why:
        return subject.why
    if page.settings.check is None:
        return "Left out by --appendix none."
    return f"Computed for {page.first} alone; --appendix full computes it for every metric."


def _how(config) -> str:
    """How a table's fits were made."""
    fits = f"each fit from {config.starts} random starts"
    if config.resampling != "none":
        fits = f"each fit the median of {config.resamples} resamples of {config.starts} starts"
    return (
        f"{FOLDS_TEXT}; {fits}. MSE in squared error points, E% mean relative error; lower is "
        "better."
    )


def _save(page: Page, name: str, rows: list[dict]) -> None:
    """A table of all metrics as a file, if there is any; metrics may lack columns of others."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    if rows:
        lines = [[row.get(key, "") for key in header] for row in rows]
        page.report.file(f"tables/{name}.csv", page.report.csv_bytes(header, lines))
