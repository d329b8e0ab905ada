"""Commands on TPU pods, one slice a run: as queued resources of gcloud (`tpu_gcloud.py`) or as
JobSets of Kubernetes (`tpu_kubernetes.py`). `tpu_files.py` writes files to run; nothing here calls
a cloud.

Every host of a slice runs the same commands (`host_script`). Exit codes 0 and 1 are final (after 1
the store says why). After 3 the host tries again later. After 75 and any other code, gcloud's
script or Kubernetes starts the hosts again.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vvlm_jax.config import ConfigError
from vvlm_jax.devices import Topology, parse_topology
from vvlm_jax.exit_codes import Exit

WAIT = 60  # seconds between looks at a queue, or at a job that another worker has

Commands = Sequence[Sequence[str]]


@dataclass(frozen=True)
class TpuOptions:
    """Options of the TPU slices of each run."""

    topology: str = "v5p:2x2x4"
    """Generation and shape of a slice, as `vvlm compile --topology` takes it."""
    slices: int = 1
    """Slices of a run, joined by the data centre's network."""
    chips_per_host: int | None = None
    """Chips of each machine; None for the usual number of large slices. 8 for v5e and v6e machines
    that hold a whole 2x4.
    """
    mount: str = "/sweeps"
    """Where every host mounts the filesystem with the store."""
    python: str = "python"
    """The Python interpreter on the hosts, with vvlm_jax installed."""
    workdir: str = "."
    """Where commands run; relative paths of data start here."""
    setup: tuple[str, ...] = ()
    """Shell commands on each host before the run; they may run more than once."""
    secrets: tuple[str, ...] = ()
    """VARIABLE=NAME: environment variables from secrets of Secret Manager, or of Kubernetes (where
    VARIABLE is the key). Values are never written to a file."""
    service_account: str = ""
    max_restarts: int = 20
    """Largest number of restarts after crashes and preemptions. Kubernetes does not count
    preemptions that it announced."""

    project: str = ""
    zone: str = ""
    spot: bool = False
    valid_until: str = ""
    """Longest time in the queue, such as 12h."""

    image: str = ""
    """Container image with vvlm_jax installed."""
    namespace: str = "default"
    claim: str = "sweeps"
    """PersistentVolumeClaim of the filesystem with the store."""
    queue: str = "sweeps"
    """Kueue's LocalQueue."""
    quota_slices: int = 1
    """Largest number of runs at the same time."""

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
    """Return a name for a run that Google's tools and DNS accept: at most 40 of a-z, 0-9 and -.

    Always the same for a run, and different for different runs: where characters are replaced a
    hash is added.
    """
    plain = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if plain == run and len(run) <= 40 and plain[0].isalpha():
        return run
    return f"run-{plain[:27].strip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def host_script(run: str, commands: Commands, options: TpuOptions) -> str:
    """Return the bash script for every host of a slice. It forwards SIGTERM, so that the command
    saves.
    """
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
        f"        if [[ -n $stopped ]]; then finish {Exit.RETRY}; fi",
        '        "$@" & child=$!',
        '        if [[ -n $stopped ]]; then kill -TERM "$child" 2>/dev/null; fi',
        "        # A signal ends wait before the command has ended.",
        '        while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done',
        f"        if [[ -n $stopped || $code == {Exit.RETRY} ]]; then finish {Exit.RETRY}; fi",
        f"        if [[ $code != {Exit.CLAIMED} ]]; then break; fi",
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
    """Return what a host prints before its exit code."""
    return f"sweep: {name_of(run)}: exit"
