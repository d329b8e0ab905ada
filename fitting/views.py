"""Short views of a law and of a table of runs: a few lines, HTML for notebooks, data frames."""

import html

import numpy as np

MOST = 20  # parameters in a short view


def _pandas():
    try:
        import pandas
    except ImportError:
        raise ValueError("a data frame needs pandas: pip install pandas") from None
    return pandas


def law_text(law) -> str:
    """Return a law in a few lines: what it was fitted to, its verdict, its parameters."""
    heads = f"{law.config.form} on {law.metric}: {law.num_runs} runs of {law.source}"
    lines = [f"{type(law).__name__}({heads}, {len(law.theta)} members)"]
    if law.verdict is not None:
        lines.append(f"  lack of fit: {law.verdict.verdict}")
    if law.degenerate:
        return "\n".join([*lines, f"  degenerate: {law.degenerate}"])
    cells = [
        f"{name} {mid:.4g} ({low:.3g} to {high:.3g})" if np.isfinite(mid) else name
        for name, _, mid, low, high, _ in law.parameter_rows()[:MOST]
    ]
    for start in range(0, len(cells), 4):
        lines.append("  " + ", ".join(cells[start : start + 4]))
    return "\n".join(lines)


def law_html(law) -> str:
    """Return a law as HTML: its parameters as a table, with all text escaped."""
    head = f"{law.config.form} on {law.metric}, {law.num_runs} runs, {len(law.theta)} members"
    if law.verdict is not None:
        head += f"; lack of fit: {law.verdict.verdict}"
    if law.degenerate:
        return f"<p>{html.escape(head)}; degenerate: {html.escape(law.degenerate)}</p>"
    rows = [
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{value:.4g}</td>" for value in values)
        + f"<td>{html.escape(note)}</td></tr>"
        for name, *values, note in law.parameter_rows()
    ]
    heads = "".join(f"<th>{t}</th>" for t in ("", "all runs", "median", "5%", "95%", "note"))
    return (
        f"<p>{html.escape(head)}</p><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def law_frame(law):
    """Return the parameters as a pandas data frame; ValueError where pandas is missing."""
    columns = ["parameter", "all_runs", "median", "low", "high", "note"]
    return _pandas().DataFrame(law.parameter_rows(), columns=columns).set_index("parameter")


def table_text(table) -> str:
    """Return a table of runs in two lines."""
    spans = [
        f"{name} {values.min():g} to {values.max():g}"
        for name, values in table.named.items()
        if np.issubdtype(values.dtype, np.number)
    ]
    of = ", ".join(table.metrics)
    return f"RunTable({len(table)} runs of {of} from {table.source})\n  {', '.join(spans)}"


def table_frame(table):
    """Return the runs as a pandas data frame; ValueError where pandas is missing."""
    columns = table.named | {"error": table.error, "weight": table.weights}
    first = ("run_id", "metric")
    order = [*first, *(name for name in columns if name not in first)]
    return _pandas().DataFrame({name: columns[name] for name in order})
