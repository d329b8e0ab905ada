"""Waiting for others on a machine that may be busy with something else, for as long as it takes."""

import socket
import time
from pathlib import Path

LONG = 600.0
"""Seconds after which what was to happen never will: for what hangs, not for what is slow."""


def wait_until(true, is_alive=lambda: True, seconds=LONG):
    """What `true()` gives once it is true. AssertionError when it never is, or when who should make
    it true has ended.
    """
    deadline = time.monotonic() + seconds
    while not (found := true()):
        # Asked once more: it may have ended just now, with everything done.
        assert is_alive() or true(), "who was waited for has ended"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


_OURS = []


def free_port() -> int:
    """A port of this machine that nobody else will take before who is told of it does: the system
    gives none of these to anybody by itself, and other tests find its number taken for datagrams.
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
