"""The native evaluation: a local question file in, scores and per-example predictions out.

A question is a JSON line: `id`, `task`, `video` (a file or a folder of frames), `question`,
`answer` (or `references`, several that are right), for multiple choice `options` (then `answer` is
a letter), and optionally `prompt`, the exact text to ask instead of the default, and `choices`, the
only replies allowed (all questions have them, or none).
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np

from vvlm_jax.config import ConfigError, DataConfig, ModelConfig
from vvlm_jax.data import chat
from vvlm_jax.data.datasets import is_unicode, read_jsonl
from vvlm_jax.data.media import FrameReader
from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.data.video import VideoError
from vvlm_jax.eval import answers
from vvlm_jax.eval.scores import Score, measure
from vvlm_jax.generate.generate import generate, programs
from vvlm_jax.generate.likelihood import loglikelihoods
from vvlm_jax.models.vlm import VLM
from vvlm_jax.progress import JsonlWriter, Progress
from vvlm_jax.storage import files
from vvlm_jax.types import Prompts

FIELDS = ("id", "task", "video", "question", "answer")


def read_questions(path: str | Path) -> list[dict]:
    """Rows of a question file. ValueError names file, question and the missing or broken field."""
    path = files.path_of(path)
    if not files.exists(path) or path.is_dir():
        raise ValueError(f"{path}: no such question file")
    rows, seen = read_jsonl(path), set()
    if not rows:
        raise ValueError(f"{path}: holds no question")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: question {number} is no JSON object")
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
    """The first thing about a question that cannot be asked or scored; empty when all is well."""
    needed = [f for f in FIELDS if f != "answer" or "references" not in row]
    if missing := [f for f in needed if row.get(f) is None or not str(row[f]).strip()]:
        return f"lacks {', '.join(missing)}"
    if "references" in row and ("answer" in row or "options" in row):
        return "references: are for open questions, in place of answer"
    for name in (*FIELDS, "prompt"):
        if not isinstance(row.get(name, ""), str):
            return f"{name} = {row[name]!r}: must be a text"
        if not is_unicode(row.get(name, "")):
            return f"{name}: holds half a character"
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
        return f"answer {row['answer']!r} is no letter of its options"
    if any(place in prompt_text(row) for place in chat.PLACEHOLDERS):
        return "holds a placeholder; the video is put before the question by itself"
    return ""


def prompt_text(row: dict) -> str:
    """What the model is asked: the row's own `prompt`, or the question, its options and the letter
    request.
    """
    if "prompt" in row:
        return row["prompt"]
    if not row.get("options"):
        return row["question"]
    return f"{row['question']}\n{answers.format_options(row['options'])}\n{answers.LETTER_PROMPT}"


def evaluate(
    model: VLM,
    params,
    tokenizer: Tokenizer,
    questions: list[dict],
    predictions_file: str | Path,
    model_config: ModelConfig,
    data_config: DataConfig,
    *,
    reader: FrameReader | None = None,
    identity: str = "",
    max_new_tokens: int = 16,
    likelihood: bool = False,
    videos_per_batch: int = 4,
    title: str = "evaluate",
) -> list[Score]:
    """Answers every question greedily and scores it; returns its `scores.measure`.

    Frames and tokens a frame are the model's own. A video is encoded once for all its questions.
    Predictions are appended as JSON lines {id, task, reply, answer, correct} (or {id, task,
    error}). What is answered already is not asked again, so an interrupted evaluation continues;
    what could not be read is tried again. `asked.json` beside them says what was asked of which
    model (`identity`). With `likelihood` multiple choice has {likeliest, logprobs}, too: the letter
    that the model finds the likeliest beginning of a reply, and all letters' log-probabilities.

    Raises VideoError when more than `data_config.max_unreadable` of the videos cannot be read,
    ConfigError when the predictions are of another model, other questions or other options.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens = {max_new_tokens}: must be at least 1")
    predictions_file = Path(predictions_file)
    claim(
        predictions_file,
        {
            "model": identity,
            "questions": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
            "media_root": str(data_config.media_root),
            "max_new_tokens": max_new_tokens,
            **({"likelihood": True} if likelihood else {}),
        },
    )
    done = _read_predictions(predictions_file)
    reader = reader or FrameReader(
        files.path_of(data_config.media_root),
        model_config.num_frames,
        model.vision_config.image_size,
        data_config.frame_sampling,
        data_config.frame_cache_mb,
    )
    groups = _by_video([q for q in questions if q["id"] not in done])
    writer = JsonlWriter(predictions_file)
    progress = Progress(title, len(questions), "questions")
    answer = _Answerer(
        model, params, tokenizer, model_config, data_config.system, max_new_tokens, likelihood
    )
    allowed = int(data_config.max_unreadable * len({q["video"] for q in questions}))
    asked = max((len(rows) for rows in groups.values()), default=0)
    try:
        for start in range(0, len(groups), videos_per_batch):
            names = list(groups)[start : start + videos_per_batch]
            frames, errors = _read_all(reader, names)
            rows = [q for name in names if name in frames for q in groups[name]]
            replies = (
                answer(frames, rows, videos_per_batch, videos_per_batch * asked) if rows else []
            )
            for q, reply in zip(rows, replies, strict=True):
                done[q["id"]] = _prediction(q, **reply)
                writer.write(**done[q["id"]])
            for name, error in errors.items():
                for q in groups[name]:
                    done[q["id"]] = dict(id=q["id"], task=q["task"], error=error)
                    writer.write(**done[q["id"]])
            broken = {p["error"] for p in done.values() if "error" in p}
            if len(broken) > allowed:
                raise VideoError(
                    f"{len(broken)} unreadable videos, more than the {allowed} that "
                    f"max_unreadable = {data_config.max_unreadable:g} allows: {min(broken)}"
                )
            progress.update(len(done))
    finally:
        progress.close()
        writer.close()
    return measure(questions, done)


