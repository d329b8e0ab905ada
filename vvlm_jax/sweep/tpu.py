"""Commands on TPU pods, by Google's own tools: a slice a run, as queued resources or as JobSets.

Nothing here talks to a cloud. `write` puts ready-to-run files into a folder: for each run a shell
script around `gcloud` and a JobSet, and Kueue's queue for them; all else is pure. On every host the
same commands run (`host_script`), and what their exit codes mean is the same everywhere: 0 and 1
are final (1: the store says why), 3 is tried again after a while, 75 and anything else by whoever
started the host.

The flags are those of Google's guide to queued resources, the fields those of jobset.x-k8s.io
v1alpha2 and kueue.x-k8s.io v1beta2.
"""

import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.config import ConfigError, choose

FAILED, CLAIMED, STOPPED = 1, 3, 75
_WAIT = 60  # seconds between looks, at a queue or at a job that somebody else has

Commands = Sequence[Sequence[str]]


class Generation(NamedTuple):
    """How Google's tools call a kind of TPU."""

    accelerator: str
    """Start of gcloud's --accelerator-type."""
    per_chip: int
    """What its number counts: cores, two a chip, or chips."""
    runtime: str
    """gcloud's --runtime-version."""
    gke: str
    """The node label cloud.google.com/gke-tpu-accelerator."""


