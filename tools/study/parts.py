"""The pretrained parts of the study: an encoder and language models that ship as small files.

    vvlm study --make-parts configs/parts      # makes them, with the study's own stages

`parts.json` beside them says what made them: a digest of the stages, of the sizes of the models and
of a sample of the data. A study whose digest differs makes its own. The study's seed is not in it:
parts are the same for all seeds, as pretrained weights are, unless `--from-scratch` makes them.
"""

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.sweep.store.store import Job

from ..common import shipped

study_lib = shipped("study")
StudyConfig = study_lib.StudyConfig

MANIFEST = "parts.json"
SHIPPED = Path(study_lib.__file__).parent / "parts"
SAMPLE = 3
"""Pictures and stories that stand for the data in a digest."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """A folder of parts, and its manifest."""

    folder: Path
    manifest: dict

    @property
    def digest(self) -> str:
        """Return a hash of the files."""
        files = json.dumps(self.manifest["files"], sort_keys=True)
        return hashlib.sha256(files.encode()).hexdigest()

    def job(self, run: str) -> Job:
        """Return the job that puts a run's part in the place of its training."""
        file = self.manifest["files"][run]
        argument = {"file": str(self.folder / file["name"]), "sha256": file["sha256"]}
        return Job(f"{run}/train", "part", argument, cost=1e6)


def data_kinds(study: StudyConfig) -> list[str]:
    """Return the kinds of data that the parts are trained on."""
    return sorted(
        {Path(stage.data.annotations).stem for stage in study_lib.part_stages(study, "").values()}
    )


def digest(study: StudyConfig) -> str:
    """Return a digest of all that the parts of a study depend on, apart from its seed."""
    from . import jobs

    study = dataclasses.replace(study, seed=0)
    kinds, stages = data_kinds(study), study_lib.part_stages(study, "")
    data = {job.argument["kind"]: job.argument for job in jobs.data_jobs(study)}
    sizes = {llm: dataclasses.asdict(LLAMA[llm]) for llm in study.llms}
    made_by = {
        "stages": {run: dataclasses.asdict(stage) for run, stage in stages.items()},
        "sizes": {**sizes, study.vision: dataclasses.asdict(VISION[study.vision])},
        "data": {kind: data[kind] for kind in kinds},
        "sample": {kind: _sample(data[kind]) for kind in kinds},
    }
    return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()


def _sample(options: dict) -> list[str]:
    """Return hashes of a few generated examples: their texts, and the pixels of their pictures."""
    from PIL import Image

    from vvlm_jax.sweep import controls

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        controls.write_kind(folder, **{**options, "count": SAMPLE})
        found = []
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            content = file.read_bytes()
            if file.suffix == ".png":
                with Image.open(file) as image:
                    content = np.asarray(image).tobytes()
            found.append(hashlib.sha256(content).hexdigest())
    return found


def find(study: StudyConfig, folder: Path | None) -> Parts | None:
    """Return the parts that a study starts from; None if it must make its own.

    Args:
      folder: a folder of `--make-parts`; None for the shipped ones, which may be of another study.

    Raises ConfigError for a folder that a user named, if its parts are of another study.
    """
    file = (folder or SHIPPED) / MANIFEST
    if not file.is_file():
        if folder is None:
            return None
        raise ConfigError(f"--parts {folder}: no {MANIFEST}; vvlm study --make-parts makes one")
    manifest = json.loads(file.read_text())
    if manifest["made_by"] == digest(study):
        return Parts(file.parent, manifest)
    if folder is None:
        return None
    raise ConfigError(
        f"--parts {folder}: were made with other options or data; make them again with "
        "--make-parts, or leave --parts out"
    )


def pack(study: StudyConfig, work: Path, out: Path) -> Path:
    """Write the parts that a study has trained, and their manifest; return the manifest's path."""
    from flax.traverse_util import flatten_dict

    from vvlm_jax.train import model_dir

    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for run in study_lib.part_stages(study, ""):
        params = model_dir.load_params(work / "runs" / run)
        parts = study_lib.parts_of(run)
        arrays = flatten_dict({part: params[part] for part in parts}, sep="/")
        file = out / f"{run}.npz"
        with atomic.replacing(file) as partial, partial.open("wb") as f:
            np.savez(f, **{path: np.asarray(x) for path, x in sorted(arrays.items())})
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        files[run] = {"name": file.name, "parts": list(parts), "sha256": sha256}
    manifest = {"made_by": digest(study), "synthetic": True, "seed": study.seed, "files": files}
    atomic.write_text(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return out / MANIFEST
