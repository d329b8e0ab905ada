"""Every command answers --help at once, without jax, and shows a line to copy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 2.0
"""Of processor time: the machine may be busy with other tests."""

RUN_WITHOUT_JAX = """
import atexit, runpy, sys, time
atexit.register(lambda: print(time.process_time(), file=sys.stderr))
sys.modules['jax'] = None
sys.argv = [sys.argv[1], '--help']
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""


def is_command(source):
    """Whether a module defines main or asks for __main__ at its top level."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return True
        if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test):
            return True
    return False


def commands():
    return sorted(path.stem for path in ROOT.glob("tools/*.py") if is_command(path.read_text()))


def ask_for_help(name):
    """(finished process, its seconds of processor time)."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_WITHOUT_JAX, f"tools.{name}"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done, float(done.stderr.split()[-1])


@pytest.mark.parametrize("name", commands())
def test_help_answers_at_once_without_jax_and_shows_a_line_to_copy(name):
    done, seconds = ask_for_help(name)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    example = f"python -m tools.{name}"
    assert any(line == example or line.startswith(f"{example} ") for line in lines), done.stdout
    assert seconds < SECONDS, f"{name} --help took {seconds:.1f} s"


def test_the_study_is_among_the_commands():
    assert "study" in commands()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def main():\n    pass", True),
        ("if __name__ == '__main__':\n    print(1)", True),
        ("def helper():\n    pass", False),
        ("class Tool:\n    def main(self):\n        pass", False),
    ],
)
def test_a_command_is_told_from_a_helper(source, expected):
    assert is_command(source) is expected
