"""Measure `vvlm report` for 88 runs x 9 metrics, from the start of the process to the page.

Example:
    python -m tools.bench.bench_report

The target is 60 s on 2 cores. The runs are synthetic (the paper's design, one law per metric, 1%
noise), so the page is not a result.
"""

import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fitting import formatting
from fitting.runs import write_runs
from tools.arguments import read_options
from tools.bench.bench_frontier import twin
from tools.common import die_in_one_line

METRICS = ("avg", "aqa", "lvb", "mv", "nqa", "pt", "vcg", "vdc", "vmme")
BAR = 60.0


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_report`."""

    out: Path | None = None
    """Folder for the table and the report; by default a temporary one."""
    metrics: int = len(METRICS)
    """Number of metrics, at most nine."""
    options: tuple[str, ...] = ()
    """Options of the report, such as --options=--appendix=full."""


def main(args: Args) -> None:
    """Print wall and CPU seconds, memory and sizes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        runs = write_table(folder / "runs.csv", METRICS[: args.metrics])
        words = [sys.executable, "-m", "tools.report", runs, "--out", folder / "report"]
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*map(str, words), *args.options], check=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        page = (folder / "report" / "report.html").stat().st_size
        files = sum(1 for path in (folder / "report").rglob("*") if path.is_file())
    print(
        formatting.aligned(
            ("metrics", "seconds", "CPU seconds", "largest process, GiB", "page, MB", "files"),
            [
                (
                    str(args.metrics),
                    *(
                        formatting.number(v)
                        for v in (wall, busy, after.ru_maxrss / 2**20, page / 1e6)
                    ),
                    str(files),
                )
            ],
        )
    )
    print(f"target {BAR:g} s on 2 cores: {'met' if wall <= BAR else 'missed'}")


def write_table(path: Path, metrics) -> Path:
    """Write the paper's 88 runs, with one law per metric; return the path."""
    rows = []
    for seed, metric in enumerate(metrics):
        table = twin(seed)
        error = table.error * (0.7 + 0.08 * seed)
        columns = zip(table.run_id, table.column("sweep"), table.x, table.n, error, strict=True)
        for run_id, sweep, (lm, frames, tokens), n, value in columns:
            rows.append(
                dict(
                    run_id=run_id,
                    sweep=sweep,
                    lm_params=lm,
                    num_frames=frames,
                    tokens_per_frame=tokens,
                    num_examples=n,
                    metric=metric,
                    score=100 - value,
                )
            )
    write_runs(path, rows)
    path.write_text(f"# synthetic\n{path.read_text()}")
    return path


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
