"""Commands as jobs of a Slurm cluster: job arrays, one task a host, requeued until they are done.

A job is a list of commands. Slurm starts an `Attempt` on every node, which runs the commands and
reads their exit codes: `Exit.RETRY` and `Exit.CLAIMED` put the job back into the queue. Slurm sends
USR2 before the time limit and SIGTERM before a preemption; the running command gets SIGTERM in
either case. Slurm itself requeues a job whose node dies.

submitit (MIT licence) writes the batch scripts and arrays.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.exit_codes import Exit

GONE = "GONE"
"""State of a job that the cluster does not know, or has forgotten."""

_PROGRAMS = ("sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
_SIBLING_SECONDS = 120  # a host waits so long for the first one to requeue the job, ending both
_PASSING = ("down, drained", "busy", "Prolog")  # refusals of sbatch that do not last


@dataclass(frozen=True)
class SlurmOptions:
    """Options of the Slurm job of each run. Empty and 0 mean the cluster's defaults."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    minutes: int = 24 * 60
    """Time limit of one attempt; a run may take several."""
    grace_seconds: int = 300
    """How long before the limit a run is asked to save; Slurm may ask a minute earlier."""
    nodes: int = 1
    """Hosts of a run, one process each, joined by jax.distributed."""
    gpus_per_node: int = 0
    cpus_per_node: int = 0
    mem_gb_per_node: float = 0
    parallel: int = 0
    """Largest number of runs of an array at the same time; 0 for no limit."""
    max_requeues: int = 100
    """Largest number of attempts after the first."""
    sbatch: tuple[str, ...] = ()
    """Further options of sbatch, such as constraint=h100 or exclusive."""
    setup: tuple[str, ...] = ()
    """Shell commands before each attempt, such as "module load cuda"."""
    python: str = ""
    """The Python interpreter on the nodes; this process's if empty."""

    def __post_init__(self):
        least = dict(minutes=1, grace_seconds=1, nodes=1, gpus_per_node=0, cpus_per_node=0)
        least |= dict(mem_gb_per_node=0, parallel=0, max_requeues=0)
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name}={getattr(self, name)}: must be {bound} or more")
        if self.grace_seconds >= 60 * self.minutes:
            raise ConfigError(
                f"grace_seconds={self.grace_seconds}: must be less than the {self.minutes} minutes "
                "of an attempt"
            )
        for option in self.sbatch:
            if not re.fullmatch(r"[a-z][a-z-]*(=[^\n]+)?", option):
                raise ConfigError(f"sbatch={option!r}: must be NAME=VALUE or NAME, without dashes")


@dataclass(frozen=True)
class Attempt:
    """One process of a job. submitit unpickles it on each node and calls it."""

    commands: tuple[tuple[str, ...], ...]
    cwd: str
    max_requeues: int

    def __call__(self):
        """Run the commands and end the process with the job's exit code."""
        sys.exit(self.run())

    def run(self) -> int:
        """Run the commands in order and return the largest exit code.

        A failed command does not end the attempt. One that must run again does, and the job is
        requeued.
        """
        asked, running = [], []

        def stop(*_):
            asked.append(True)
            for child in running:
                child.send_signal(signal.SIGTERM)

        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, stop)
        worst = 0
        for command in self.commands:
            # Slurm sends USR2 to every process of the step, and its default action is to kill.
            child = subprocess.Popen(
                command,
                cwd=self.cwd,
                preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            )
            running[:] = [child]
            if asked:
                child.send_signal(signal.SIGTERM)
            code = child.wait()
            too_early_to_save = asked and code == -signal.SIGTERM
            if code in (Exit.RETRY, Exit.CLAIMED) or too_early_to_save:
                _requeue(self.max_requeues)
                return Exit.RETRY
            worst = max(worst, code if code >= 0 else 128 - code)
        return worst


def _requeue(max_requeues: int) -> None:
    """Put this job back into the queue, unless it was cancelled or requeued too often."""
    if os.environ.get("SLURM_PROCID", "0") != "0":
        # srun kills all processes when one ends with an error: let the first requeue before that.
        time.sleep(_SIBLING_SECONDS)
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # SLURM_JOB_ID of one task also names the whole array
        job = "{SLURM_ARRAY_JOB_ID}_{SLURM_ARRAY_TASK_ID}".format_map(os.environ)
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= max_requeues:
        print(f"job {job}: not requeued, after {max_requeues} times", file=sys.stderr)
        return
    shown = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True)
    if state := re.search("JobState=(CANCELLED|COMPLETING)", shown.stdout):
        print(f"job {job}: {state[1]}, so not requeued", file=sys.stderr)  # a user's scancel
        return
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    what = "requeued" if done.returncode == 0 else f"not requeued: {done.stderr.strip()}"
    print(f"job {job}: {what}", file=sys.stderr, flush=True)


