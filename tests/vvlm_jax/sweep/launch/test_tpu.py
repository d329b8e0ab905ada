import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.patience import LONG
from vvlm_jax.config import ConfigError
from vvlm_jax.sweep.launch import tpu, tpu_files, tpu_gcloud, tpu_kubernetes
from vvlm_jax.sweep.launch.tpu import TpuOptions

ALL = TpuOptions(
    topology="v5p:2x2x4", project="lab", zone="us-east5-a", spot=True, valid_until="12h",
    service_account="sweeps", image="registry/vvlm:1", secrets=("WANDB_API_KEY=wandb",),
    setup=("mkdir -p /sweeps",), workdir="/vvlm", quota_slices=3,
)  # fmt: skip
RUN = "star-8B_T32"
COMMANDS = [("python", "-m", "vvlm", "sweep", "work", "/sweeps/star", f"{RUN}/train")]


@pytest.fixture
def bash():
    """Yield a function that starts scripts; end what they leave running."""
    started = []

    def start(script, *, path="", **environ):
        process = subprocess.Popen(
            ["bash", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}", **environ},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


# --- names and slices ---


@pytest.mark.parametrize(
    ("topology", "more", "accelerator", "gke", "hosts", "of_host"),
    [
        ("v4:2x2x4", {}, "v4-32", "tpu-v4-podslice", 4, 4),
        ("v5p:2x2x4", {}, "v5p-32", "tpu-v5p-slice", 4, 4),
        ("v5p:2x2x1", {}, "v5p-8", "tpu-v5p-slice", 1, 4),
        ("v5e:4x4", {}, "v5litepod-16", "tpu-v5-lite-podslice", 4, 4),
        ("v5e:2x4", {"chips_per_host": 8}, "v5litepod-8", "tpu-v5-lite-podslice", 1, 8),
        ("v5e:1x1", {}, "v5litepod-1", "tpu-v5-lite-podslice", 1, 1),
        ("v6e:16x16", {}, "v6e-256", "tpu-v6e-slice", 64, 4),
    ],
)
def test_a_topology_by_the_names_of_both_tools(topology, more, accelerator, gke, hosts, of_host):
    options = TpuOptions(topology=topology, project="p", zone="z", image="i", **more)
    assert (
        f"--accelerator-type={accelerator}" in tpu_gcloud.gcloud("r", COMMANDS, options)["create"]
    )
    job = tpu_kubernetes.jobset("r", COMMANDS, options)["spec"]["replicatedJobs"][0]["template"][
        "spec"
    ]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": gke,
        "cloud.google.com/gke-tpu-topology": topology.partition(":")[2],
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": str(of_host)}


def test_names_are_dns_labels_and_stay_apart():
    runs = ["star", RUN, "star-8b-t32", "star-8B.T32", "8b", "x" * 41, "x" * 42, "-", "ü"]
    names = [tpu.name_of(run) for run in runs]
    assert names[0] == "star"
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name) for name in names)
    assert len(set(names)) == len(runs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(topology="v5q:4x4"), "v5q"),
        (dict(topology="v5e:2x2x4"), "must be like v5e:2x2, "),
        (dict(topology="v5p"), "must be like v5p:2x2x1, "),
        (dict(topology="v5e:3x3"), "9 chips on hosts of chips_per_host=4"),
        (dict(slices=0), "slices=0: must be 1 or more"),
        (dict(secrets=("KEY=it's secret",)), "must be VARIABLE=NAME"),
        (dict(secrets=("KEY",)), "must be VARIABLE=NAME"),
        (dict(namespace="Mine"), "namespace='Mine': must be lower-case"),
        (dict(mount="sweeps"), "must be an absolute path"),
    ],
)
def test_options_that_cannot_be(options, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        TpuOptions(**options)


def test_what_a_tool_needs_is_said_before_anything_is_written(tmp_path):
    for options, says in (
        (TpuOptions(), "give project=… and zone=…"),
        (TpuOptions(project="p"), "gcloud needs project=… and zone=…"),
    ):
        with pytest.raises(ConfigError, match=says):
            tpu_files.write([{RUN: COMMANDS}], options, tmp_path / "tpu")
    with pytest.raises(ConfigError, match="a JobSet needs image=…"):
        tpu_kubernetes.jobset(RUN, COMMANDS, TpuOptions())
    assert list(tmp_path.iterdir()) == []


# --- what runs on a host ---


NAME = tpu.name_of(RUN)


def hosts(*commands, **more):
    return tpu.host_script(RUN, commands, TpuOptions(**more))


def test_commands_run_in_a_row_and_the_worst_code_counts(bash):
    say = lambda text, code: ("sh", "-c", f"echo {text}; exit {code}")  # noqa: E731
    done = bash(hosts(say("a b", 1), say("c", 0), setup=("echo up",)))
    assert done.communicate()[0].splitlines() == ["up", "a b", "c", f"sweep: {NAME}: exit 1"]
    assert done.returncode == 1
    script = hosts(say("a", 75), say("b", 0))
    assert bash(script).communicate()[0].splitlines() == ["a", f"sweep: {NAME}: exit 75"]


def test_a_claimed_job_is_tried_again(bash, tmp_path):
    once = f"test -e {tmp_path}/seen && exit 0; touch {tmp_path}/seen; exit 3"
    done = bash(hosts(("sh", "-c", once)), POLL_SECONDS="0.1")
    assert done.communicate(timeout=LONG)[0] == f"sweep: {NAME}: exit 0\n"


def test_sigterm_reaches_the_command_which_saves(bash):
    slow = "trap 'echo saved; exit 75' TERM; echo up; for _ in {1..999}; do sleep 0.05; done"
    done = bash(hosts(("bash", "-c", slow), ("echo", "never")))
    assert done.stdout.readline() == "up\n"
    done.send_signal(signal.SIGTERM)
    assert done.communicate(timeout=LONG)[0] == f"saved\nsweep: {NAME}: exit 75\n"
    assert done.returncode == 75


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_sigterm_ends_the_wait_for_a_claimed_job(bash, seconds):
    """It does so before the job begins and after."""
    done = bash(hosts(("sh", "-c", "echo up; exit 3")), POLL_SECONDS="99999")
    assert done.stdout.readline() == "up\n"
    time.sleep(seconds)
    done.send_signal(signal.SIGTERM)
    assert done.communicate(timeout=LONG)[0] == f"sweep: {NAME}: exit 75\n"


# --- queued resources ---


def test_the_commands_of_a_queued_resource():
    parts = tpu_gcloud.gcloud(RUN, COMMANDS, ALL)
    words = {what: shlex.join(x) for what, x in parts.items()}
    where = "--project=lab --zone=us-east5-a"
    assert words["create"] == (
        f"gcloud compute tpus queued-resources create {NAME} {where} --node-id={NAME} "
        "--accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 --spot "
        "--valid-until-duration=12h --service-account=sweeps"
    )
    assert words["delete"].endswith(f"queued-resources delete {NAME} {where} --force --quiet")
    assert "'--format=value(state.state)'" in words["state"]
    assert parts["run"][:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert "--worker=all" in parts["run"]
    script = shlex.split(parts["run"][-1].removeprefix("--command="))[2]
    assert script.endswith(tpu.host_script(RUN, COMMANDS, ALL))
    assert 'WANDB_API_KEY="$(gcloud secrets versions access latest --secret=wandb)"' in script


def test_several_slices_are_one_request():
    parts = tpu_gcloud.gcloud("r", COMMANDS, TpuOptions(slices=2, project="p", zone="z"))
    assert {"--node-count=2", "--node-prefix=r"} < set(parts["create"])
    assert not any(word.startswith("--node-id") for word in parts["create"])
    assert parts["run"][:6] == ["gcloud", "alpha", "compute", "tpus", "queued-resources", "ssh"]
    assert {"--node=all", "--worker=all"} < set(parts["run"])


# A cloud in a folder: a slice is there at the second look, and is lost in the first run.
CLOUD = """#!/usr/bin/env bash
cd "$CLOUD"
echo "$3 $4" >>calls
case "$3 $4" in
    "queued-resources create") echo WAITING_FOR_RESOURCES >state ;;
    "queued-resources delete") rm state ;;
    "queued-resources describe")
        test -e state || exit 1
        cat state
        if grep -q WAITING state; then echo ACTIVE >state; fi ;;
    "tpu-vm ssh")
        echo run >>runs
        if [[ $(wc -l <runs) == 1 ]]; then
            echo SUSPENDED >state
            echo "$NAME exit 75"
            exit 1
        fi
        # As ssh does: another process, that knows the text alone.
        for host in 1 2; do env -i bash -c "${!#:10}"; done ;;
esac
"""


@pytest.mark.parametrize("code", [0, 1])
def test_a_driver_asks_again_after_a_preemption_and_gives_the_slice_back(bash, tmp_path, code):
    (tmp_path / "gcloud").write_text(CLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    options = TpuOptions(project="p", zone="z")
    script = tpu_gcloud.driver_script(RUN, [("sh", "-c", f"echo working; exit {code}")], options)
    done = bash(script, path=str(tmp_path), CLOUD=str(tmp_path), POLL_SECONDS="0.01", NAME=NAME)
    output = done.communicate(timeout=LONG)[0]
    assert done.returncode == code, output
    assert output.count("working") == 2
    calls = (tmp_path / "calls").read_text().splitlines()
    ask = ["queued-resources create", "queued-resources describe", "queued-resources describe"]
    assert calls == [
        "queued-resources describe", *ask, "tpu-vm ssh",
        "queued-resources describe", "queued-resources delete",
        "queued-resources describe", *ask, "tpu-vm ssh", "queued-resources delete",
    ]  # fmt: skip


def test_a_driver_gives_up_and_gives_the_slice_back(bash, tmp_path):
    (tmp_path / "gcloud").write_text(CLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    options = TpuOptions(project="p", zone="z", max_restarts=2)
    script = tpu_gcloud.driver_script(RUN, [("sh", "-c", "exit 134")], options)
    done = bash(script, path=str(tmp_path), CLOUD=str(tmp_path), POLL_SECONDS="0.01", NAME=NAME)
    done.communicate(timeout=LONG)
    assert done.returncode == 75
    assert not (tmp_path / "state").exists()
    assert (tmp_path / "runs").read_text().count("run") == 3


# --- Kubernetes ---


def strict(schema):
    """Return a schema that also refuses unknown fields, of which the API server warns."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(part) for key, part in schema.items()}
    open_ended = closed.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_ended:
        closed.setdefault("additionalProperties", False)
    return closed


def complaints(schema, document):
    import jsonschema

    def leaves(error):
        if not error.context:
            yield f"{error.json_path}: {error.message}"
        for cause in error.context:
            yield from leaves(cause)

    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [line for error in errors for line in leaves(error)]


@pytest.fixture(scope="module")
def jobset_schema():
    """Return JobSet with Kubernetes' own Job and Pod, from models generated out of their OpenAPI
    text.
    """
    pytest.importorskip("jsonschema")
    models = pytest.importorskip("kubeflow_trainer_api.models")
    schema = strict(models.JobsetV1alpha2JobSet.model_json_schema(by_alias=True))
    # The generator's wrappers of "a string or a number" are not what JSON has.
    for name in ("IoK8sApimachineryPkgApiResourceQuantity", "IoK8sApimachineryPkgUtilIntstr"):
        for found in [key for key in schema["$defs"] if key.startswith(name)]:
            schema["$defs"][found] = {"type": ["string", "number"]}
    return schema


@pytest.mark.light
@pytest.mark.parametrize(
    "options",
    [ALL, TpuOptions(image="i"), TpuOptions(image="i", slices=2, topology="v5e:1x1")],
)
def test_a_jobset_is_what_its_published_schema_says(jobset_schema, options):
    assert complaints(jobset_schema, tpu_kubernetes.jobset(RUN, COMMANDS, options)) == []


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ((), "specs", {}),
        (("spec", "failurePolicy"), "maxRestart", 1),
        (("spec", "failurePolicy"), "maxRestarts", "many"),
        (("spec", "replicatedJobs", 0, "template", "spec"), "backoffLimits", 0),
        (("spec", "replicatedJobs", 0, "template", "spec", "template", "spec"), "volumes", "store"),
    ],
)
def test_the_schema_refuses_what_is_wrong(jobset_schema, where, key, value):
    document = json.loads(json.dumps(tpu_kubernetes.jobset(RUN, COMMANDS, ALL)))
    part = document
    for step in where:
        part = part[step]
    part[key] = value
    assert complaints(jobset_schema, document)


def test_what_ends_a_jobset_and_what_does_not():
    spec = tpu_kubernetes.jobset(RUN, COMMANDS, ALL)["spec"]
    (slice,) = spec["replicatedJobs"]
    job = slice["template"]["spec"]
    final, saved, evicted = job["podFailurePolicy"]["rules"]
    assert (final["action"], final["onExitCodes"]["values"]) == ("FailJob", [1])
    assert (saved["action"], saved["onExitCodes"]["values"]) == ("Ignore", [75])
    assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == (
        "Ignore",
        "DisruptionTarget",
    )
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # What Kubernetes asks of a job with such a policy, and every pod of a slice at once.
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], job["backoffLimit"], job["completionMode"]) == (
        "Never",
        0,
        "Indexed",
    )
    named = {rule["onExitCodes"]["containerName"] for rule in (final, saved)}
    assert named == {pod["containers"][0]["name"]}
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert (claims[mount["name"]], mount["mountPath"]) == ("sweeps", "/sweeps")


def test_secrets_are_named_and_never_held(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush")
    texts = tpu_files.files([{RUN: COMMANDS}], ALL)
    assert not [name for name, text in texts.items() if "hush-hush" in text]
    (slices,) = tpu_kubernetes.jobset(RUN, COMMANDS, ALL)["spec"]["replicatedJobs"]
    container = slices["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [
        {
            "name": "WANDB_API_KEY",
            "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}},
        }
    ]


def test_kueue_has_room_for_so_many_runs_and_the_queue_that_jobsets_name():
    flavor, cluster, local = tpu_kubernetes.kueue(ALL)
    (group,) = cluster["spec"]["resourceGroups"]
    (there,) = group["flavors"]
    assert there["name"] == flavor["metadata"]["name"]
    assert there["resources"] == [{"name": "google.com/tpu", "nominalQuota": "48"}]
    assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    jobset = tpu_kubernetes.jobset(RUN, COMMANDS, ALL)
    labels = jobset["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == local["metadata"]["name"]
    assert jobset["metadata"]["namespace"] == local["metadata"]["namespace"]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert job["nodeSelector"] == flavor["spec"]["nodeLabels"]


@pytest.fixture(scope="module")
def published():
    """Return {(API version, kind): schema} of the CRDs in checkouts of JobSet and Kueue, which are
    not on PyPI; without the variables these tests are skipped, and say so.
    """
    pytest.importorskip("jsonschema")
    loader, found = getattr(yaml, "CSafeLoader", yaml.SafeLoader), {}  # they are long
    for name, project, kinds in (
        ("JOBSET_PATH", "jobset", ("jobsets",)),
        ("KUEUE_PATH", "kueue", ("resourceflavors", "clusterqueues", "localqueues")),
    ):
        root = os.environ.get(name)
        if not root:
            pytest.skip(f"set {name} to a checkout of kubernetes-sigs/{project}")
        for kind in kinds:
            file = Path(root) / f"config/components/crd/bases/{project}.x-k8s.io_{kind}.yaml"
            crd = yaml.load(file.read_text(), loader)["spec"]
            for version in crd["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                api = f"{crd['group']}/{version['name']}"
                found[api, crd["names"]["kind"]] = schema
    return found


@pytest.mark.parametrize(
    "options", [ALL, TpuOptions(image="i"), TpuOptions(image="i", slices=2, topology="v5e:1x1")]
)
def test_all_manifests_are_what_the_published_crds_say(published, options):
    documents = [tpu_kubernetes.jobset(RUN, COMMANDS, options), *tpu_kubernetes.kueue(options)]
    for document in documents:
        schema = published[document["apiVersion"], document["kind"]]
        assert complaints(schema, document) == []
        wrong = {**document, "spec": {**document["spec"], "sepc": {}}}
        assert complaints(schema, wrong), "an unknown field must be seen"


# --- files ---


def test_files_for_both_tools_a_wave_after_the_other(tmp_path):
    waves = [{"stage1": COMMANDS}, {"a": COMMANDS, RUN: COMMANDS}]
    paths = tpu_files.write(waves, ALL, tmp_path / "tpu")
    assert {p.name for p in paths} == {p.name for p in (tmp_path / "tpu").iterdir()} == {
        "stage1.sh", "a.sh", f"{NAME}.sh", "launch.sh",
        "kueue.json", "jobsets-1.json", "jobsets-2.json",
    }  # fmt: skip
    items = json.loads((tmp_path / "tpu/jobsets-2.json").read_text())["items"]
    assert [item["metadata"]["name"] for item in items] == ["a", NAME]
    for script in (tmp_path / "tpu").glob("*.sh"):
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_launch_runs_waves_in_order_and_tells_a_failure(tmp_path):
    tpu_files.write([{"one": COMMANDS}, {"two": COMMANDS, "three": COMMANDS}], ALL, tmp_path)
    for name, code in (("one", 0), ("two", 1), ("three", 0)):
        (tmp_path / f"{name}.sh").write_text(f"echo {name} >>{tmp_path}/order; exit {code}")
    done = subprocess.run(["bash", str(tmp_path / "launch.sh")], capture_output=True)
    assert done.returncode == 1
    first, *rest = (tmp_path / "order").read_text().split()
    assert (first, sorted(rest)) == ("one", ["three", "two"])