GENERATIONS = {
    "v4": Generation("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": Generation("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v5p": Generation("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": Generation("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
}


@dataclass(frozen=True)
class TpuOptions:
    """What to ask of Google for each run."""

    topology: str = "v5p:2x2x4"
    """As tools.compile has it."""
    slices: int = 1
    """Slices a run, joined by the data centre's network."""
    chips_per_host: int = 4
    """8 for v5e and v6e machines that hold a whole 2x4."""
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
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be 1 or more")
        for secret in self.secrets:
            if not re.fullmatch(r"[A-Za-z_]\w*=[A-Za-z0-9][\w.-]*", secret):
                raise ConfigError(f"secrets={secret!r}: must be VARIABLE=NAME, never the value")
        for name in ("namespace", "claim", "queue", "service_account"):
            value = getattr(self, name)
            if not re.fullmatch(r"[a-z0-9]([a-z0-9.@-]*[a-z0-9])?|", value):
                raise ConfigError(f"{name}={value!r}: must be lower-case letters, digits and -")
        if not self.mount.startswith("/"):
            raise ConfigError(f"mount={self.mount}: must be an absolute path")
        _slice(self)


class Slice(NamedTuple):
    """One slice of a topology."""

    generation: Generation
    shape: str
    chips: int
    hosts: int
    chips_of_host: int

    @property
    def accelerator_type(self) -> str:
        """gcloud's name."""
        return f"{self.generation.accelerator}-{self.chips * self.generation.per_chip}"


def _slice(options: TpuOptions) -> Slice:
    """ConfigError when there is no such slice."""
    kind, _, shape = options.topology.partition(":")
    generation = choose(GENERATIONS, kind, f"topology={options.topology}: the kind of TPU")
    example = "2x2x4" if kind in ("v4", "v5p") else "4x4"
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * example.count("x"), shape):
        raise ConfigError(f"topology={options.topology}: must be like {kind}:{example}")
    chips = math.prod(map(int, shape.split("x")))
    of_host = min(chips, options.chips_per_host)
    if chips % of_host:
        raise ConfigError(
            f"topology={options.topology}: {chips} chips on hosts of chips_per_host={of_host}"
        )
    return Slice(generation, shape, chips, chips // of_host, of_host)


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
        "finish() { echo " + shlex.quote(_marker(run)) + ' "$1"; exit "$1"; }',
        "work() {",
        "    local code",
        "    while :; do",
        f"        if [[ -n $stopped ]]; then finish {STOPPED}; fi",
        '        "$@" & child=$!',
        '        if [[ -n $stopped ]]; then kill -TERM "$child"; fi',
        "        # A signal ends wait before the command has ended.",
        '        while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done',
        f"        if [[ -n $stopped || $code == {STOPPED} ]]; then finish {STOPPED}; fi",
        f"        if [[ $code != {CLAIMED} ]]; then break; fi",
        f'        sleep "${{POLL_SECONDS:-{_WAIT}}}" & child=$!; wait "$child"',
        "    done",
        "    if ((code > worst)); then worst=$code; fi",
        "}",
        *("work " + shlex.join(command) for command in commands),
        'finish "$worst"',
    ]
    return "\n".join(lines) + "\n"


def _marker(run: str) -> str:
    return f"sweep: {name_of(run)}: exit"


# --- queued resources ---


def gcloud(run: str, commands: Commands, options: TpuOptions) -> dict[str, list[str]]:
    """The commands around one run: {"create", "state", "run", "delete": words}.

    Raises ConfigError without a project and a zone.
    """
    if not (options.project and options.zone):
        raise ConfigError("tpu: gcloud needs project=… and zone=…")
    slice, name = _slice(options), name_of(run)
    where = [f"--project={options.project}", f"--zone={options.zone}"]
    tpus, many = ["gcloud", "compute", "tpus"], options.slices > 1
    nodes = [f"--node-id={name}"]
    if many:
        nodes = [f"--node-count={options.slices}", f"--node-prefix={name}"]
    queued = [*tpus, "queued-resources"]
    create = [*queued, "create", name, *where, *nodes]
    create += [f"--accelerator-type={slice.accelerator_type}"]
    create += [f"--runtime-version={slice.generation.runtime}"]
    if options.spot:
        create.append("--spot")
    if options.valid_until:
        create.append(f"--valid-until-duration={options.valid_until}")
    if options.service_account:
        create.append(f"--service-account={options.service_account}")
    secrets = [
        f'export {variable}="$(gcloud secrets versions access latest --secret={secret})"'
        for variable, _, secret in (s.partition("=") for s in options.secrets)
    ]
    script = "\n".join([*secrets, host_script(run, commands, options)])
    ssh = [*tpus, "tpu-vm", "ssh", name, *where, "--worker=all"]
    if many:
        ssh = ["gcloud", "alpha", *ssh[1:3], "queued-resources", "ssh", name, *where]
        ssh += ["--node=all", "--worker=all"]
    return {
        "create": create,
        "state": [*queued, "describe", name, *where, "--format=value(state.state)"],
        "run": [*ssh, f"--command=bash -c {shlex.quote(script)}"],
        "delete": [*queued, "delete", name, *where, "--force", "--quiet"],
    }


def driver_script(run: str, commands: Commands, options: TpuOptions) -> str:
    """A shell script that takes a run from the queue to its end: asks for a slice, runs, asks again
    after a preemption, and gives the slice back. Interrupted, it may be started again. It exits
    with 0 (done), 1 (failed) or 75 (given up after `max_restarts`).
    """
    parts = gcloud(run, commands, options)
    functions = [f"{what}() {{ {shlex.join(words)}; }}" for what, words in parts.items()]
    return f"""#!/usr/bin/env bash
# {name_of(run)}: one TPU slice, from the queue to its end. Start it again after any interruption.
set -uo pipefail
poll=${{POLL_SECONDS:-{_WAIT}}}
{chr(10).join(functions)}
output=$(mktemp)
trap 'rm -f "$output"' EXIT
for _ in $(seq {options.max_restarts + 1}); do
    while state=$(state 2>/dev/null) || state=MISSING; [[ $state != ACTIVE ]]; do
        case $state in
            MISSING) create || exit 2 ;;
            FAILED | SUSPENDED) delete ;;
        esac
        sleep "$poll"
    done
    run 2>&1 | tee "$output"
    # Every host says how it ended; if they differ, or one is silent, run them again.
    ends=$(sed -n {shlex.quote(f"s/.*{_marker(run)} //p")} "$output" | sort -u)
    if [[ $ends == 0 || $ends == {FAILED} ]]; then
        delete
        exit "$ends"
    fi
    sleep "$poll"
done
delete
exit {STOPPED}
"""


# --- Kubernetes ---


def jobset(run: str, commands: Commands, options: TpuOptions) -> dict:
    """A JobSet that takes a run to its end, in Kueue's queue.

    A pod that is evicted or exits with 75 is replaced and counts nothing; exit code 1 ends the
    JobSet; after anything else all pods start afresh, `max_restarts` times. Raises ConfigError
    without an image.
    """
    if not options.image:
        raise ConfigError("tpu: a JobSet needs image=…, a container with this repository")
    slice, container = _slice(options), "run"
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 600,
        "nodeSelector": _node_labels(slice),
        "containers": [
            {
                "name": container,
                "image": options.image,
                "command": ["bash", "-c", host_script(run, commands, options)],
                "resources": {
                    "requests": {"google.com/tpu": str(slice.chips_of_host)},
                    "limits": {"google.com/tpu": str(slice.chips_of_host)},
                },
                "env": [_secret(*s.split("=")) for s in options.secrets],
                "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
                "volumeMounts": [{"name": "store", "mountPath": options.mount}],
            }
        ],
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": options.claim}}],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    again = [
        {"onExitCodes": {"containerName": container, "operator": "In", "values": [STOPPED]}},
        {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    final = {"containerName": container, "operator": "In", "values": [FAILED]}
    job = {
        "parallelism": slice.hosts,
        "completions": slice.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": final},
                *({"action": "Ignore"} | rule for rule in again),
            ]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name_of(run),
            "namespace": options.namespace,
            "labels": {"kueue.x-k8s.io/queue-name": options.queue},
            "annotations": {
                "vvlm-jax/run": run,
                # A child job has a node pool, which is a slice, to itself.
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
            },
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": options.max_restarts,
                "rules": [
                    {
                        "name": "failed",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }


def kueue(options: TpuOptions) -> list[dict]:
    """Kueue's objects for such runs, made once by who runs the cluster: the kind of node, a quota
    of `quota_slices` runs, and the queue of the namespace.
    """
    slice, version = _slice(options), "kueue.x-k8s.io/v1beta2"
    flavor = f"{slice.generation.gke}-{slice.shape}"
    quota = slice.chips * options.slices * options.quota_slices
    resource = {"name": "google.com/tpu", "nominalQuota": str(quota)}
    return [
        {
            "apiVersion": version,
            "kind": "ResourceFlavor",
            "metadata": {"name": flavor},
            "spec": {"nodeLabels": _node_labels(slice)},
        },
        {
            "apiVersion": version,
            "kind": "ClusterQueue",
            "metadata": {"name": options.queue},
            "spec": {
                "namespaceSelector": {},
                "queueingStrategy": "BestEffortFIFO",
                "resourceGroups": [
                    {
                        "coveredResources": ["google.com/tpu"],
                        "flavors": [{"name": flavor, "resources": [resource]}],
                    }
                ],
            },
        },
        {
            "apiVersion": version,
            "kind": "LocalQueue",
            "metadata": {"name": options.queue, "namespace": options.namespace},
            "spec": {"clusterQueue": options.queue},
        },
    ]


def _node_labels(slice: Slice) -> dict[str, str]:
    return {
        "cloud.google.com/gke-tpu-accelerator": slice.generation.gke,
        "cloud.google.com/gke-tpu-topology": slice.shape,
    }


def _secret(variable: str, name: str) -> dict:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": variable}}}


# --- files ---


def files(waves: Sequence[Mapping[str, Commands]], options: TpuOptions) -> dict[str, str]:
    """{file name: text} for runs ({run: commands}); a wave comes after the one before.

    With a project and a zone: a script a run, and `launch.sh`, which starts `quota_slices` at once.
    With an image: `kueue.json`, and `jobsets-WAVE.json` for `kubectl apply`. Raises ConfigError
    with neither.
    """
    with_gcloud, with_jobsets = bool(options.project or options.zone), bool(options.image)
    if not (with_gcloud or with_jobsets):
        raise ConfigError("tpu: give project=… and zone=… (queued resources) or image=… (JobSets)")
    texts = {}
    if with_gcloud:
        lines = ["#!/usr/bin/env bash", 'set -u; cd "$(dirname "${BASH_SOURCE[0]}")"; failed=0']
        for wave in waves:
            names = [f"{name_of(run)}.sh" for run in wave]
            texts |= {
                n: driver_script(run, commands, options)
                for n, (run, commands) in zip(names, wave.items(), strict=True)
            }
            start = f"xargs -P {options.quota_slices} -n 1 bash || failed=1"
            lines.append(f"printf '%s\\n' {' '.join(names)} | {start}")
        texts["launch.sh"] = "\n".join([*lines, 'exit "$failed"']) + "\n"
    if with_jobsets:
        texts["kueue.json"] = _list(kueue(options))
        for number, wave in enumerate(waves, 1):
            items = [jobset(run, commands, options) for run, commands in wave.items()]
            texts[f"jobsets-{number}.json"] = _list(items)
    return texts


def _list(items: list[dict]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=1) + "\n"


def write(
    waves: Sequence[Mapping[str, Commands]], options: TpuOptions, folder: str | Path
) -> list[Path]:
    """Writes `files` into a folder and returns their paths. ConfigError before anything is
    written.
    """
    texts, folder = files(waves, options), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]
