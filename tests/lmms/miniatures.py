"""Miniatures of the eight benchmarks in the layout that LMMs-Eval gives them; of four of them with
the same questions for the native runner.

LMMs-Eval's own task files are included; only where the questions lie is changed, as the published
sets cannot be fetched here.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from vvlm_jax.data.video import write_video
from vvlm_jax.eval import benchmarks

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
    """Write videos under folder/hf; return the questions of each task, `video` relative to it."""
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
    """Return what LMMs-Eval asks, from its documentation: the runner has to ask the same."""
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
    """Write a task file `mini_NAME` for each task, and its questions with their answers, in
    LMMs-Eval's columns; and `mini_likely`, which asks for likelihoods of letters. The folder for
    its `--include_path`.
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
    (tasks / "mini_likely.yaml").write_text(
        f"include: {tasks / 'mini_mvbench_action_count.yaml'}\n"
        "task: mini_likely\noutput_type: multiple_choice\ndoc_to_choice: [A, B, C, D]\n"
        "doc_to_target: letter\nprocess_results: null\ngeneration_kwargs: null\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
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
        row = dict(video=name, question=q["question"], candidates=q["options"], answer=answer)
        return row | dict(letter=q["answer"])
    if task == "nextqa_mc_test":
        options = {f"a{n}": option for n, option in enumerate(q["options"])}
        return dict(
            video=stem, question=q["question"], answer="ABCDE".index(q["answer"]), **options
        )
    return dict(
        video_name=stem.removeprefix("v_"), question=q["question"], answer=q["answer"],
        question_id=q["id"], type=str(i),
    )  # fmt: skip


def write_paper(folder: Path, installed: Path, count: int = 4) -> Path:
    """Write `count` questions of each of the eight benchmarks (one of each of MVBench's subtasks),
    videos under folder/hf, and their task files by their own names; the folder of these.
    """
    hf, tasks = folder / "hf", folder / "tasks"
    tasks.mkdir(parents=True)
    named = _task_files(installed / "tasks")
    for part in (part for task in benchmarks.TASKS for part in task.tasks):
        subtask = part.removeprefix("mvbench_")
        rows, split = [], yaml.safe_load(_plain(named[part]))["test_split"]
        for i in range(count if subtask == part else 1):
            video, row = _paper_row(part, subtask, i)
            _write_video(hf / video, i // 2)
            rows.append(json.dumps(row) + "\n")
        (tasks / f"{part}.jsonl").write_text("".join(rows))
        (tasks / f"{part}.yaml").write_text(
            f"include: {named[part]}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n    {split}: {tasks / part}.jsonl\n"
            f"task: {part}\ngeneration_kwargs:\n  max_new_tokens: 2\n"
        )
    for task in benchmarks.TASKS:
        if len(task.tasks) > 1:
            parts = "".join(f"  - {part}\n" for part in task.tasks)
            (tasks / f"{task.asked}.yaml").write_text(f"group: {task.asked}\ntask:\n{parts}")
    return tasks


def _task_files(folder: Path) -> dict[str, Path]:
    """Return LMMs-Eval's own file of each task that the paper has."""
    rooms = (
        "video_detail_description", "activitynetqa", "videochatgpt", "longvideobench",
        "perceptiontest/val", "mvbench", "videomme", "nextqa",
    )  # fmt: skip
    files = [file for room in rooms for file in sorted((folder / room).glob("*.yaml"))]
    return {str(yaml.safe_load(_plain(file)).get("task")): file for file in files}


def _plain(file: Path) -> str:
    return "\n".join(line for line in file.read_text().splitlines() if "!function" not in line)


MVBENCH_VIDEOS = {
    "star/Charades_segment": ("object_interaction", "action_sequence", "action_prediction"),
    "sta/sta_video_segment": ("action_localization",),
    "clevrer/video_validation": (
        "moving_count", "moving_direction", "moving_attribute", "counterfactual_inference",
        "object_existence",
    ),
    "nturgbd_convert": ("fine_grained_pose",),
    "perception/videos": ("character_order", "object_shuffle", "state_change", "action_count"),
    "vlnqa": ("egocentric_navigation",),
    "tvqa/video_fps3_hq_segment": ("episodic_reasoning",),
    "Moments_in_Time_Raw/videos": ("fine_grained_action",),
    "scene_qa/video": ("scene_transition",),
    "ssv2_video_mp4": ("action_antonym",),
    "FunQA_test/test": ("unexpected_action",),
}  # fmt: skip


def _paper_row(part: str, subtask: str, i: int) -> tuple[str, dict]:
    """Return (video under HF_HOME, columns) of a part's question i; two questions a video."""
    stem, question = f"v{i // 2}", f"what is number {i}"
    options, answer = [f"thing {i}{letter}" for letter in "abcde"], "ABC"[i % 3]
    if subtask != part:
        name = stem if subtask == "episodic_reasoning" else f"{stem}.mp4"
        room = next(room for room, subtasks in MVBENCH_VIDEOS.items() if subtask in subtasks)
        right = options["ABC".index(answer)]
        row = dict(video=name, question=question, candidates=options[:4], answer=right)
        return f"mvbench_video/{room}/{name}", row
    if part == "activitynetqa":
        row = dict(video_name=stem, question=f"{part} {question}", answer=f"thing {i}")
        return f"activitynetqa/all_test/v_{stem}.mp4", row | dict(question_id=str(i), type="1")
    if part == "videochatgpt_consistency":
        asked = [f"videochatgpt {question}", "None"]
        first, second = asked if i % 2 == 0 else asked[::-1]
        row = dict(video_name=stem, question_1=first, question_2=second, answer=f"thing {i // 2}")
        return f"videochatgpt/Test_Videos/{stem}.mp4", row
    if part.startswith(("video_dc", "videochatgpt")):
        row = dict(video_name=stem, question=f"{part} {question}", answer=f"thing {i}")
        return f"videochatgpt/Test_Videos/{stem}.mp4", row
    if part == "longvideobench_val_v":
        row = {f"option{n}": text for n, text in enumerate([*options[:4], "N/A"])}
        row |= dict(id=str(i), video_path=f"{stem}.mp4", question=question)
        row |= dict(correct_choice="ABC".index(answer), duration_group=15, question_category="S2E")
        return f"datasets/longvideobench/videos/{stem}.mp4", row
    if part == "perceptiontest_val_mc":
        row = dict(video_name=stem, question=question, options=options[:3])
        return f"perceptiontest_val/videos/{stem}.mp4", row | dict(answer_id="ABC".index(answer))
    if part == "nextqa_mc_test":
        row = dict(video=stem, question=question, answer="ABC".index(answer))
        return f"nextqa/NExTVideo/{stem}.mp4", row | {f"a{n}": o for n, o in enumerate(options)}
    row = dict(
        videoID=stem, question_id=str(i), question=question, answer=answer, duration="short",
        domain="Knowledge", sub_category="Astronomy", task_type="Counting Problem",
        options=[f"{a}. {o}" for a, o in zip("ABCD", options, strict=False)],
    )  # fmt: skip
    return f"videomme/data/{stem}.mp4", row


def _write_video(path: Path, seed: int) -> None:
    """Write a clip, or for a path without suffix a folder of frames."""
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
