"""Scripts and manifests that start the runs of a sweep on TPU pods."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.sweep.launch.tpu import Commands, TpuOptions, name_of
from vvlm_jax.sweep.launch.tpu_gcloud import driver_script
from vvlm_jax.sweep.launch.tpu_kubernetes import jobset, kueue


def files(waves: Sequence[Mapping[str, Commands]], options: TpuOptions) -> dict[str, str]:
    """Return {file name: text} for waves of runs, {run: commands}; each wave needs the one before.

    With a project and a zone: a script for each run, and `launch.sh`, which runs `quota_slices` of
    them at once. With an image: `kueue.json`, and `jobsets-WAVE.json` for `kubectl apply`.

    Raises ConfigError when `options` have neither.
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
    """Write `files` into a folder and return their paths. Raises ConfigError before writing."""
    texts, folder = files(waves, options), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]
