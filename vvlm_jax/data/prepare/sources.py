"""Read the published annotation files of public data sets as checked rows.

A row keeps its conversation and `id`; paths of its media become relative to the root of all
sources. The rows of a mixture have a fixed order: by subset, source, file name, and position in the
file.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from vvlm_jax.config import ConfigError
from vvlm_jax.data import chat
from vvlm_jax.data.datasets import KINDS, is_unicode, names_of, read_rows
from vvlm_jax.data.prepare.mixture import (
    MixtureConfig,
    SourceConfig,
    SubsetConfig,
    sample,
    validate,
)
from vvlm_jax.storage import files
from vvlm_jax.storage.bucket import is_url

_ROLES = ({"human", "user"}, {"gpt", "assistant"})


class Row(NamedTuple):
    """An example of a mixture."""

    subset: str
    place: str
    """`FILE: row 3`, for messages."""
    id: str
    conversations: list[dict]
    media: tuple[tuple[str, str], ...]
    """Pairs (kind, path relative to the root), videos first."""
    problem: str
    """Why the row cannot be an example; empty if it can."""


def from_file(path: Path) -> MixtureConfig:
    """Return the mixture of a LLaVA mixture file, `.yaml` with `datasets: [{json_path,
    sampling_strategy}]`, or of one `.json` or `.jsonl` file, or of several, `folder/{a,b}.json`.

    Each file is a subset. Media paths are relative to the root of sources, or to the file's folder.

    Raises ValueError naming the file and what is wrong with it.
    """
    braces = re.fullmatch(r"(.*)\{(.*)\}(\.jsonl?)", str(path))
    if braces:
        folder, names, suffix = braces.groups()
        found = [(files.path_of(f"{folder}{name}{suffix}"), "all") for name in names.split(",")]
    elif path.suffix in (".yaml", ".yml"):
        found = _listed(path)
    else:
        found = [(path, "all")]
    stems = [file.stem for file, _ in found]
    names = [f"{stem}_{i}" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems, 1)]
    subsets = tuple(
        SubsetConfig(name, (SourceConfig(_whole(file), (".", "{folder}"), sampling=strategy),))
        for name, (file, strategy) in zip(names, found, strict=True)
    )
    name = re.sub(r"[^a-z0-9]+", "_", path.name.rpartition(".")[0].lower()).strip("_")
    try:
        return validate(MixtureConfig(name if name[:1].isalpha() else f"mixture_{name}", subsets))
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def _whole(file: Path) -> str:
    return str(file if is_url(file) else file.resolve())


def _listed(path: Path) -> list[tuple[Path, str]]:
    try:
        entries = yaml.safe_load(files.read_text(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such mixture file") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f"line {mark.line + 1} " if mark else ""
        raise ValueError(f"{path}: {line}is not YAML") from None
    entries = entries.get("datasets") if isinstance(entries, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: must hold `datasets:`, a list of json_path, sampling_strategy")
    found = []
    for i, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("json_path"), str):
            raise ValueError(f"{path}: entry {i} of datasets has no json_path")
        strategy = str(entry.get("sampling_strategy", "all"))
        file = entry["json_path"]
        whole = is_url(file) or Path(file).is_absolute()
        found.append((files.path_of(file) if whole else path.parent / file, strategy))
    return found


def files_of(mixture: MixtureConfig, root: Path) -> list[tuple[SubsetConfig, SourceConfig, Path]]:
    """Return every annotation file of a mixture, in order. Raise ValueError naming a subset whose
    files are missing.
    """
    if not root.is_dir():
        raise ValueError(f"--source {root}: no such folder")
    found = []
    for subset in mixture.subsets:
        for source in subset.sources:
            pattern = source.annotations
            whole = is_url(pattern) or Path(pattern).is_absolute()
            matches = [files.path_of(pattern)] if whole else files.glob(root, pattern)
            matches = [f for f in matches if files.exists(f) and not f.is_dir()]
            if not matches and whole:
                raise ValueError(f"{pattern}: no such annotation file (of the mixture)")
            if not matches:
                where = f" (as {subset.published} is published)" if subset.published else ""
                raise ValueError(
                    f"subset {subset.name}: no {pattern} in {root}{where}; get it, or leave the "
                    f"subset out: --without {subset.name}"
                )
            found += [(subset, source, file) for file in matches]
    return found


def rows_of(
    mixture: MixtureConfig, root: Path, stamps: Callable[[str], str] | None = None
) -> Iterator[Row]:
    """Yield all rows of a mixture in order, including those that cannot be examples.

    Args:
      stamps: returns the stamp of a path, empty if there is no such file;
        `files.stamps_below(root)` by default.

    Raises ValueError for a file without rows.
    """
    stamps = stamps or files.stamps_below(root)
    for subset, source, file in files_of(mixture, root):
        rows = read_rows(file)
        inside = file.is_relative_to(root)
        name = str(file.relative_to(root)) if inside else file.name
        locate = _locator(root, source, file.parent, stamps)
        for number in sample(len(rows), source.sampling, mixture.seed, name).tolist():
            yield _row(rows[number], subset.name, f"{file}: row {number + 1}", locate)


def _locator(root: Path, source: SourceConfig, folder: Path, stamps: Callable[[str], str]):
    """Return a function from a row's path to the path relative to the root."""
    inside = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else "."
    folders = [place.replace("{folder}", inside) for place in source.media]

    @functools.cache  # a video has many questions
    def locate(name: str) -> str:
        tried = [(Path(folder) / name).as_posix() for folder in folders]
        return next((path for path in tried if stamps(path)), tried[0])

    return locate


def _row(row, subset: str, place: str, locate) -> Row:
    problem, media = problem_with(row), ()
    if not problem:
        media = tuple((kind, locate(name)) for kind in KINDS for name in names_of(row, kind))
    row = row if isinstance(row, dict) else {}
    turns = [] if problem else row["conversations"]
    return Row(subset, place, str(row.get("id", "")), turns, media, problem)


def problem_with(row) -> str:
    """Return why a LLaVA-style row cannot be an example, or an empty string."""
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list) or not turns:
        return "has no `conversations` list of {from, value} turns"
    for i, turn in enumerate(turns, 1):
        text = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(text, str) or turn.get("from") not in {*_ROLES[0], *_ROLES[1]}:
            return f"turn {i} is not {{from: human or gpt, value: text}}"
        if not is_unicode(text):
            return f"turn {i} contains an unpaired UTF-16 surrogate"
        if turn["from"] in _ROLES[1] and not text.strip():
            return f"turn {i}: the answer is empty"
    if turns[-1]["from"] not in _ROLES[1]:
        return "has no answer at the end of the conversation"
    if not is_unicode(str(row.get("id", ""))):
        return "id contains an unpaired UTF-16 surrogate"
    names = [name for kind in KINDS for name in names_of(row, kind)]
    if not all(isinstance(n, str) and n and "\0" not in n and is_unicode(n) for n in names):
        return "video or image is neither a path nor a list of paths"
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
        return f"{names[0]!r} is outside the media's folder"
    count = len(chat.placeholders(turns))
    if count != len(names):
        return (
            f"conversation has {count or 'no'} <image> or <video> placeholder"
            f"{'s' if count > 1 else ''} for {len(names)} video{'s' if len(names) != 1 else ''} "
            "or images"
        )
    return ""
