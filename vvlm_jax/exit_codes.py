"""Exit codes of commands that a cluster or a driver starts."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit code of a process that trains a model or does a job of a sweep."""

    DONE = 0
    """Finished, in this process or before."""
    FAILED = 1
    """Failed; the store of a sweep says why."""
    BAD_INPUT = 2
    """Wrong options or files, or a full disk."""
    CLAIMED = 3
    """Not available now: another live worker has the job, or it waits for other jobs."""
    RETRY = 75
    """Stopped by a signal with its work saved; run it again. This is sysexits' EX_TEMPFAIL."""
