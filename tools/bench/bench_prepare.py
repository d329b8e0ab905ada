"""Time, memory and disk of preparing a mixture, and what a kill in the middle of it costs.

Example:
    python -m tests.testdata.make_full_sources /tmp/full        # the whole of Table 3, made up
    python -m tools.bench.bench_prepare --source /tmp/full

`vvlm prepare` runs three times, each in its own process: to the end; until half of the examples are
written, when it is killed; and again to the end. The first and the last must write equal bytes.
"""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tools.arguments import read_options
from tools.common import die_in_one_line
from vvlm_jax import atomic
from vvlm_jax.config import Stopped

_LOOK = 0.2
"""Seconds between two looks at a process."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_prepare`."""

    source: Path
    """Folder of the sources."""
    mixture: str = "paper"
    """As of `tools.prepare`."""
    workers: int = 2
    """Processes that open media."""
    folder: Path | None = None
    """Where data sets are written, and removed again; a temporary folder by default."""


class Differs(Stopped):
    """An error: an interrupted preparation gave another data set."""


class Run(NamedTuple):
    """Time and memory of one process and of those that it started."""

    code: int
    wall: float
    cpu: float
    parent_mib: float
    worker_mib: float
    """The largest worker's."""


def main(args: Args) -> None:
    """Print a line a run."""
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        whole, cut = Path(scratch) / "whole", Path(scratch) / "cut"
        first = run(args, whole)
        tell("to the end", first)
        sizes = [file.stat().st_size for file in whole.glob("*/*/*.array_record-*")]
        print(f"{sum(sizes) / 2**20:,.0f} MiB of examples in {len(sizes)} shards", flush=True)
        tell("until it is killed", run(args, cut, kill=True))
        tell("again, to the end", run(args, cut))
        if digest(whole) != digest(cut):
            raise Differs("the interrupted preparation gave another data set")
        print(f"both are the same: {digest(whole)[:16]}")


def tell(name: str, run: Run) -> None:
    """Print the line of a run. Raises Stopped when the process failed."""
    if run.code not in (0, -signal.SIGKILL):
        raise Stopped(f"tools.prepare ended with {run.code}; what it said stands above")
    killed = "" if run.code else ", and was through"
    print(
        f"{name}{killed if 'killed' in name else ''}: {run.wall:.0f} s, {run.cpu:.0f} s of CPU, "
        f"{run.parent_mib:,.0f} MiB, a worker {run.worker_mib:,.0f} MiB",
        flush=True,
    )


def run(args: Args, out: Path, kill: bool = False) -> Run:
    """Prepare into `out`, to the end or until half of the shards have been begun."""
    command = [sys.executable, "-m", "tools.prepare", "--mixture", args.mixture, "--source",
               str(args.source), "--out", str(out), "--workers", str(args.workers)]  # fmt: skip
    start, peaks = time.perf_counter(), {}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        done, status, used = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        for pid in (process.pid, *_children(process.pid)):
            peaks[pid] = max(peaks.get(pid, 0.0), _peak_mib(pid))
        if kill and _half_written(out):
            process.kill()
        time.sleep(_LOOK)
    process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
    wall, parent = time.perf_counter() - start, peaks.pop(process.pid, 0.0)
    cpu = used.ru_utime + used.ru_stime
    return Run(process.returncode, wall, cpu, parent, max(peaks.values(), default=0.0))


def _children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _peak_mib(pid: int) -> float:
    """Return the peak memory of a process, MiB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return max(sizes, default=0) / 1024


def _half_written(out: Path) -> bool:
    shards = sorted(out.glob(f"*/{atomic.PREFIX}*/*.array_record-*-of-*"))
    return bool(shards) and 2 * len(shards) > int(shards[0].name.rpartition("-of-")[2])


def digest(out: Path) -> str:
    """Return a digest of the names and contents of all files of the data set."""
    found = hashlib.sha256()
    for file in sorted(out.glob("*/*/*")):
        found.update(f"{file.relative_to(out)}\n".encode())
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
