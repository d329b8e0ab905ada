"""Prepare a mixture: count rows, check media, write the data set and its card."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from vvlm_jax.data import prepared
from vvlm_jax.data.prepare import sources
from vvlm_jax.data.prepare.archives import archives_of, extract_all
from vvlm_jax.data.prepare.check_media import Checked, check_media
from vvlm_jax.data.prepare.mixture import MixtureConfig
from vvlm_jax.storage import files
from vvlm_jax.storage.bucket import is_url

JOURNAL = "media.jsonl"
"""In the output folder: the findings about each media file."""
BROKEN = "broken.txt"
"""In the output folder: one line for each problem of rows and media."""


@dataclass(frozen=True)
class Options:
    """Options of `prepare`."""

    allow_counts: bool = False
    """Accept subsets with another number of examples than published."""
    drop_broken: bool = False
    """Leave out rows that cannot be examples, or whose media are missing or broken."""
    extract: bool = False
    """Extract archives of media first."""
    workers: int = 4
    """Processes that open media; 0 opens them in this one."""
    seconds: float = 300.0
    """Time limit for one media file."""


@dataclass
class _Seen:
    """Findings of the first pass over the rows."""

    counts: Counter = field(default_factory=Counter)
    """Number of rows in each subset, valid or not."""
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)
    """{place: (subset, problem)}."""
    media: dict[tuple[str, str], None] = field(default_factory=dict)


def prepare(mixture: MixtureConfig, root: Path, out: Path, options: Options) -> tuple[Path, dict]:
    """Prepare a mixture, and return the data set's folder and its card.

    Findings about media are kept in `out` even when it fails. Raises ValueError, one line, for
    missing files, and, unless the options allow them, for wrong counts, invalid rows and broken
    media.
    """
    archives = archives_of(mixture, root)
    if archives and options.extract:
        if is_url(root):
            raise ValueError(
                f"--extract: the {len(archives):,} archives in {root} cannot be extracted there; "
                "extract them in a folder, and upload that"
            )
        extract_all(archives, _progress("extracting", "archives"))
        archives = []
    stamps = files.stamps_below(root)
    seen = _look(sources.rows_of(mixture, root, stamps), options.drop_broken)
    _compare(mixture, seen.counts, options.allow_counts)
    media = _check(root, list(seen.media), out, stamps, options)
    broken = {path for path, checked in media.items() if checked.problem}
    hint = f"{len(archives):,} archives are not extracted: --extract; " if archives else ""
    _tell(out, seen, media, hint, options.drop_broken)
    card = _card(mixture, root, seen, media, sources.rows_of(mixture, root, stamps))
    if not card["examples"]:
        raise ValueError(f"{mixture.name}: no example is left of {seen.counts.total():,} rows")
    folder = out / mixture.name / prepared.VERSION
    if prepared.is_prepared(folder):
        there = json.loads((folder / prepared.CARD).read_text(encoding="utf-8"))
        if any(there.get(key) != card[key] for key in card):
            raise ValueError(
                f"{folder}: holds a data set of other sources or subsets; remove it, or choose "
                "another --out"
            )
        return folder, there
    rows = (row for row in sources.rows_of(mixture, root, stamps) if _is_good(row, broken))
    bar = _progress("writing", "examples")
    prepared.write(out, mixture.name, rows, media, card["examples"], card, bar)
    card = json.loads((folder / prepared.CARD).read_text(encoding="utf-8"))
    (folder / "card.md").write_text(text(card), encoding="utf-8")
    return folder, card


def _progress(title: str, unit: str):
    from vvlm_jax.progress import Progress

    bar = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = Progress(title, total, unit)
        bar.update(done)
        if done == total:
            bar.close()

    return show


def _look(rows: Iterable[sources.Row], drop: bool) -> _Seen:
    seen = _Seen()
    for row in rows:
        seen.counts[row.subset] += 1
        if row.problem and not drop:
            raise ValueError(
                f"{row.place}: {row.problem}; correct it, or leave such rows out: --drop-broken"
            )
        if row.problem:
            seen.problems[row.place] = row.subset, row.problem
        seen.media.update(dict.fromkeys(row.media))
    return seen


def _compare(mixture: MixtureConfig, counts: Counter, allow: bool) -> None:
    """Raise ValueError naming every subset whose count differs from the published one."""
    wrong = [
        f"{s.name} has {counts[s.name]:,} examples, {abs(counts[s.name] - s.examples):,} "
        f"{'fewer' if counts[s.name] < s.examples else 'more'} than the {s.examples:,} published"
        for s in mixture.subsets
        if s.examples is not None and counts[s.name] != s.examples
    ]
    if wrong and not allow:
        raise ValueError(f"{'; '.join(wrong)}; continue anyway with --allow-counts")


def _check(root: Path, media: list, out: Path, stamps, options: Options) -> dict[str, Checked]:
    return check_media(
        root,
        media,
        out / JOURNAL,
        workers=options.workers,
        seconds=options.seconds,
        stamps=stamps,
        progress=_progress("opening", "files"),
    )


def _tell(out: Path, seen: _Seen, media: dict[str, Checked], hint: str, drop: bool) -> None:
    """Write the problems of rows and media to a file. Raise ValueError if broken media may not be
    left out.
    """
    broken = [checked.problem for checked in media.values() if checked.problem]
    lines = [f"{place}: {problem}" for place, (_, problem) in seen.problems.items()]
    (out / BROKEN).write_text("".join(f"{line}\n" for line in lines + broken), encoding="utf-8")
    if broken and not drop:
        raise ValueError(
            f"{len(broken):,} of {len(media):,} media are missing or broken ({out / BROKEN}), "
            f"such as {broken[0]}; {hint}repair them, or leave their rows out: --drop-broken"
        )


def _is_good(row: sources.Row, broken) -> bool:
    return not row.problem and not any(path in broken for _, path in row.media)


def _card(
    mixture: MixtureConfig,
    root: Path,
    seen: _Seen,
    media: dict[str, Checked],
    rows: Iterable[sources.Row],
) -> dict:
    """Return the card: counts, durations and frames of videos, and numbers of rows left out."""
    broken = {path for path, checked in media.items() if checked.problem}
    kept, paths = Counter(), {subset.name: {} for subset in mixture.subsets}
    for row in rows:
        if _is_good(row, broken):
            kept[row.subset] += 1
            paths[row.subset].update(dict.fromkeys(row.media))
    subsets = [
        {
            "name": subset.name,
            "published": subset.examples,
            "found": seen.counts[subset.name],
            "examples": kept[subset.name],
            "videos": _statistics([media[p] for kind, p in paths[subset.name] if kind == "video"]),
            "images": sum(kind == "image" for kind, _ in paths[subset.name]),
        }
        for subset in mixture.subsets
    ]
    everything = dict.fromkeys(one for of_subset in paths.values() for one in of_subset)
    return {
        "mixture": json.loads(json.dumps(asdict(mixture))),
        "files": {str(f): files.stamp(f) for _, _, f in sources.files_of(mixture, root)},
        "examples": kept.total(),
        "subsets": subsets,
        "videos": _statistics([media[p] for kind, p in everything if kind == "video"]),
        "images": sum(kind == "image" for kind, _ in everything),
        "rows_left_out": seen.counts.total() - kept.total(),
        "rows_wrong": len(seen.problems),
        "media_broken": sorted(broken),
    }


def _statistics(videos: list[Checked]) -> dict:
    """Return {count, hours, duration_s and num_frames as [min, 5 %, median, mean, 95 %, max]}."""

    def spread(values):
        if not values:
            return []
        low, middle, high = np.percentile(values, [5, 50, 95])
        numbers = [min(values), low, middle, np.mean(values), high, max(values)]
        return [round(float(x), 3) for x in numbers]

    return {
        "count": len(videos),
        "hours": round(sum(v.duration_s for v in videos) / 3600, 3),
        "duration_s": spread([v.duration_s for v in videos]),
        "num_frames": spread([v.num_frames for v in videos]),
    }


def text(card: dict) -> str:
    """Return the card as a Markdown table and a few lines."""
    lines = [
        f"# {card['mixture']['name']}: {card['examples']:,} examples",
        "",
        "| subset | examples | published | videos | images | seconds (median, most) "
        "| frames (median, most) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (*card["subsets"], {**card, "name": "all", "published": None}):
        videos, published = row["videos"], row["published"]
        cells = [
            row["name"],
            f"{row['examples']:,}",
            "" if published is None else f"{published:,}",
            f"{videos['count']:,}",
            f"{row['images']:,}",
            *(
                f"{values[2]:,.1f}, {values[5]:,.1f}" if (values := videos[key]) else ""
                for key in ("duration_s", "num_frames")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{card['videos']['hours']:,} hours of video."]
    if card["rows_left_out"]:
        lines.append(
            f"{card['rows_left_out']:,} rows were left out: {card['rows_wrong']:,} that cannot be "
            f"examples, the others for {len(card['media_broken']):,} missing or broken media."
        )
    return "\n".join(lines) + "\n"
