"""README and docs: commands parse, blocks marked `sh run` work, links and files exist.

The lines of a block that starts with ```sh run are executed in a folder that holds the checkout's
docs, fitting and configs; ```sh run slow belongs to `make test-slow`. In all other `sh` blocks the
`vvlm` lines are checked against --help, because they need weights, data or a cluster.
"""

import contextlib
import functools
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from fitting.runs import write_runs
from tests.processes import FAST_TO_COMPILE
from tools.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MORE_PAGES = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "DECISIONS.md")]
BLOCK = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LESS = {  # what makes a command's work small; its answer is not looked at
    "fit": ["--resamples", "3", "--starts", "8"],
    "report": ["--resamples", "2", "--starts", "4", "--appendix", "none", "--workers", "1"],
}
SUBCOMMANDS = {"sweep": ("plan", "launch", "work", "status", "retry", "cancel", "collect")}


def blocks(page):
    """Yield (words after sh, lines) of each sh block; continuations are joined."""
    for language, words, text in BLOCK.findall(page.read_text()):
        if language == "sh":
            yield words.split(), text.replace("\\\n", " ").splitlines()


def vvlm_lines():
    """Yield (page, command line from `vvlm` on) of every block."""
    for page in PAGES:
        for _, lines in blocks(page):
            for line in lines:
                if found := re.search(r"(?:^|[ /])(vvlm [a-z].*)", line):
                    yield page.name, found[1]


def vvlm(*words):
    """Run a command in this process; return (exit code, standard output)."""
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["vvlm", *words]),
        mock.patch.dict(os.environ, COLUMNS="200"),
        contextlib.redirect_stdout(out),
    ):
        try:
            main()
        except SystemExit as e:
            return e.code or 0, out.getvalue()
    return 0, out.getvalue()


@functools.cache
def help_of(*words):
    code, shown = vvlm(*words, "--help")
    assert code == 0, words
    return shown


@pytest.mark.light
def test_every_documented_line_has_flags_that_exist():
    seen, wrong = set(), []
    for page, line in vvlm_lines():
        words = shlex.split(line if line.count("'") % 2 == 0 else line.rstrip("'"), comments=True)[
            1:
        ]
        name = words[0]
        if name not in COMMANDS:
            wrong.append(f"{page}: {line}: no command {name}")
            continue
        path = words[:2] if name in SUBCOMMANDS else words[:1]
        if name in SUBCOMMANDS and path[-1] not in SUBCOMMANDS[name]:
            wrong.append(f"{page}: {line}: no subcommand {path[-1]}")
            continue
        seen.add(name)
        known = set(re.findall(r"--[\w-]+(?:\.[\w-]+)?", help_of(*path)))
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        wrong += [f"{page}: {line}: no flag {flag}" for flag in flags - known]
    assert not wrong, wrong
    assert seen == {*COMMANDS} - {"study"}  # which README starts by make


def runnable(slow):
    for page in PAGES:
        for number, (words, lines) in enumerate(blocks(page)):
            if words[:1] == ["run"] and ("slow" in words) == slow:
                yield page.name, number, lines


def execute(line, folder):
    words = shlex.split(line, comments=True)
    if words[0] == "python":
        flags = f"{os.environ.get('XLA_FLAGS', '')} {FAST_TO_COMPILE}"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
        command = [sys.executable, *words[1:]]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    else:
        assert words[0] == "vvlm", line
        one_form = ["--form", "add-interact"] * (words[1] in LESS and "--form" not in words)
        code, shown = vvlm(*words[1:], *LESS.get(words[1], []), *one_form)
        assert code == 0, f"{line}\n{shown}"
        assert shown, line
    for out in re.findall(r"--out (\S+)", line):
        assert (folder / out).exists(), line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    for name in ("docs", "fitting", "configs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize(
    ("page", "lines"), [pytest.param(p, lines, id=f"{p}-{n}") for p, n, lines in runnable(False)]
)
def test_blocks_marked_run_work(page, lines, folder, monkeypatch):
    """Blocks run in the order of the pages: planning.md reads the law that fitting.md fits."""
    monkeypatch.chdir(folder)
    for line in lines:
        execute(line, folder)


@pytest.mark.slow(reason="draws a report; trains, evaluates and converts a tiny model")
def test_blocks_marked_slow_work_one_after_another(folder, monkeypatch):
    monkeypatch.chdir(folder)
    order = ("fitting.md", "planning.md", "training.md", "evaluation.md", "models.md")
    pages = list(runnable(True))
    assert {page for page, _, _ in pages} == set(order)
    for _, _, lines in sorted(pages, key=lambda block: order.index(block[0])):
        for line in lines:
            execute(line, folder)


def test_relative_links_lead_somewhere():
    missing = []
    for page in [*PAGES, *MORE_PAGES]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing, missing


def test_files_that_are_named_exist():
    folders, kinds = "vvlm_jax|fitting|tools|configs|tests|docs", "py|csv|md|sh|txt|png"
    names = re.compile(rf"\b((?:{folders})/[\w./]*\w\.(?:{kinds}))\b")
    missing = {
        f"{page.name}: {name}"
        for page in [*PAGES, *MORE_PAGES]
        for name in names.findall(page.read_text())
        if not (ROOT / name).exists()
    }
    assert not missing, missing


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text) <= 8000
    tree = text.split("## The tree")[1].split("```")[1]
    assert len(tree.strip().splitlines()) <= 25


def test_the_example_table_is_what_its_script_writes(tmp_path):
    example = runpy.run_path(str(ROOT / "docs" / "example.py"))
    write_runs(tmp_path / "runs.csv", example["rows"]())
    assert (tmp_path / "runs.csv").read_bytes() == (ROOT / "docs" / "example.csv").read_bytes()
