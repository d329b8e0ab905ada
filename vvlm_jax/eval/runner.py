"""Evaluation on a question file: writes a prediction for each question and returns scores.

A question is a JSON line: `id`, `task`, `video` (a file or a folder of frames), `question`,
`answer` (or `references`, several that are right), for multiple choice `options` (then `answer` is
a letter), and optionally `prompt`, the exact text to ask instead of the default, and `choices`, the
only replies allowed (all questions have them, or none).
"""

import contextlib
import hashlib
import json
import math
from pathlib import Path

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import require
from vvlm_jax.data import chat
from vvlm_jax.data.datasets import is_unicode, read_jsonl
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.video import VideoError
from vvlm_jax.eval import answers
from vvlm_jax.eval.scores import Score, measure
from vvlm_jax.generate.video_vlm import VideoVLM
from vvlm_jax.progress import JsonlWriter, Progress
from vvlm_jax.storage import files

FIELDS = ("id", "task", "video", "question", "answer")
PROMPTS_PER_BATCH = 16
"""Prompts answered at a time: enough to use a device's matrix units while a step reads every weight
once, and few enough for the cache of long videos."""


def read_questions(path: str | Path) -> list[dict]:
    """Return the rows of a question file.

    Raises ValueError naming the file, the question and the missing or invalid field.
    """
    path = files.path_of(path)
    if not files.exists(path) or path.is_dir():
        raise ValueError(f"{path}: no such question file")
    rows, seen = read_jsonl(path), set()
    if not rows:
        raise ValueError(f"{path}: has no questions")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: question {number} is not a JSON object")
        wrong = _what_is_wrong(row)
        if not wrong and row["id"] in seen:
            wrong = f"repeats id {row['id']!r}"
        if not wrong and ("choices" in row) != ("choices" in rows[0]):
            wrong = "either all questions have choices or none"
        if wrong:
            raise ValueError(f"{path}: question {number}: {wrong}")
        seen.add(row["id"])
    return rows


def _what_is_wrong(row: dict) -> str:
    """Return the first reason why a question cannot be asked or scored; empty if there is none."""
    needed = [f for f in FIELDS if f != "answer" or "references" not in row]
    if missing := [f for f in needed if row.get(f) is None or not str(row[f]).strip()]:
        return f"lacks {', '.join(missing)}"
    if "references" in row and ("answer" in row or "options" in row):
        return "references: are for open questions, in place of answer"
    for name in (*FIELDS, "prompt"):
        if not isinstance(row.get(name, ""), str):
            return f"{name} = {row[name]!r}: must be a text"
        if not is_unicode(row.get(name, "")):
            return f"{name}: contains an unpaired UTF-16 surrogate"
    lists = ("options", len(answers.LETTERS)), ("choices", math.inf), ("references", math.inf)
    for name, most in lists:
        texts = row.get(name, [])
        good = isinstance(texts, list) and all(isinstance(t, str) and t for t in texts)
        if not good or not all(map(is_unicode, texts)):
            return f"{name} = {texts!r}: must be a list of texts"
        if name in row and not 1 <= len(texts) <= most:
            many = f"from 1 to {most}" if most < math.inf else "1 or more"
            return f"{name}: must be {many} texts, got {len(texts)}"
    if "options" in row and row["answer"] not in list(answers.LETTERS[: len(row["options"])]):
        return f"answer {row['answer']!r} is not a letter of its options"
    if any(place in prompt_text(row) for place in chat.PLACEHOLDERS):
        return "contains <video> or <image>; remove it, the video is put before the question"
    return ""


def prompt_text(row: dict) -> str:
    """Return the prompt of a question: its own `prompt`, or the question followed by its options
    and the request for a letter.
    """
    if "prompt" in row:
        return row["prompt"]
    if not row.get("options"):
        return row["question"]
    return f"{row['question']}\n{answers.format_options(row['options'])}\n{answers.LETTER_PROMPT}"


