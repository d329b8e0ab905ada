"""A run as a queued resource of Cloud TPU: a shell script around `gcloud`, with the flags of
Google's guide to queued resources.
"""

import shlex

from vvlm_jax.config import ConfigError
from vvlm_jax.exit_codes import Exit
from vvlm_jax.sweep.launch.tpu import (
    WAIT,
    Commands,
    TpuOptions,
    host_script,
    marker,
    name_of,
    slice_of,
)


def gcloud(run: str, commands: Commands, options: TpuOptions) -> dict[str, list[str]]:
    """Return the command lines of one run: {"create", "state", "run", "delete": words}.

    Raises ConfigError without a project and a zone.
    """
    if not (options.project and options.zone):
        raise ConfigError("tpu: gcloud needs project=… and zone=…")
    slice, name = slice_of(options), name_of(run)
    where = [f"--project={options.project}", f"--zone={options.zone}"]
    tpus, many = ["gcloud", "compute", "tpus"], options.slices > 1
    nodes = [f"--node-id={name}"]
    if many:
        nodes = [f"--node-count={options.slices}", f"--node-prefix={name}"]
    queued = [*tpus, "queued-resources"]
    create = [*queued, "create", name, *where, *nodes]
    create += [f"--accelerator-type={slice.accelerator_type}"]
    create += [f"--runtime-version={slice.topology.generation.runtime}"]
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
    """Return a shell script that requests a slice, runs on it, repeats both after a preemption, and
    deletes the slice.

    It may be interrupted and started again. It exits with 0 (done), 1 (failed) or 75 (gave up after
    `max_restarts`).
    """
    parts = gcloud(run, commands, options)
    functions = [f"{what}() {{ {shlex.join(words)}; }}" for what, words in parts.items()]
    return f"""#!/usr/bin/env bash
# {name_of(run)}: request a TPU slice, run, delete it. Start again after any interruption.
set -uo pipefail
poll=${{POLL_SECONDS:-{WAIT}}}
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
    # Every host prints its exit code. If they differ, or one is missing, run again.
    ends=$(sed -n {shlex.quote(f"s/.*{marker(run)} //p")} "$output" | sort -u)
    if [[ $ends == 0 || $ends == {Exit.FAILED} ]]; then
        delete
        exit "$ends"
    fi
    sleep "$poll"
done
delete
exit {Exit.RETRY}
"""
