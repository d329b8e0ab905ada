"""Every command answers --help at once, without jax, and shows a line to copy."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 2.0
"""Of processor time: the machine may be busy with other tests."""

RUN_WITHOUT_JAX = """
import atexit, runpy, sys, time
atexit.register(lambda: print(time.process_time(), file=sys.stderr))
sys.modules['jax'] = None
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name='__main__', alter_sys=True)
"""


def is_command(source):
    """Return whether a module defines `cli` at its top level."""
    nodes = ast.parse(source).body
    return any(isinstance(node, ast.FunctionDef) and node.name == "cli" for node in nodes)


def ask_for_help(module, *words):
    """Return (finished process, its seconds of processor time)."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_JAX, module, *words, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done, float(done.stderr.split()[-1])


@pytest.mark.parametrize("name", COMMANDS)
def test_help_answers_at_once_without_jax_and_shows_a_line_to_copy(name):
    done, seconds = ask_for_help("vvlm", name)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0].startswith(f"usage: vvlm {name} ")
    assert any(f"{line} ".startswith(f"vvlm {name} ") for line in lines), lines
    assert seconds < SECONDS, f"vvlm {name} --help took {seconds:.1f} s"


RUN_ALL = """
import contextlib, io, runpy, sys
sys.modules['jax'] = None
for name in sys.argv[1:]:
    sys.argv, shown = [name, '--help'], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
        runpy.run_module(f'tools.{name}', run_name='__main__', alter_sys=True)
    print(' '.join(shown.getvalue().split()[:4]))
"""


def test_a_checkout_answers_as_python_m_tools():
    """In one process without jax, one command after the other, benches too."""
    benches = sorted(file.stem for file in (ROOT / "tools" / "bench").glob("bench_*.py"))
    names = [*COMMANDS, *(f"bench.{bench}" for bench in benches)]
    command = [sys.executable, "-W", "ignore", "-c", RUN_ALL, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = dict(zip(names, done.stdout.splitlines(), strict=True))
    for name, shown in found.items():
        assert re.match(rf"usage: .*\b{name.split('.')[-1]}\b", shown), found


def test_the_list_names_every_command_and_what_it_does():
    done, seconds = ask_for_help("vvlm")
    assert done.returncode == 0, done.stderr
    for name, what in COMMANDS.items():
        assert f"{name:<10}{what}" in done.stdout
    assert seconds < SECONDS
    files = [*ROOT.glob("tools/*.py"), *ROOT.glob("tools/*/__init__.py")]
    found = [file for file in files if is_command(file.read_text())]
    assert {file.parent.name if file.stem == "__init__" else file.stem for file in found} == {
        *COMMANDS
    }


def test_an_unknown_command_is_one_line_with_the_nearest_name():
    words = [sys.executable, "-m", "vvlm", "swep", "plan"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "swep" in line
    assert "sweep" in line