def evaluate(
    vlm: VideoVLM,
    questions: list[dict],
    predictions_file: str | Path,
    *,
    media_root: str | Path,
    max_unreadable: float | None = None,
    reader: FrameReader | None = None,
    identity: str = "",
    max_new_tokens: int = 16,
    likelihood: bool = False,
    prompts_per_batch: int = PROMPTS_PER_BATCH,
    title: str = "evaluate",
) -> list[Score]:
    """Answer every question greedily and return `scores.measure` of the replies.

    Frames and tokens a frame are the model's own. A video is read and encoded once for all its
    questions, which may be spread over batches. Predictions are appended as JSON lines {id, task,
    reply, answer, correct}, or {id, task, error}. Questions answered before are not asked again, so
    that an interrupted evaluation continues; unreadable videos are tried again. `asked.json` beside
    the predictions records the model (`identity`), questions and options they belong to.

    Args:
      media_root: folder that the questions' videos are relative to.
      max_unreadable: share of the videos that may be unreadable; `data.max_unreadable` of the
        model's config by default.
      reader: reads the videos, in place of one made from the model's config.
      likelihood: add {likeliest, logprobs} to predictions of multiple choice: the letter that is
        the likeliest beginning of a reply, and the log-probability of each.
      prompts_per_batch: prompts answered at a time.

    Raises VideoError when more than `max_unreadable` of the videos cannot be read, ConfigError when
    the predictions belong to another model, other questions or other options, ValueError for a
    question that does not fit the model's context.
    """
    for name, value in dict(
        max_new_tokens=max_new_tokens, prompts_per_batch=prompts_per_batch
    ).items():
        require(value >= 1, name, value, "at least 1")
    for q in questions:
        vlm.check(f"question {q['id']!r}", prompt_text(q), max_new_tokens)
    data, predictions_file = vlm.config.data, Path(predictions_file)
    asked = {
        "model": identity,
        "questions": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
        "media_root": str(media_root),
        "max_new_tokens": max_new_tokens,
    }
    claim(predictions_file, {**asked, **({"likelihood": True} if likelihood else {})})
    done = _read_predictions(predictions_file)
    reader = reader or FrameReader(
        files.path_of(media_root),
        vlm.config.model.num_frames,
        vlm.model.vision_config.image_size,
        data.frame_sampling,
        data.frame_cache_mb,
    )
    share = data.max_unreadable if max_unreadable is None else max_unreadable
    allowed = int(share * len({q["video"] for q in questions}))
    videos = _read_videos([q for q in questions if q["id"] not in done], reader, allowed, share)
    progress = Progress(title, len(questions), "questions")
    with contextlib.closing(JsonlWriter(predictions_file)) as writer, contextlib.closing(progress):
        for batch in _batches(videos, prompts_per_batch):
            for prediction in _predictions(vlm, batch, max_new_tokens, likelihood):
                done[prediction["id"]] = prediction
                writer.write(**prediction)
            progress.update(len(done))
    return measure(questions, done)


def _predictions(vlm: VideoVLM, batch, max_new_tokens: int, likelihood: bool) -> list[dict]:
    """Return the predictions of (question, frames) pairs, and errors of unreadable videos."""
    rows = [(q, frames) for q, frames in batch if not isinstance(frames, str)]
    replies = _answer(vlm, rows, max_new_tokens, likelihood) if rows else []
    found = [_prediction(q, **reply) for (q, _), reply in zip(rows, replies, strict=True)]
    errors = ((q, error) for q, error in batch if isinstance(error, str))
    return found + [dict(id=q["id"], task=q["task"], error=error) for q, error in errors]


def _read_videos(questions: list[dict], reader: FrameReader, allowed: int, share: float):
    """Yield (question, frames of its video, or why they cannot be read), questions about one video
    one after another. Raises VideoError once more than `allowed` videos are unreadable.
    """
    broken: dict[str, str] = {}
    by_video: dict[str, list[dict]] = {}
    for q in questions:
        by_video.setdefault(q["video"], []).append(q)
    for name, rows in by_video.items():
        try:
            frames = reader.video(name)
        except VideoError as e:
            frames = broken[name] = str(e)
        if len(broken) > allowed:
            raise VideoError(
                f"{len(broken)} unreadable videos, more than the {allowed} that max_unreadable = "
                f"{share:g} allows: {min(broken.values())}"
            )
        for q in rows:
            yield q, frames


