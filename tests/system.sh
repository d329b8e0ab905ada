#!/usr/bin/env bash
# System packages that some tests use: chromium opens the HTML report, Slurm's daemons run sweeps.
# Installs the missing ones where apt and root are at hand; elsewhere says what is missing, and the
# tests that need it are skipped with that reason.
set -euo pipefail

PATH="$PATH:/usr/sbin" # where daemons are
missing=()
for program in chromium slurmctld slurmd sbatch:slurm-client munged:munge pgrep:procps; do
    command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
done
if ((${#missing[@]} == 0)); then
    exit 0
fi

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "system.sh: missing, and not installed without root and apt: ${missing[*]}"
    exit 0
fi

echo "system.sh: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq </dev/null
apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
