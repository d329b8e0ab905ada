"""The pool: the same results as in one process, and no process outlives its parent."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from fitting.report.jobs import has_both_sweeps
from fitting.report.processes import pool
from tests.fitting.report.tables import POINTS, STAR, UNITS
from tests.fitting.synthetic import synthetic_table
from tests.patience import LONG, wait_until


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    code = "import os, time\nfrom fitting.report.processes import pool\n"
    code += "if __name__ == '__main__':\n    with pool(2) as run:\n"
    code += "        run({'a': (time.sleep, 600), 'b': (time.sleep, 600)})\n"
    (tmp_path / "parent.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    parent = psutil.Popen([sys.executable, tmp_path / "parent.py"], env=environment)

    def workers():
        return [p for p in parent.children() if "spawn_main" in " ".join(p.cmdline())]

    found = wait_until(lambda: len(w := workers()) == 2 and w, parent.is_running)
    time.sleep(1)  # until they are at work
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(found, timeout=LONG)
    for process in alive:
        process.kill()
    assert (len(gone), alive) == (2, [])


def test_processes_do_what_one_does():
    named = {"a": STAR, "b": POINTS}
    tables = {k: synthetic_table("add", points, units=UNITS) for k, points in named.items()}
    jobs = {name: (has_both_sweeps, table) for name, table in tables.items()}
    seen = []
    with pool(2) as apart, pool(1) as here:
        found = apart(jobs, lambda key, value: seen.append(key))
        assert found == here(jobs) == {"a": False, "b": True}
    assert sorted(seen) == ["a", "b"]
    with (
        pytest.raises(ValueError, match="a process of the report was killed"),
        pool(2) as run,
    ):
        run({"a": (os._exit, 1), "b": (has_both_sweeps, tables["a"])})