def _prediction(q: dict, reply: str, **more) -> dict:
    options = len(q.get("options") or ())
    correct = any(answers.is_correct(reply, answer, options) for answer in answers.right_answers(q))
    answer = q.get("references") or q["answer"]
    return dict(id=q["id"], task=q["task"], reply=reply, answer=answer, correct=correct, **more)


def claim(file: Path, asked: dict) -> None:
    """Writes what is asked beside the predictions, or checks that it is what was asked before.

    Raises ConfigError when it is not, and there are predictions.
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
    partial = note.with_name("asked.json.partial")
    partial.write_text(json.dumps(asked, indent=1) + "\n")
    partial.replace(note)


def read_predictions(predictions_file: str | Path) -> dict[str, dict]:
    """{id: the newest line about it}, errors included."""
    lines = Path(predictions_file).read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def unreadable_files(predictions_file: str | Path) -> list[str]:
    """Messages of the videos that could not be read, each naming its file, sorted."""
    lines = Path(predictions_file).read_text().splitlines()
    return sorted({p["error"] for p in map(json.loads, lines) if "error" in p})


class _Answerer:
    """Encodes a few videos and answers their questions, at one static shape."""

    def __init__(self, model, params, tokenizer, model_config, system, max_new_tokens, likelihood):
        self.model, self.params, self.tokenizer = model, params, tokenizer
        self.block = chat.visual_block(
            model_config.num_frames,
            model_config.tokens_per_frame,
            model_config.newline,
            tokenizer.special,
        )
        self.system, self.max_new_tokens, self.likelihood = system, max_new_tokens, likelihood
        self.encode = programs(model, tokenizer.stop_ids).encode

    def __call__(
        self, frames: dict, rows: list[dict], num_videos: int, num_prompts: int
    ) -> list[dict]:
        """For each row {reply}, and where it is asked for {likeliest, logprobs}."""
        names, asked = list(frames), len(rows)
        rows = rows + rows[:1] * (num_prompts - asked)  # padding repeats the first prompt
        tokens_BL, lengths_B = _padded([self._ids(row) for row in rows], len(self.block))
        if self.model.resampler == "quecc":  # a video has other tokens for every question
            video_B = np.arange(num_prompts, dtype=np.int32)
            frames_BTHWC = np.stack([frames[row["video"]] for row in rows])
            query = _padded([chat.question(_turns(row), self.tokenizer) for row in rows])
        else:
            video_B = np.array([names.index(row["video"]) for row in rows], np.int32)
            shown = [names[min(i, len(names) - 1)] for i in range(num_videos)]
            frames_BTHWC, query = np.stack([frames[name] for name in shown]), ()
        visual_BVD = self.encode(self.params, frames_BTHWC, *query)
        prompts = Prompts(tokens_BL, lengths_B, video_B)
        choices = [row["choices"] for row in rows] if rows[0].get("choices") else None
        replies = generate(
            self.model,
            self.params,
            self.tokenizer,
            prompts,
            visual_BVD,
            self.max_new_tokens,
            choices,
        )
        found = [{"reply": reply} for reply in replies[:asked]]
        if self.likelihood and any(row.get("options") for row in rows[:asked]):
            self._add_likelihoods(found, rows, prompts, visual_BVD)
        return found

    def _add_likelihoods(self, found, rows, prompts, visual_BVD):
        letters = [answers.LETTERS[: len(row.get("options") or "A")] for row in rows]
        likely = loglikelihoods(
            self.model, self.params, self.tokenizer, prompts, visual_BVD, letters
        )
        for row, mine, values, reply in zip(rows, letters, likely, found, strict=False):
            if row.get("options"):
                logprobs = {a: round(v.logprob, 6) for a, v in zip(mine, values, strict=True)}
                reply.update(likeliest=max(logprobs, key=logprobs.get), logprobs=logprobs)

    def _ids(self, row):
        return chat.encode_prompt(_turns(row), self.tokenizer, [self.block], self.system)


def _turns(row: dict) -> list[dict]:
    return [{"from": "human", "value": "<video>\n" + prompt_text(row)}]


def _padded(ids: list[list[int]], visual: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [B, L], lengths); text beyond `visual` ids is rounded up: few shapes, few compiles."""
    length = visual + 16 * math.ceil((max(map(len, ids)) - visual) / 16)
    rows = [np.pad(np.asarray(i, np.int32), (0, length - len(i))) for i in ids]
    return np.stack(rows), np.array([len(i) for i in ids], np.int32)


def _read_all(reader, names):
    frames, errors = {}, {}
    for name in names:
        try:
            frames[name] = reader.video(name)
        except VideoError as e:
            errors[name] = str(e)
    return frames, errors


def _by_video(questions):
    groups = {}
    for q in questions:
        groups.setdefault(q["video"], []).append(q)
    return groups


def _read_predictions(path: Path) -> dict[str, dict]:
    """Answers of an interrupted evaluation; a half-written last line and errors are dropped."""
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
