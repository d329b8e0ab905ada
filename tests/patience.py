"""Wait for other processes, with limits that only a hang reaches: the machine may be busy."""

import socket
import time
from pathlib import Path

LONG = 600.0
"""Seconds after which a wait fails: a limit for hangs, not for slow machines."""


def wait_until(true, is_alive=lambda: True, seconds=LONG):
    """Return `true()` once it is true.

    Raises AssertionError after `seconds`, or when the process that should make it true has ended.
    """
    deadline = time.monotonic() + seconds
    while not (found := true()):
        # Asked once more: the process may just have ended with everything done.
        assert is_alive() or true(), "the process that was waited for has ended"
        assert time.monotonic() < deadline, f"not true after {seconds:g} s"
        time.sleep(0.005)
    return found


_OURS = []


def free_port() -> int:
    """Return a port that no other test and no program takes before the caller does.

    It is below the range of ports that the system assigns by itself, and a UDP socket with its
    number marks it as taken for other tests.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(given.read_text().split()[0]) if given.exists() else 32768
    for port in range(first - 1, 1024, -1):
        mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as s:
                s.bind(("", port))
        except OSError:
            mark.close()
            continue
        _OURS.append(mark)
        return port
    raise AssertionError("no free port")
