"""Commands on TPU pods, by Google's own tools: a slice a run, as queued resources (`tpu_gcloud.py`)
or as JobSets (`tpu_pods.py`). Nothing talks to a cloud: `tpu_files.py` writes ready-to-run files.

On every host the same commands run (`host_script`), and what their exit codes mean is the same
everywhere: 0 and 1 are final (1: the store says why), 3 is tried again after a while, 75 and
anything else by whoever started the host.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vvlm_jax.config import ConfigError
from vvlm_jax.devices import Topology, parse_topology

FAILED, CLAIMED, STOPPED = 1, 3, 75
WAIT = 60  # seconds between looks, at a queue or at a job that somebody else has

Commands = Sequence[Sequence[str]]


@dataclass(frozen=True)
class TpuOptions:
    """What to ask of Google for each run."""

    topology: str = "v5p:2x2x4"
    """As tools.compile has it."""
    slices: int = 1
    """Slices a run, joined by the data centre's network."""
    chips_per_host: int | None = None
    """Of the machines; None for those that large slices consist of. 8 for v5e and v6e machines that
    hold a whole 2x4.
    """
    mount: str = "/sweeps"
    """Where the file system with the store is, on every host."""
    python: str = "python"
    """The interpreter there."""
    workdir: str = "."
    """The checkout there."""
    setup: tuple[str, ...] = ()
    """Shell commands on each host before the run; they may run again."""
    secrets: tuple[str, ...] = ()
    """VARIABLE=NAME: environment variables from secrets, of Secret Manager or of Kubernetes (there
    under the key VARIABLE). No value is ever written."""
    service_account: str = ""
    max_restarts: int = 20
    """After crashes and preemptions without notice; announced ones do not count in Kubernetes."""

    project: str = ""
    zone: str = ""
    spot: bool = False
    valid_until: str = ""
    """How long to wait in the queue, such as 12h."""

    image: str = ""
    """Container with this repository and its packages."""
    namespace: str = "default"
    claim: str = "sweeps"
    """PersistentVolumeClaim of the store's file system, such as a bucket."""
    queue: str = "sweeps"
    """Kueue's LocalQueue."""
    quota_slices: int = 1
    """Runs at the same time."""

    def __post_init__(self):
        for name in ("slices", "chips_per_host", "max_restarts", "quota_slices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be 1 or more")
        for secret in self.secrets:
            if not re.fullmatch(r"[A-Za-z_]\w*=[A-Za-z0-9][\w.-]*", secret):
                raise ConfigError(f"secrets={secret!r}: must be VARIABLE=NAME, never the value")
        for name in ("namespace", "claim", "queue", "service_account"):
            value = getattr(self, name)
            if not re.fullmatch(r"[a-z0-9]([a-z0-9.@-]*[a-z0-9])?|", value):
                raise ConfigError(f"{name}={value!r}: must be lower-case letters, digits and -")
        if not self.mount.startswith("/"):
            raise ConfigError(f"mount={self.mount}: must be an absolute path")
        slice_of(self)


class Slice(NamedTuple):
    """One slice, divided into hosts."""

    topology: Topology
    hosts: int
    chips_of_host: int

    @property
    def accelerator_type(self) -> str:
        """Return gcloud's name of the slice, such as v5p-32."""
        tpu = self.topology.generation
        return f"{tpu.accelerator}-{self.topology.chips * tpu.units_per_chip}"


def slice_of(options: TpuOptions) -> Slice:
    """Divide `options.topology` into hosts. Raises ConfigError when there is no such slice."""
    topology = parse_topology(options.topology, "topology=")
    of_host = min(topology.chips, options.chips_per_host or topology.generation.chips_per_host)
    if topology.chips % of_host:
        raise ConfigError(
            f"topology={topology}: {topology.chips} chips on hosts of chips_per_host={of_host}"
        )
    return Slice(topology, topology.chips // of_host, of_host)


def name_of(run: str) -> str:
    """A name for a run that Google's tools and DNS take: at most 40 of a-z, 0-9 and -, the same
    each time and different for different runs.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if plain == run and len(run) <= 40 and plain[0].isalpha():
        return run
    return f"run-{plain[:27].strip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def host_script(run: str, commands: Commands, options: TpuOptions) -> str:
    """What runs on every host of a slice: bash. SIGTERM goes to the command, which saves."""
    lines = [
        "set -u",
        *options.setup,
        f"cd {shlex.quote(options.workdir)} || exit 2",
        "stopped= child= worst=0",
        """trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM""",
        "finish() { echo " + shlex.quote(marker(run)) + ' "$1"; exit "$1"; }',
        "work() {",
        "    local code",
        "    while :; do",
        f"        if [[ -n $stopped ]]; then finish {STOPPED}; fi",
        '        "$@" & child=$!',
        '        if [[ -n $stopped ]]; then kill -TERM "$child" 2>/dev/null; fi',
        "        # A signal ends wait before the command has ended.",
        '        while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done',
        f"        if [[ -n $stopped || $code == {STOPPED} ]]; then finish {STOPPED}; fi",
        f"        if [[ $code != {CLAIMED} ]]; then break; fi",
        f'        sleep "${{POLL_SECONDS:-{WAIT}}}" & child=$!',
        '        if [[ -n $stopped ]]; then kill -TERM "$child" 2>/dev/null; fi',
        '        wait "$child"',
        "    done",
        "    if ((code > worst)); then worst=$code; fi",
        "}",
        *("work " + shlex.join(command) for command in commands),
        'finish "$worst"',
    ]
    return "\n".join(lines) + "\n"


def marker(run: str) -> str:
    """What a host prints before its exit code."""
    return f"sweep: {name_of(run)}: exit"
