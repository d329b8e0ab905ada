"""Make annotations for the whole of Table 3's mixture, in the layouts in which it is published.

    python -m tests.testdata.make_full_sources DIR    # 2,192,374 rows, 1.4 GB; a few minutes

Folders, files and the shape of rows are those of `make_sources`; what is said are words drawn with
a seed, in lengths like the real ones'. Every file's rows are about the same few clips, which are
one file on the disk under many names: what is measured with this is rows, not opening videos.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from configs import mixtures
from tests.testdata.make_sources import LLAVA_VIDEO, SIZE, VIDEOGPT
from vvlm_jax.data import synthetic
from vvlm_jax.data.video import write_video

CLIPS = 60
"""Of each annotation file."""
TEXT = (
    "the video shows a person walking in front of house while holding red ball and then looks at "
    "camera before turning away slowly describe what happens next in detail please"
)


def files() -> Iterator[tuple[str, str, str]]:
    """Yield (annotation file, the folder of its media, what their paths in it begin with)."""
    for folder, names, place in LLAVA_VIDEO:
        below = f"LLaVA-Video-178K/{folder}"
        yield from ((f"{below}/{name}", below, f"{place}/{folder}_") for name in names)
    below = "LLaVA-Video-178K/llava_hound"
    yield f"{below}/sharegptvideo_qa_255k_processed.json", below, "shareVideoGPTV/v_"
    below = "VideoGPT-plus_Training_Dataset"
    for name, place in VIDEOGPT.items():
        yield f"{below}/annotations/{name}.json", f"{below}/instruction_tuning/{place}", name[:6]


def make_full_sources(root: Path, share: float = 1.0) -> None:
    """Write every subset of `configs.mixtures.paper` with its published number of rows, or a share
    of it.
    """
    rng = np.random.default_rng(0)
    scene = synthetic.render(synthetic.make_scene(rng, num_frames=4), SIZE)
    root.mkdir(parents=True, exist_ok=True)
    write_video(root / "clip.mp4", scene, fps=2)
    Image.fromarray(scene[0]).save(root / "frame.jpeg")
    said = [_words(rng, int(n)) for n in np.clip(rng.lognormal(3.4, 0.9, 8000), 4, 400)]
    for subset in mixtures.paper().subsets:
        patterns = [source.annotations for source in subset.sources]
        mine = [f for f in files() if any(PurePosixPath(f[0]).match(p) for p in patterns)]
        parts = np.array_split(np.arange(round(share * subset.examples)), len(mine))
        for (file, media, start), part in zip(mine, parts, strict=True):
            names = [f"{start}{i}" for i in range(CLIPS)]
            if "shareVideoGPTV" in start:
                for name in names:
                    _link(root / "frame.jpeg", root / media / name / "c01_0000.jpeg")
            else:
                names = [f"{name}.mp4" for name in names]
                for name in names:
                    _link(root / "clip.mp4", root / media / name)
            _write(root / file, names, [said[i] for i in rng.integers(0, 8000, 2 * len(part))])


def _words(rng, count: int) -> str:
    words = TEXT.split()
    return " ".join(words[i] for i in rng.integers(0, len(words), count))


def _link(file: Path, name: Path) -> None:
    name.parent.mkdir(parents=True, exist_ok=True)
    if not name.exists():
        os.link(file, name)


def _write(path: Path, names: list[str], said: list[str]) -> None:
    """Write a list of rows with a question and an answer each, from `said` in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = "<video>" if "annotations" in path.parts else "<image>"
    with path.open("w", encoding="utf-8") as file:
        for i in range(len(said) // 2):
            turns = [
                {"from": "human", "value": f"{place}\n{said[2 * i]}"},
                {"from": "gpt", "value": said[2 * i + 1]},
            ]
            row = {"id": f"{path.stem}_{i}", "conversations": turns, "video": names[i % CLIPS]}
            file.write(f"{',' if i else '['}\n{json.dumps(row)}")
        file.write("\n]\n" if said else "[]\n")


if __name__ == "__main__":
    make_full_sources(Path(sys.argv[1]))
