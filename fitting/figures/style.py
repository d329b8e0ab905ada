"""The paper to draw on: style, colours, rows of panels, log axes with readable ticks, saved bytes.

No pyplot, no display, no global state. Colours are the Okabe-Ito set, viridis and cividis, which
stay apart under every common colour blindness.
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
    """Runs a plot function under `STYLE`, leaving the process's own settings alone."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def error_label(scale: float) -> str:
    """The label of an axis of errors."""
    return f"error (0 to {scale:g})"


def plain(text: str) -> str:
    """A name that somebody gave, as it is: matplotlib takes dollars for formulas."""
    return text.replace("$", r"\$")


def panel_grid(rows: int, panels: int, *, width: float = 3.1, height: float = 3.3, sharey="row"):
    """(Figure, axes [rows, panels]); panels of a row share their y axis unless told otherwise."""
    figure = Figure(figsize=(width * panels, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.09)  # inches: the ends of two axes do not touch
    return figure, figure.subplots(rows, panels, sharey=sharey, squeeze=False)


def shades(values, name: str = "viridis_r") -> dict:
    """value -> colour of the named map, light to dark with the value by default."""
    values = np.unique(values)
    return {v: colormaps[name](t) for v, t in zip(values, _spread(len(values)), strict=True)}


def _spread(size: int) -> np.ndarray:
    return np.linspace(0.12, 0.96, size)  # the ends of the maps are too light, too dark


def legend_below(figure: Figure, axis, *, where: str = "center", title: str | None = None) -> None:
    """One legend under the panels, from one panel's labels, so that it covers no data."""
    handles, labels = axis.get_legend_handles_labels()
    chosen = np.unique(np.linspace(0, len(labels) - 1, min(6, len(labels))).round().astype(int))
    figure.legend(
        [handles[i] for i in chosen],
        [f"{title} {labels[i]}" if title else labels[i] for i in chosen],
        loc=f"outside lower {where}",
        ncols=len(chosen),
    )


def log_axis(axis, levels, label: str | None, *, which: str = "x", digits: int = 3) -> None:
    """Log scale with ticks at the levels themselves, thinned until their labels have room."""
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
    """The levels that stand at least this share of the log span apart; both ends stay."""
    logs = np.log(levels)
    room = share * np.ptp(logs)
    kept = [0]
    for i in range(1, len(levels) - 1):
        if logs[i] - logs[kept[-1]] >= room and logs[-1] - logs[i] >= room:
            kept.append(i)
    return levels[np.unique([*kept, len(levels) - 1])]


def round_ticks(values) -> np.ndarray:
    """1, 2, 5 times powers of ten inside the range of the values."""
    low, high = np.min(values), np.max(values)
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.sort(np.concatenate([powers, 2 * powers, 5 * powers]))
    inside = ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)]
    return inside if len(inside) > 1 else np.array([low, high])


def keep(axis, x, y, texts=None, **columns) -> None:
    """Keeps with a figure what one of its panels shows.

    Args:
      axis: the panel.
      x, y: [V], places on its axes.
      texts: [V], what the pointer finds there; None for nothing.
      columns: name -> one value or [V], for the CSV.
    """
    kept = axis.figure.__dict__.setdefault("kept", [])
    kept.append((axis, np.asarray(x, float), np.asarray(y, float), texts, columns))


def kept_rows(figure: Figure) -> tuple[list[str], list[list]]:
    """(header, rows) of all that was kept; '' where a panel has no such column."""
    kept = getattr(figure, "kept", [])
    header = list(dict.fromkeys(name for *_, columns in kept for name in columns))
    rows = []
    for _, x, _, _, columns in kept:
        full = [np.broadcast_to(np.asarray(columns.get(name, "")), len(x)) for name in header]
        rows += [list(row) for row in zip(*(column.tolist() for column in full), strict=True)]
    return header, rows


def kept_marks(figure: Figure) -> list[tuple[float, float, str]]:
    """(across, down, text) of all that the pointer finds, in shares of the figure.

    After `to_bytes`: only drawing decides where the panels are.
    """
    marks = []
    for axis, x, y, texts, _ in getattr(figure, "kept", []):
        for place, text in zip(np.stack([x, y], axis=1), texts or (), strict=bool(texts)):
            across, up = figure.transFigure.inverted().transform(axis.transData.transform(place))
            if 0 <= across <= 1 and 0 <= up <= 1:
                marks.append((float(across), float(1 - up), text))
    return marks


class Drawn(NamedTuple):
    """A figure as it is kept and shown; crosses process borders.

    Attributes:
      files: kind -> bytes, 'svg' among them.
      header, rows: of the CSV, as in `kept_rows`.
      marks: as in `kept_marks`.
      width, height: inches.
    """

    files: dict[str, bytes]
    header: list[str]
    rows: list[list]
    marks: list[tuple[float, float, str]]
    width: float
    height: float


def drawn(figure: Figure, kinds=("svg",), *, title: str = "", mark: str = "") -> Drawn:
    """Draws a figure; above its panels stand a title, such as the metric, and a mark.

    The mark, up to a colon, is what every reader must know: "Synthetic data: made up".
    """
    texts = [text for text in (title, mark.partition(":")[0]) if text]
    if texts:
        style = dict(fontsize=8, x=0.01, ha="left", color=PALETTE[1] if mark else GREY)
        figure.suptitle(" · ".join(texts), parse_math=False, **style)
    files = {kind: to_bytes(figure, kind) for kind in kinds}
    size = (float(side) for side in figure.get_size_inches())
    return Drawn(files, *kept_rows(figure), kept_marks(figure), *size)


def stacked(figures: Sequence[Drawn]) -> Drawn:
    """Several figures as one, below one another; for their files, without marks."""
    width, tops = max(f.width for f in figures), np.cumsum([0, *(f.height for f in figures)])
    parts = []
    for figure, top in zip(figures, tops, strict=False):
        inner = figure.files["svg"]
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
    return Drawn({"svg": data}, header, rows, [], width, float(tops[-1]))


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as 'svg' or 'png'; the same figure gives the same bytes: no date, no random id."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "fitting", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, dpi=160, metadata=metadata)
    data = buffer.getvalue()
    if kind == "svg":  # a hundredth of a point is enough, and halves the size
        data = re.sub(rb' d="[^"]*"', lambda d: re.sub(rb"(\.\d\d)\d+", rb"\1", d[0]), data)
    return data
