"""A run as a JobSet of Kubernetes, and the queue of Kueue for all runs.

The fields are those of jobset.x-k8s.io v1alpha2 and kueue.x-k8s.io v1beta2.
"""

from vvlm_jax.config import ConfigError
from vvlm_jax.exit_codes import Exit
from vvlm_jax.sweep.launch.tpu import (
    Commands,
    Slice,
    TpuOptions,
    host_script,
    name_of,
    slice_of,
)

_CONTAINER = "run"


def jobset(run: str, commands: Commands, options: TpuOptions) -> dict:
    """Return a JobSet that runs commands to their end, in Kueue's queue.

    A pod that is evicted or exits with 75 is replaced without counting as a restart. Exit code 1
    ends the JobSet. After any other code all pods start again, at most `max_restarts` times.

    Raises ConfigError without an image.
    """
    if not options.image:
        raise ConfigError("tpu: a JobSet needs image=…, a container image with vvlm_jax")
    slice = slice_of(options)
    job = _job(slice, _pod(run, commands, options, slice))
    failed = {
        "name": "failed",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
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
                # A node pool is one slice: give it to one child job only.
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool",
            },
        },
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": options.max_restarts, "rules": [failed]},
            "replicatedJobs": [
                {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }


def _pod(run: str, commands: Commands, options: TpuOptions, slice: Slice) -> dict:
    """Return the spec of the pod of one host."""
    chips = {"google.com/tpu": str(slice.chips_of_host)}
    container = {
        "name": _CONTAINER,
        "image": options.image,
        "command": ["bash", "-c", host_script(run, commands, options)],
        "resources": {"requests": chips, "limits": chips},
        "env": [_secret(*s.split("=")) for s in options.secrets],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        "volumeMounts": [{"name": "store", "mountPath": options.mount}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 600,
        "nodeSelector": _node_labels(slice),
        "containers": [container],
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": options.claim}}],
    }
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    return pod


def _job(slice: Slice, pod: dict) -> dict:
    """Return the spec of the job of one slice, a pod a host, with what exit codes mean."""

    def on(code: Exit) -> dict:
        values = {"containerName": _CONTAINER, "operator": "In", "values": [code]}
        return {"onExitCodes": values}

    evicted = {"onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "parallelism": slice.hosts,
        "completions": slice.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob"} | on(Exit.FAILED),
                {"action": "Ignore"} | on(Exit.RETRY),
                {"action": "Ignore"} | evicted,
            ]
        },
        "template": {"spec": pod},
    }


def kueue(options: TpuOptions) -> list[dict]:
    """Return Kueue's objects for such runs, which an administrator applies once: the kind of node,
    a quota of `quota_slices` runs, and the namespace's queue.
    """
    slice, version = slice_of(options), "kueue.x-k8s.io/v1beta2"
    topology = slice.topology
    flavor = f"{topology.generation.gke}-{topology.sides}"
    quota = topology.chips * options.slices * options.quota_slices
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
        "cloud.google.com/gke-tpu-accelerator": slice.topology.generation.gke,
        "cloud.google.com/gke-tpu-topology": slice.topology.sides,
    }


def _secret(variable: str, name: str) -> dict:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": name, "key": variable}}}
