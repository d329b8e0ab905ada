"""One self-contained HTML page: text, tables, figures and warnings, for screen and paper.

    report = Report("Study", "what it shows")
    report.section("Runs", "All of them.")
    report.figure("runs", figure, "Every run.", alt="Scatter of errors against cost")
    report.write("out")          # out/report.html, out/figures/runs.svg and runs.csv

The same calls give the same bytes: no dates, no random ids, nothing loaded from elsewhere. All text
is escaped, and the Content-Security-Policy lets only the page's own script run.
"""

import base64
import contextlib
import csv
import hashlib
import io
import re
from html import escape
from pathlib import Path

from fitting.atomic import replacing
from fitting.figures import style
from fitting.figures.style import Drawn
from fitting.report.assets import SCRIPT, STYLE

REM_PER_INCH = 5.6  # makes a figure's 9-point text as large as the page's small text
PHONE = 22.0  # rem; wider figures scroll on a phone, with a hint
FEW_COLUMNS = 5  # tables with more columns scroll on a phone, with a hint


class Report:
    """A page under construction: content is added in order and written once.

    Args:
      title: heading of the page.
      subtitle: line under it.
      mark: notice that every reader must see, such as that the data are synthetic: a banner on the
        page and a comment in every CSV.

    Attributes:
      files: name -> bytes of what `write` saves beside the page.
    """

    def __init__(self, title: str, subtitle: str = "", *, mark: str = ""):
        self.title, self.subtitle, self.mark = title, subtitle, mark
        self._body: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self._metrics: list[str] = []
        self.files: dict[str, bytes] = {}

    def section(self, title: str, *paragraphs: str) -> None:
        """Start a section, listed in the navigation, with paragraphs of text."""
        anchor = f"s{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{escape(title)}</h2>')
        for text in paragraphs:
            self.paragraph(text)

    @contextlib.contextmanager
    def of(self, metric: str):
        """Assign what is added inside to a metric; the page shows one metric at a time."""
        if metric not in self._metrics:
            self._metrics.append(metric)
        self._body.append(
            f'<div data-metric="{escape(metric)}"><h3 class="of">{escape(metric)}</h3>'
        )
        yield
        self._body.append("</div>")

    def heading(self, text: str) -> None:
        """Add a heading within a section."""
        self._body.append(f"<h3>{escape(text)}</h3>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph of plain text."""
        self._body.append(f"<p>{escape(text)}</p>")

    def items(self, texts) -> None:
        """Add a bulleted list."""
        lines = "\n".join(f"<li>{escape(text)}</li>" for text in texts)
        self._body.append(f"<ul>\n{lines}\n</ul>")

    def absent(self, what: str, why: str) -> None:
        """Say why a figure or table is missing, in its place."""
        self._body.append(f'<p class="absent"><b>{escape(what)}</b>: not shown. {escape(why)}</p>')

    def warning(self, text: str) -> None:
        """Add a highlighted paragraph."""
        self._body.append(f'<p class="warning" role="note"><b>Warning.</b> {escape(text)}</p>')

    @contextlib.contextmanager
    def folded(self, title: str):
        """Hide what is added inside until the reader clicks on the title."""
        self._body.append(f"<details><summary>{escape(title)}</summary>")
        yield
        self._body.append("</details>")

    def preformatted(self, text: str) -> None:
        """Add text in a fixed-width font, with its line breaks."""
        self._body.append(f'<div class="wide"><pre tabindex="0">{escape(text)}</pre></div>')

    def table(self, headers, rows, caption: str = "", *, name: str | None = None) -> None:
        """Add a table; cells are shown as str, the first column left-aligned.

        With a name, `write` also saves tables/NAME.csv.

        Raises:
          ValueError: a row is not as long as the headers.
        """
        headers, rows = list(headers), [list(row) for row in rows]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(headers):
                raise ValueError(f"table row {number}: {len(row)} cells, {len(headers)} headers")
        if name is not None:
            self.file(f"tables/{name}.csv", self.csv_bytes(headers, rows))
        head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in headers)
        lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        wide = ' class="wide"' if len(headers) > FEW_COLUMNS else ""
        self._body.append(
            f'<p class="caption">{escape(caption)}</p>\n<div{wide}><div class="scroll"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></div>"
        )

    def figure(self, name: str, figure, caption: str, alt: str) -> None:
        """Add a figure, embedded as SVG; `write` also saves figures/NAME.svg and NAME.csv.

        Args:
          name: file name; letters, digits, dash, underscore and dot, used once.
          figure: a matplotlib Figure, drawn now, so that later changes to it do not show; or what
            `style.drawn` made of one, perhaps in another process.
          caption: shown below.
          alt: description for readers who cannot see the figure.

        Raises:
          ValueError: a bad or repeated name, or no alt text.
        """
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or f"figures/{name}.svg" in self.files:
            raise ValueError(f"figure name {name!r} must be new and made of letters, digits, _.-")
        if not alt.strip():
            raise ValueError(f"figure {name!r} needs an alt text")
        drawn = figure if isinstance(figure, Drawn) else style.drawn(figure)
        self.file(f"figures/{name}.svg", drawn.svg)
        if drawn.header:
            self.file(f"figures/{name}.csv", self.csv_bytes(drawn.header, drawn.rows))
        data = base64.b64encode(drawn.svg).decode("ascii")
        width = REM_PER_INCH * drawn.width
        wide = ' class="wide"' if width > PHONE else ""
        self._body.append(
            f'<figure{wide} style="--wide: {width:.0f}rem"><div class="scroll"><div class="plot">'
            f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">{_marks(drawn)}'
            f"</div></div>\n<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def file(self, name: str, data: bytes) -> None:
        """Add a file for `write` to save beside the page."""
        self.files[name] = data

    def csv_bytes(self, header, rows) -> bytes:
        """Return a CSV that starts with the report's mark as a comment."""
        text = io.StringIO()
        if self.mark:
            text.write(f"# {self.mark}\n")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([header, *rows])
        return text.getvalue().encode()

    def html(self, metric: str | None = None) -> str:
        """Return the whole page; it opens with `metric`, by default the first."""
        links = " ".join(f'<a href="#{a}">{escape(title)}</a>' for a, title in self._sections)
        banner = f'<p class="banner" role="note">{escape(self.mark)}</p>\n' * bool(self.mark)
        allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'\">\n"
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<header><h1>{escape(self.title)}</h1>\n<p class="subtitle">'
            f'{escape(self.subtitle)}</p>{banner}</header>\n<nav aria-label="Sections">'
            f"{self._selector(metric)}{links}</nav>\n<main>\n"
            + "\n".join(self._body)
            + "\n</main>\n"
            f'<div id="tip" role="status"></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
        )

    def _selector(self, chosen: str | None) -> str:
        if len(self._metrics) < 2:
            return ""
        options = [
            f'<option value="{name}"{" selected" * (metric == chosen)}>{name}</option>'
            for metric, name in ((metric, escape(metric)) for metric in self._metrics)
        ]
        return (
            f'<label hidden>metric <select id="metric">{"".join(options)}'
            '<option value="">all metrics</option></select></label>'
        )

    def write(self, out_dir, *, metric: str | None = None) -> Path:
        """Write figures/, tables/ and then report.html, each atomically; return the page's path."""
        out_dir, page = Path(out_dir), self.html(metric).encode()
        for name, data in {**self.files, "report.html": page}.items():
            path = out_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                partial.write_bytes(data)
        return out_dir / "report.html"


def _marks(drawn: Drawn) -> str:
    """Return invisible circles over the figure, which show a text when hovered."""
    if not drawn.marks:
        return ""
    width, height = 72 * drawn.width, 72 * drawn.height
    circles = "".join(
        f'<circle cx="{width * x:.1f}" cy="{height * y:.1f}" r="5" data-text="{escape(text)}"/>'
        for x, y, text in drawn.marks
    )
    box = f"0 0 {width:.1f} {height:.1f}"
    return f'<svg class="marks" viewBox="{box}" aria-hidden="true">{circles}</svg>'
