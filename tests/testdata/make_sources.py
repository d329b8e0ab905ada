"""Make miniatures of the public sets, in exactly the layouts in which they are published.

    python -m tests.testdata.make_sources /tmp/sources      # then: vvlm prepare …

Names of repositories, folders and files, the shape of rows and where placeholders stand are those
of the sets; what is said and seen in them is from `vvlm_jax.data.synthetic`.
"""

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from vvlm_jax.data import synthetic
from vvlm_jax.data.video import write_video

ROWS = 3
"""Of each annotation file."""
SIZE = 48

LENGTHS = ("0_30_s", "30_60_s", "1_2_m", "2_3_m")
# LLaVA-Video-178K: (folder, annotation files, where its videos lie in the archive).
LLAVA_VIDEO = [
    *(
        (
            f"{length}_{origin}_v0_1",
            [
                f"{length}_{origin}_v0_1_cap_processed.json",
                f"{length}_{origin}_oe_v0_1_qa_processed.json",
                f"{length}_{origin}_mc_v0_1_qa_processed.json",
            ],
            {"academic": "academic_source/Charades", "youtube": "liwei_youtube_videos/videos"}[
                origin
            ],
        )
        for length in LENGTHS
        for origin in ("academic", "youtube")
    ),
    *(
        (
            f"{length}_activitynetqa",
            [f"{length}_activitynetqa_oe_qa_processed.json"],
            "ActivityNet-QA",
        )
        for length in LENGTHS
    ),
    *(
        (
            f"{length}_nextqa",
            [f"{length}_nextqa_oe_qa_processed.json", f"{length}_nextqa_mc_qa_processed.json"],
            "NextQA/NExTVideo/1164",
        )
        for length in LENGTHS
    ),
    *(
        (
            f"{length}_perceptiontest",
            [f"{length}_perceptiontest_mc_qa_processed.json"],
            "perception_test/videos",
        )
        for length in LENGTHS[:2]
    ),
]
# VideoGPT-plus_Training_Dataset: annotations/FILE.json with videos in instruction_tuning/FOLDER.
VIDEOGPT = {
    "conversation_videochatgpt": "Activity_Videos",
    "vcg-plus_112K": "Activity_Videos",
    "vcg_human_annotated": "Activity_Videos",
    "caption_videochat": "webvid",
    "conversation_videochat1": "videochat_it",
    "classification_k710": "k710",
    "classification_ssv2": "ssv2",
    "reasoning_clevrer_qa": "clevrer",
    "reasoning_clevrer_mc": "clevrer",
    "vqa_webvid_qa": "webvid",
    "reasoning_next_qa": "NExTQA",  # published, and not in the paper's mixture
}


def make_sources(root: Path, *, archives: bool = False) -> None:
    """Write all of them below `root`; with `archives`, media that are published in archives stay
    in these.
    """
    rng = np.random.default_rng(0)
    _llava_pretrain(root / "LLaVA-Pretrain", rng, archives)
    for folder, files, place in LLAVA_VIDEO:
        _llava_video(root / "LLaVA-Video-178K" / folder, files, place, rng, archives)
    _hound(root / "LLaVA-Video-178K" / "llava_hound", rng)
    _videogpt(root / "VideoGPT-plus_Training_Dataset", rng)


def _scene(rng):
    return synthetic.make_scene(rng, num_frames=int(rng.integers(3, 7)))


def _turns(scene, rng, placeholder: str, rounds: int = 1) -> list[dict]:
    turns = []
    for i in range(rounds):
        asked = synthetic.question(scene, ("flash", "cell")[i % 2], rng)
        text = asked["prompt"] if i else f"{placeholder}\n{asked['prompt']}"
        turns.append({"from": "human", "value": text})
        turns.append({"from": "gpt", "value": asked["answer"]})
    return turns


def _write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")


def _video(path: Path, scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, synthetic.render(scene, SIZE), fps=2)


def _llava_pretrain(folder: Path, rng, archives: bool) -> None:
    rows, pictures = [], {}
    for i in range(ROWS):
        scene = _scene(rng)
        name = f"{i:05d}/{i:05d}0010.jpg"
        kept = io.BytesIO()
        Image.fromarray(synthetic.render(scene, SIZE)[0]).save(kept, format="jpeg")
        pictures[name] = kept.getvalue()
        human = ("describe\n<image>", "<image>\ndescribe")[i % 2]
        gpt = synthetic.NAMES[scene.board[0]]
        turns = [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
        rows.append({"id": f"{i:05d}0010", "image": name, "conversations": turns})
    _write(folder / "blip_laion_cc_sbu_558k.json", rows)
    if archives:
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for name, data in pictures.items():
                archive.writestr(name, data)
        return
    for name, data in pictures.items():
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(data)


def _llava_video(folder: Path, files: list[str], place: str, rng, archives: bool) -> None:
    scenes = {f"{place}/{folder.name}_{i}.mp4": _scene(rng) for i in range(ROWS)}
    for name, scene in scenes.items():
        _video(folder / name, scene)
    for file in files:
        source = file.removesuffix("_processed.json")
        rows = [
            {
                "id": Path(name).stem,
                "conversations": _turns(scene, rng, "<image>", 1 + i % 2),
                "data_source": source,
                "video": name,
            }
            for i, (name, scene) in enumerate(scenes.items())
        ]
        _write(folder / file, rows)
    if archives:
        with tarfile.open(folder / f"{folder.name}_videos_1.tar.gz", "w:gz") as archive:
            for name in scenes:
                archive.add(folder / name, name)
                (folder / name).unlink()


def _hound(folder: Path, rng) -> None:
    rows = []
    for i in range(ROWS):
        scene, name = _scene(rng), f"shareVideoGPTV/v_{i:04d}"
        (folder / name).mkdir(parents=True)
        for t, pixels in enumerate(synthetic.render(scene, SIZE)):
            Image.fromarray(pixels).save(folder / name / f"c01_{t:04d}.jpeg")
        rows.append(
            {
                "id": f"v_{i:04d}_0",
                "conversations": _turns(scene, rng, "<image>"),
                "data_source": "sharegptvideo",
                "video": name,
            }
        )
    _write(folder / "sharegptvideo_qa_255k_processed.json", rows)


def _videogpt(folder: Path, rng) -> None:
    for file, place in VIDEOGPT.items():
        rows = []
        for i in range(ROWS):
            scene, name = _scene(rng), f"{file[:6]}_{file[-3:]}_{i}.mp4"
            _video(folder / "instruction_tuning" / place / name, scene)
            rows.append(
                {
                    "id": f"{file}_{i}",
                    "video": name,
                    "conversations": _turns(scene, rng, "<video>", 1 + i % 2),
                }
            )
        _write(folder / "annotations" / f"{file}.json", rows)


if __name__ == "__main__":
    make_sources(Path(sys.argv[1]), archives="--archives" in sys.argv[2:])