def _batches(pairs, size: int):
    """Yield lists of pairs in which `size` videos are readable, in the last one perhaps fewer."""
    batch, count = [], 0
    for q, frames in pairs:
        batch.append((q, frames))
        count += not isinstance(frames, str)
        if count == size:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch


def _answer(vlm: VideoVLM, pairs, max_new_tokens: int, likelihood: bool) -> list[dict]:
    """Return {reply} for each (question, frames), with {likeliest, logprobs} where wanted."""
    rows, frames = zip(*pairs, strict=True)
    prompts = [prompt_text(q) for q in rows]
    choices = [q["choices"] for q in rows] if rows[0].get("choices") else None
    options = dict(max_tokens=max_new_tokens, batch_size=len(rows), choices=choices)
    found: list[dict] = [{"reply": text} for text in vlm.generate(frames, prompts, **options)]
    picks = [i for i, q in enumerate(rows) if q.get("options")] if likelihood else []
    if not picks:
        return found
    letters = [answers.LETTERS[: len(rows[i]["options"])] for i in picks]
    likely = vlm.loglikelihoods(
        [frames[i] for i in picks], [prompts[i] for i in picks], letters, batch_size=len(picks)
    )
    for i, mine, values in zip(picks, letters, likely, strict=True):
        logprobs = {a: round(v.logprob, 6) for a, v in zip(mine, values, strict=True)}
        found[i].update(likeliest=max(logprobs, key=logprobs.get), logprobs=logprobs)
    return found


def _prediction(q: dict, reply: str, **more) -> dict:
    options = len(q.get("options") or ())
    correct = any(answers.is_correct(reply, answer, options) for answer in answers.right_answers(q))
    answer = q.get("references") or q["answer"]
    return dict(id=q["id"], task=q["task"], reply=reply, answer=answer, correct=correct, **more)


def claim(file: Path, asked: dict) -> None:
    """Record model, questions and options in asked.json beside the predictions.

    Raises ConfigError when there are predictions that belong to others.
    """
    note = file.with_name("asked.json")
    if file.is_file() and note.is_file():
        earlier = json.loads(note.read_text())
        for name, value in asked.items():
            if earlier.get(name) != value:
                raise ConfigError(
                    f"{file} holds replies with other {name} ({earlier.get(name)!r}, not "
                    f"{value!r}); choose another folder, or remove it"
                )
    note.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(note, json.dumps(asked, indent=1) + "\n")


def read_predictions(predictions_file: str | Path) -> dict[str, dict]:
    """Return {question id: its newest line}, errors included."""
    lines = Path(predictions_file).read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def earlier_predictions(predictions_file: Path) -> dict[str, dict]:
    """Return what an earlier run answered, by id: nothing if there is no file, or its last line is
    truncated.
    """
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_predictions(predictions_file)
    return {}


def unreadable_files(predictions_file: str | Path) -> list[str]:
    """Return the errors of unreadable videos, each naming its file, sorted."""
    lines = Path(predictions_file).read_text().splitlines()
    return sorted({p["error"] for p in map(json.loads, lines) if "error" in p})


def _read_predictions(path: Path) -> dict[str, dict]:
    """Return the answers of an interrupted evaluation by id. Removes a truncated last line, and
    errors, from the file.
    """
    if not path.is_file():
        return {}
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    rows = [json.loads(line) for line in whole.splitlines()]
    rows = [row for row in rows if "error" not in row]
    kept = "".join(json.dumps(row) + "\n" for row in rows)
    if kept != text:
        path.write_text(kept)
    return {row["id"]: row for row in rows}
