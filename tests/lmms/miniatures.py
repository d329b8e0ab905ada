"""Miniatures of four benchmarks in the layout that LMMs-Eval gives them, with the same questions
for the native runner.

LMMs-Eval's own task files are included; only where the questions lie is changed, as the published
sets cannot be fetched here.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from vvlm_jax.data.video import write_video

LETTER = "Answer with the option's letter from the given choices directly."
VIDEOMME = (
    "Select the best answer to the following multiple-choice question based on the video and the "
    "subtitles. Respond with only the letter (A, B, C, or D) of the correct option."
)
TASKS = {
    "videomme": ("videomme/videomme.yaml", "test"),
    "mvbench_action_count": ("mvbench/mvbench_action_count.yaml", "train"),
    "mvbench_episodic_reasoning": ("mvbench/mvbench_episodic_reasoning.yaml", "train"),
    "nextqa_mc_test": ("nextqa/nextqa_mc_test.yaml", "test"),
    "activitynetqa": ("activitynetqa/activitynetqa_generation.yaml", "test"),
}
"""LMMs-Eval's file of each task, and the split it asks for."""


def write(folder: Path, count: int = 4) -> dict[str, list[dict]]:
    """Writes videos under folder/hf; the native questions of each task, `video` relative to it."""
    hf = folder / "hf"
    places = {
        "videomme": "videomme/data/v{}.mp4",
        "mvbench_action_count": "mvbench_video/perception/videos/v{}.mp4",
        "mvbench_episodic_reasoning": "mvbench_video/tvqa/video_fps3_hq_segment/v{}",
        "nextqa_mc_test": "nextqa/NExTVideo/{}.mp4",
        "activitynetqa": "activitynetqa/all_test/v_{}.mp4",
    }
    questions = {}
    for number, (task, place) in enumerate(places.items()):
        questions[task] = []
        for i in range(count):
            video = place.format(i // 2)  # two questions a video
            _write_video(hf / video, 10 * number + i // 2)
            options = [f"thing {i}{letter}" for letter in "abcd"]
            questions[task].append(
                dict(
                    id=f"{task}-{i}", task=task, video=video, answer="A",
                    question=f"what is number {i}", options=options,
                    prompt=_prompt(task, f"what is number {i}", options),
                )
            )  # fmt: skip
    for q in questions["nextqa_mc_test"]:
        q["options"] = [*q["options"], "none"]
        q["prompt"] += "\nE. none"
    for q in questions["activitynetqa"]:
        del q["options"]
    return questions


def _prompt(task: str, question: str, options: list[str]) -> str:
    """What LMMs-Eval asks, from its documentation: the runner has to ask the same."""
    lines = [f"{a}. {o}" for a, o in zip("ABCD", options, strict=True)]
    if task == "videomme":
        return "\n".join([VIDEOMME, question, *lines]) + f"\n\n{LETTER}"
    if task.startswith("mvbench"):
        lines = [f"({a}) {o}" for a, o in zip("ABCD", options, strict=True)]
        lines = "\n".join([f"Question:{question}", "Option:", *lines])
        return f"{lines}\nOnly give the best option.\n"
    if task == "nextqa_mc_test":
        return "\n".join([question, *lines])
    return f"{question.capitalize()}? Answer the question using a single word or phrase."


def write_tasks(folder: Path, questions: dict[str, list[dict]], installed: Path) -> Path:
    """Writes a task file `mini_NAME` for each task, and its questions with their answers, in
    LMMs-Eval's columns; the folder for its `--include_path`.
    """
    tasks = folder / "tasks"
    shutil.rmtree(tasks, ignore_errors=True)
    tasks.mkdir()
    for task, (file, split) in TASKS.items():
        rows = [_columns(task, i, q) for i, q in enumerate(questions[task])]
        data = tasks / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tasks / f"mini_{task}.yaml").write_text(
            f"include: {installed / 'tasks' / file}\n"
            f"task: mini_{task}\n"
            "dataset_path: json\n"
            "dataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    {split}: {data}\n"
        )
    return tasks


def _columns(task: str, i: int, q: dict) -> dict:
    stem = Path(q["video"]).stem
    if task == "videomme":
        return dict(
            videoID=stem, question_id=q["id"], question=q["question"], answer=q["answer"],
            options=[f"{a}. {o}" for a, o in zip("ABCD", q["options"], strict=True)],
            duration="short", domain="Knowledge", sub_category="Astronomy",
            task_type="Counting Problem",
        )  # fmt: skip
    if task.startswith("mvbench"):
        answer = q["options"]["ABCD".index(q["answer"])]
        name = Path(q["video"]).name
        return dict(video=name, question=q["question"], candidates=q["options"], answer=answer)
    if task == "nextqa_mc_test":
        options = {f"a{n}": option for n, option in enumerate(q["options"])}
        return dict(
            video=stem, question=q["question"], answer="ABCDE".index(q["answer"]), **options
        )
    return dict(
        video_name=stem.removeprefix("v_"), question=q["question"], answer=q["answer"],
        question_id=q["id"], type=str(i),
    )  # fmt: skip


def _write_video(path: Path, seed: int) -> None:
    """A clip, or for a path without suffix a folder of frames."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.random.default_rng(seed).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    frames = frames.repeat(16, axis=1).repeat(16, axis=2)
    if path.suffix:
        write_video(path, frames, 1.0)
        return
    path.mkdir()
    for i, pixels in enumerate(frames):
        Image.fromarray(pixels).save(path / f"{i:05}.jpg")