def script(options: SlurmOptions, name: str, folder: str | Path, count: int) -> str:
    """Return submitit's batch script for an array of `count` jobs, without running anything."""
    executor = _executor(options, name, folder)
    executor.parameters["map_count"] = count if count > 1 else None
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(
    jobs: Sequence[Sequence[Sequence[str]]],
    options: SlurmOptions,
    *,
    name: str,
    folder: str | Path,
    cwd: str | Path,
    after: Sequence[str] = (),
) -> list[str]:
    """Submit jobs, each a list of commands, as job arrays; return their ids, in order.

    Args:
      name: of the jobs, as squeue shows it.
      after: ids of jobs that must have ended before, successfully or not.
      folder: for scripts and logs, on a filesystem that the nodes see. Logs are
        `ID_TASK_log.out` and `.err`.
      cwd: where the commands run.

    Raises ConfigError, before anything is written or submitted, when Slurm is missing or refuses
    such jobs.
    """
    largest = check(options, name, folder)
    attempts = [
        Attempt(tuple(map(tuple, commands)), str(cwd), options.max_requeues) for commands in jobs
    ]
    executor, ids = _executor(options, name, folder), []
    if after:
        executor.update_parameters(dependency="afterany:" + ":".join(after))
    for start in range(0, len(attempts), largest):
        ids += [job.job_id for job in executor.submit_array(attempts[start : start + largest])]
    return ids


def check(options: SlurmOptions, name: str = "check", folder: str | Path = ".") -> int:
    """Ask the cluster whether it would accept such jobs; return the largest size of an array.

    Raises ConfigError, one line, when a program is missing, no controller answers, the partition
    is unknown, or sbatch refuses the script.
    """
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        raise ConfigError(
            f"slurm: no {', '.join(missing)} on this machine; launch from a login node of the "
            "cluster, or --on local"
        )
    _submitit()
    partitions = _ask("sinfo", "--noheader", "--format=%R").split()
    if options.partition and not set(options.partition.split(",")) <= set(partitions):
        there = ", ".join(sorted(set(partitions)))
        raise ConfigError(f"slurm: partition {options.partition}: not one of {there}")
    tested = subprocess.run(
        ["sbatch", "--test-only"],
        input=script(options, name, folder, 1),
        capture_output=True,
        text=True,
    )
    refusal = _reason(tested.stderr)
    if tested.returncode and not any(words in refusal for words in _PASSING):
        raise ConfigError(f"slurm: sbatch refuses these jobs: {refusal}")
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.M)
    return max(1, int(found[1])) if found else 1


def states(ids: Sequence[str]) -> dict[str, str]:
    """Return Slurm's state (PENDING, RUNNING, COMPLETED, FAILED, …) of each job id.

    GONE stands for jobs that neither the controller nor the accounting, if there is one, knows.
    """
    if not ids:
        return {}
    arrays = ",".join(dict.fromkeys(job.partition("_")[0] for job in ids))
    columns = ("--noheader", "--array", "--states=all", "--format=%i|%T", "--jobs", arrays)
    found = _pairs(_output("squeue", *columns))  # squeue fails when it is asked about one lost id
    if any(job not in found for job in ids) and shutil.which("sacct"):
        columns = ("-X", "-n", "-P", "--array", "-o", "JobID,State", "-j", arrays)
        found = {k: v.split()[0] for k, v in _pairs(_output("sacct", *columns)).items()} | found
    return {job: found.get(job, GONE) for job in ids}


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs; a running one saves first and is not requeued.

    Raises ConfigError when the cluster does not answer.
    """
    if ids:
        _ask("scancel", *ids)


def _pairs(text: str) -> dict[str, str]:
    return dict(line.split("|", 1) for line in text.splitlines() if line.count("|") == 1)


def _executor(options: SlurmOptions, name: str, folder: str | Path):
    """Return submitit's executor with these options, also where Slurm is not installed."""
    submitit = _submitit()

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # submitit would raise without Slurm; `check` has a better message

    executor = Executor(Path(folder), python=shlex.quote(options.python or sys.executable))
    extra = dict(option.partition("=")[::2] for option in options.sbatch)
    wanted = dict(
        partition=options.partition,
        account=options.account,
        qos=options.qos,
        gpus_per_node=options.gpus_per_node,
        cpus_per_task=options.cpus_per_node,
        mem=f"{round(1024 * options.mem_gb_per_node)}MB" if options.mem_gb_per_node else "",
        array_parallelism=options.parallel,
    )
    executor.update_parameters(
        job_name=name,
        time=options.minutes,
        signal_delay_s=options.grace_seconds,
        nodes=options.nodes,
        ntasks_per_node=1,
        setup=list(options.setup) or None,
        # The other hosts would wait for ever for one whose process has died.
        srun_args=["--kill-on-bad-exit=1"],
        wckey=None,
        additional_parameters={"requeue": True} | {k: v or True for k, v in extra.items()},
        **{"array_parallelism": 1_000_000} | {k: v for k, v in wanted.items() if v},
    )
    return executor


def _submitit():
    # Without this its import closes all log handlers and adds its own on standard output.
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    try:
        import submitit
    except ImportError as e:
        raise ConfigError("slurm: needs submitit: pip install 'vvlm_jax[slurm]'") from e
    return submitit


def _ask(*command: str) -> str:
    """Return what a program of Slurm prints. Raises ConfigError with its reason when it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"slurm: {command[0]}: {_reason(done.stderr)}")
    return done.stdout


def _output(*command: str) -> str:
    """Return what a program prints, also when it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def _reason(text: str) -> str:
    """Return the line of a program's error output that gives the reason."""
    lines = text.strip().splitlines() or ["no reason given"]
    telling = [line for line in lines if re.search("error|fail|invalid|unrecognized", line, re.I)]
    return re.sub(r"^(\w+: )?error: ", "", (telling or lines)[0])
