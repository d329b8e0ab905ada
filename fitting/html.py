"""One self-contained HTML page: text, tables, figures and warnings, escaped, for screen and paper.

    report = Report("Study", "what it shows")
    report.section("Runs", "All of them.")
    report.figure("runs", figure, "Every run.", alt="Scatter of errors against cost")
    report.write("out")          # out/report.html, out/figures/runs.svg, out/figures/runs.png

The same calls give the same bytes: no dates, no random ids, nothing fetched from elsewhere.
"""

import base64
import re
from html import escape
from pathlib import Path

from fitting.canvas import to_bytes

REM_PER_INCH = 5.6  # of a figure: its 9-point letters as large as the page's small ones
PHONE = 22.0  # rem that a phone shows; what is wider scrolls there, and says so
FEW_COLUMNS = 5  # of a table, that a phone shows

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; color: #1d2329; background: #fff; font: 16px/1.55 system-ui, sans-serif; }
header, main, nav { max-width: 66rem; margin: 0 auto; padding: 0 1.1rem; }
header { padding-top: 2rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
.subtitle { margin: .3rem 0 1rem; color: #56616b; }
nav { position: sticky; top: 0; z-index: 1; padding-top: .5rem; padding-bottom: .5rem;
  overflow-x: auto; white-space: nowrap; background: #fff; border-bottom: 1px solid #dde2e6; }
nav a { margin-right: 1rem; color: #0b5c94; text-decoration: none; }
nav a:hover { text-decoration: underline; }
h2 { margin: 2.2rem 0 .6rem; font-size: 1.35rem; scroll-margin-top: 3.2rem; }
p { max-width: 46rem; }
.warning { max-width: 46rem; margin: .7rem 0; padding: .6rem .9rem; background: #fff5e0;
  border-left: 4px solid #d58a00; }
details { max-width: 46rem; margin: .5rem 0; }
summary { cursor: pointer; color: #0b5c94; }
.scroll, pre { overflow-x: auto; }
/* shadows at the ends that hold more: the white covers move with the content */
.scroll { background: linear-gradient(90deg, #fff 40%, #fff0) 0 0 / 2.5rem 100% local,
    linear-gradient(270deg, #fff 40%, #fff0) 100% 0 / 2.5rem 100% local,
    linear-gradient(90deg, #0004, #0000) 0 0 / .9rem 100% scroll,
    linear-gradient(270deg, #0004, #0000) 100% 0 / .9rem 100% scroll;
  background-repeat: no-repeat; }
.wide::before { display: none; content: "scroll →"; color: #56616b; font-size: .8rem;
  text-align: right; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.caption { margin: .9rem 0 .3rem; color: #56616b; font-size: .92rem; }
th, td { padding: .3rem .55rem; text-align: right; border-bottom: 1px solid #e6eaed; }
td { white-space: nowrap; }
th { border-bottom: 2px solid #b9c2ca; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.4rem 0; }
figure img { display: block; width: 100%; height: auto;
  max-width: var(--wide); min-width: min(34rem, var(--wide)); }
figcaption { max-width: 46rem; color: #56616b; font-size: .92rem; }
pre { margin: 0; padding: .8rem; white-space: pre-wrap; background: #f5f7f8; font-size: .82rem;
  line-height: 1.4; }
@media (max-width: 44rem) { pre { white-space: pre; } .wide::before { display: block; }
  th, td { padding: .25rem .28rem; font-size: .8rem; } }
@media print { nav { display: none; } body { font-size: 11pt; }
  figure, table, .warning { break-inside: avoid; } figure img { min-width: 0; }
  .wide::before { display: none; } pre { white-space: pre-wrap; } }
"""


class Report:
    """Collects content in order, then writes it once. Every text is escaped; no raw HTML.

    Args:
      title: of the page.
      subtitle: a line under it.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title, self.subtitle = title, subtitle
        self._body: list[str] = []
        self._sections: list[tuple[str, str]] = []
        self._figures: dict[str, dict[str, bytes]] = {}

    def section(self, title: str, *paragraphs: str) -> None:
        """Starts a section, listed in the navigation, with some paragraphs of text."""
        anchor = f"s{len(self._sections) + 1}"
        self._sections.append((anchor, title))
        self._body.append(f'<h2 id="{anchor}">{escape(title)}</h2>')
        for text in paragraphs:
            self.paragraph(text)

    def paragraph(self, text: str) -> None:
        """A paragraph of plain text."""
        self._body.append(f"<p>{escape(text)}</p>")

    def warning(self, text: str) -> None:
        """A marked paragraph: something the reader must not overlook."""
        self._body.append(f'<p class="warning" role="note"><b>Warning.</b> {escape(text)}</p>')

    def folded_warnings(self, title: str, texts) -> None:
        """Warnings that show on a click on the title; nothing where there are none."""
        if texts:
            self._body.append(f"<details><summary>{escape(title)}</summary>")
            for text in texts:
                self.warning(text)
            self._body.append("</details>")

    def preformatted(self, text: str) -> None:
        """Text in a fixed-width font, lines kept; too long ones go on in the next."""
        self._body.append(f'<div class="wide"><pre tabindex="0">{escape(text)}</pre></div>')

    def table(self, headers, rows, caption: str = "") -> None:
        """A table; cells are shown as str, the first column to the left.

        Raises:
          ValueError: a row is not as long as the headers.
        """
        headers, rows = list(headers), [list(row) for row in rows]
        for number, row in enumerate(rows, start=1):
            if len(row) != len(headers):
                raise ValueError(f"table row {number}: {len(row)} cells, {len(headers)} headers")
        head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in headers)
        lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
        body = "\n".join(f"<tr>{line}</tr>" for line in lines)
        wide = ' class="wide"' if len(headers) > FEW_COLUMNS else ""
        self._body.append(
            f'<p class="caption">{escape(caption)}</p>\n<div{wide}><div class="scroll"><table>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div></div>"
        )

    def figure(self, name: str, figure, caption: str, alt: str) -> None:
        """A matplotlib Figure, embedded as SVG; `write` also saves figures/NAME.svg and .png.

        Args:
          name: of the files; letters, digits, dash, underscore and dot, used once.
          figure: drawn now, so that later changes to it do not show.
          caption: shown below.
          alt: what one would read out to somebody who cannot see it.

        Raises:
          ValueError: a bad or repeated name, or no alt text.
        """
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in self._figures:
            raise ValueError(f"figure name {name!r} must be new and made of letters, digits, _.-")
        if not alt.strip():
            raise ValueError(f"figure {name!r} needs an alt text")
        self._figures[name] = {kind: to_bytes(figure, kind) for kind in ("svg", "png")}
        data = base64.b64encode(self._figures[name]["svg"]).decode("ascii")
        width = REM_PER_INCH * float(figure.get_figwidth())
        wide = ' class="wide"' if width > PHONE else ""
        self._body.append(
            f'<figure{wide} style="--wide: {width:.0f}rem">'
            f'<div class="scroll"><img alt="{escape(alt)}" '
            f'src="data:image/svg+xml;base64,{data}"></div>\n'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def html(self) -> str:
        """The whole page."""
        links = " ".join(f'<a href="#{a}">{escape(title)}</a>' for a, title in self._sections)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
            f'<header><h1>{escape(self.title)}</h1>\n<p class="subtitle">'
            f'{escape(self.subtitle)}</p></header>\n<nav aria-label="Sections">{links}</nav>\n'
            "<main>\n" + "\n".join(self._body) + "\n</main>\n</body>\n</html>\n"
        )

    def write(self, out_dir) -> Path:
        """Writes figures/NAME.svg, figures/NAME.png and then report.html; returns its path."""
        out_dir = Path(out_dir)
        (out_dir / "figures").mkdir(parents=True, exist_ok=True)
        for name, files in self._figures.items():
            for kind, data in files.items():
                (out_dir / "figures" / f"{name}.{kind}").write_bytes(data)
        path = out_dir / "report.html"
        path.write_text(self.html(), encoding="utf-8")
        return path
