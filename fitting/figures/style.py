"""Matplotlib helpers shared by all figures: style, colours, panels, log axes, and output as SVG.

They use no pyplot, display or global state. Colours are the Okabe-Ito set, viridis and cividis,
which remain distinguishable with every common form of colour blindness.
"""

import functools
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps, rc_context, ticker
from matplotlib.figure import Figure

from fitting import formatting

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#6b6b6b"
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def styled(draw):
    """Decorate a plot function to run under `STYLE`, without changing global settings."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def error_label(scale: float) -> str:
    """Return the label of an axis of errors."""
    return f"error (0 to {scale:g})" if np.isfinite(scale) else "loss"


def plain(text: str) -> str:
    """Escape the dollar signs of a name, which matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def panel_grid(rows: int, panels: int, *, width: float = 3.1, height: float = 3.3, sharey="row"):
    """Return (Figure, axes [rows, panels]); the panels of a row share their y axis by default."""
    figure = Figure(figsize=(width * panels, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09)  # inches between neighbouring axes
    return figure, figure.subplots(rows, panels, sharey=sharey, squeeze=False)


def shades(values, name: str = "viridis_r") -> dict:
    """Return value -> colour of the named map, by default darker for larger values."""
    values = np.unique(values)
    return {v: colormaps[name](t) for v, t in zip(values, _spread(len(values)), strict=True)}


def _spread(size: int) -> np.ndarray:
    return np.linspace(0.12, 0.96, size)  # the ends of the maps are too light or too dark


def legend_below(figure: Figure, axis, *, where: str = "center", title: str | None = None) -> None:
    """Put one legend, with the labels of `axis`, under the panels, where it covers no data."""
    handles, labels = axis.get_legend_handles_labels()
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(6, len(labels))).round().astype(int))
    figure.legend(
        [handles[i] for i in chosen],
        [f"{title} {labels[i]}" if title else labels[i] for i in chosen],
        loc=f"outside lower {where}",
        ncols=len(chosen),
    )


def log_axis(axis, levels, label: str | None, *, which: str = "x", digits: int = 3) -> None:
    """Set a log scale with ticks at the levels, thinned until their labels have room."""
    levels = np.unique(levels[np.isfinite(levels)])
    levels = _thin(levels, 0.12 if which == "x" else 0.08)
    axis.set(**{f"{which}scale": "log"})
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_locator(ticker.FixedLocator(levels))
    side.set_major_formatter(ticker.FixedFormatter([formatting.count(v, digits) for v in levels]))
    side.set_minor_locator(ticker.NullLocator())
    if label:
        side.set_label_text(label)


def _thin(levels, share: float) -> np.ndarray:
    """Return levels at least this share of the log span apart, both ends included."""
    logs = np.log(levels)
    room = share * np.ptp(logs)
    kept = [0]
    for i in range(1, len(levels) - 1):
        if logs[i] - logs[kept[-1]] >= room and logs[-1] - logs[i] >= room:
            kept.append(i)
    return levels[np.unique([*kept, len(levels) - 1])]


def round_ticks(values) -> np.ndarray:
    """Return 1, 2 and 5 times powers of ten within the range of the values."""
    low, high = np.min(values), np.max(values)
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.sort(np.concatenate([powers, 2 * powers, 5 * powers]))
    inside = ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]
    return inside if len(inside) > 1 else np.array([low, high])


def keep(axis, x, y, texts=None, **columns) -> None:
    """Attach the data that a panel shows to its figure.

    Args:
      axis: the panel.
      x, y: [V], coordinates.
      texts: [V], shown when a point is hovered; None for no texts.
      columns: name -> one value or [V], for the CSV.
    """
    kept = axis.figure.__dict__.setdefault("kept", [])
    kept.append((axis, np.asarray(x, float), np.asarray(y, float), texts, columns))


def kept_rows(figure: Figure) -> tuple[list[str], list[list]]:
    """Return (header, rows) of all data attached by `keep`; '' where a panel lacks a column."""
    kept = getattr(figure, "kept", [])
    header = list(dict.fromkeys(name for *_, columns in kept for name in columns))
    rows = []
    for _, x, _, _, columns in kept:
        full = [np.broadcast_to(np.asarray(columns.get(name, "")), len(x)) for name in header]
        rows += [list(row) for row in zip(*(column.tolist() for column in full), strict=True)]
    return header, rows


def kept_marks(figure: Figure) -> list[tuple[float, float, str]]:
    """Return (across, down, text) of the points with a text, as fractions of the figure.

    Call it after `to_svg`: the positions of panels are known only once they are drawn.
    """
    marks = []
    for axis, x, y, texts, _ in getattr(figure, "kept", []):
        for place, text in zip(np.stack([x, y], axis=1), texts or (), strict=bool(texts)):
            across, up = figure.transFigure.inverted().transform(axis.transData.transform(place))
            if 0 <= across <= 1 and 0 <= up <= 1:
                marks.append((float(across), float(1 - up), text))
    return marks


class Drawn(NamedTuple):
    """A drawn figure as plain data, which can be sent between processes.

    Attributes:
      svg: the file.
      header, rows: its CSV, as in `kept_rows`.
      marks: as in `kept_marks`.
      width, height: inches.
    """

    svg: bytes
    header: list[str]
    rows: list[list]
    marks: list[tuple[float, float, str]]
    width: float
    height: float


def drawn(figure: Figure, *, title: str = "", mark: str = "") -> Drawn:
    """Draw a figure under a title, such as the metric, and a mark.

    The mark is shown up to its first colon: "Synthetic data" of "Synthetic data: made up".
    """
    texts = [text for text in (title, mark.partition(":")[0]) if text]
    if texts:
        style = dict(fontsize=8, x=0.01, ha="left", color=PALETTE[1] if mark else GREY)
        figure.suptitle(" · ".join(texts), parse_math=False, **style)
    svg = to_svg(figure)
    size = (float(side) for side in figure.get_size_inches())
    return Drawn(svg, *kept_rows(figure), kept_marks(figure), *size)


def stacked(figures: Sequence[Drawn]) -> Drawn:
    """Stack figures into one file, below one another, without marks."""
    width, tops = max(f.width for f in figures), np.cumsum([0, *(f.height for f in figures)])
    parts = []
    for figure, top in zip(figures, tops, strict=False):
        inner = figure.svg
        inner = inner[inner.index(b"<svg") + 4 :]
        parts.append(b'<svg y="%d" ' % round(72 * top) + inner)
    size = (round(72 * width), round(72 * tops[-1]))
    data = b'<svg xmlns="http://www.w3.org/2000/svg" width="%dpt" height="%dpt" ' % size
    data += b'viewBox="0 0 %d %d">\n' % size + b"\n".join(parts) + b"</svg>\n"
    header = list(dict.fromkeys(name for f in figures for name in f.header))
    rows = [
        [dict(zip(f.header, row, strict=True)).get(name, "") for name in header]
        for f in figures
        for row in f.rows
    ]
    return Drawn(data, header, rows, [], width, float(tops[-1]))


def to_svg(figure: Figure) -> bytes:
    """Return the figure as SVG; the same figure gives the same bytes: no date, no random ids."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "fitting", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # A hundredth of a point is precise enough, and halves the size.
    shorten = re.compile(rb"(\.\d\d)\d+")
    return re.sub(rb' d="[^"]*"', lambda d: shorten.sub(rb"\1", d[0]), buffer.getvalue())
