"""vvlm_jax as a model of LMMs-Eval 0.7.

By name, through the entry point in group `lmms_eval.models`:

    lmms-eval --model vvlm_jax --model_args pretrained=runs/finetune --tasks videomme

or as an instance: `simple_evaluate(model=VvlmJax(vlm), tasks=[…])`.

Frames and tokens a frame are those of training by default. As in LMMs-Eval's LLaVA adapters, the
video stands before the question, decoding is greedy unless a task samples, and replies have at
most 1024 tokens where the task sets no length. A task's `until` is ignored, because its default, an
empty line, would cut captions after their first paragraph. Space around replies is stripped.
"""

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from PIL import Image

from vvlm_jax.config import ConfigError
from vvlm_jax.data.video import VideoError
from vvlm_jax.progress import JsonlWriter, Progress


class VvlmJax(lmms):
    """Adapter of a `VideoVLM` to LMMs-Eval's interface for "simple" requests.

    Args:
      pretrained: folder of a finished stage or an imported model, or a loaded `VideoVLM`.
        `replies` cannot tell one loaded model from another.
      batch_size: prompts answered at a time.
      num_frames, tokens_per_frame: the model's own by default.
      max_new_tokens: longest reply of tasks that set none.
      dtype: compute dtype of a folder's model, in place of its own.
      replies: JSONL file to which replies are appended and from which an interrupted evaluation
        is continued; None keeps nothing.
      max_unreadable: share of the questions whose video may be unreadable; their reply is empty.
      device, max_batch_size: options of LMMs-Eval's command line; ignored.

    Raises ConfigError for options that cannot work, VideoError for too many unreadable videos.
    """

    is_simple = True
    name = "vvlm_jax"
    """Name under which task files may define prompts for a model; none does for this one."""

    def __init__(
        self,
        pretrained="",
        batch_size: int | str = 8,
        num_frames: int | None = None,
        tokens_per_frame: int | None = None,
        max_new_tokens: int = 1024,
        dtype: str | None = None,
        replies: str | Path | None = None,
        max_unreadable: float = 0.01,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown,
    ):
        super().__init__()
        if unknown:
            raise ConfigError(f"model_args: no such option: {', '.join(sorted(unknown))}")
        if not pretrained:
            raise ConfigError("model_args: pretrained=FOLDER is missing")
        # Imported here: LMMs-Eval imports this module whichever model it runs.
        from vvlm_jax.generate.video_vlm import VideoVLM

        self._model = "an instance"
        if not isinstance(pretrained, VideoVLM):
            folder, pretrained = Path(pretrained).resolve(), VideoVLM.load(pretrained, dtype=dtype)
            self._model = f"{folder} of {(folder / 'params').stat().st_mtime_ns}"
            self._model += f" in {dtype}" if dtype else ""
        self.vlm = pretrained
        self.batch_size = 8 if batch_size == "auto" else int(batch_size)
        self.size = dict(num_frames=num_frames, tokens_per_frame=tokens_per_frame)
        self.max_new_tokens, self.max_unreadable = max_new_tokens, max_unreadable
        self.replies = Path(replies) if replies else None
        self._images = Path(tempfile.mkdtemp(prefix="vvlm_jax-images-"))
        weakref.finalize(self, shutil.rmtree, self._images, ignore_errors=True)
        self.unreadable: dict[str, str] = {}
        """{unreadable video: error}."""
        self.unanswered: set[tuple] = set()
        """(task, document id) of questions about unreadable videos."""

    def generate_until(self, requests) -> list[str]:
        """Return a reply to each request, in order."""
        rows = [
            self._row(context, options, visuals, task, split, doc_id)
            for context, options, visuals, doc_id, task, split in (r.args for r in requests)
        ]
        return self._answer(rows)

    def generate_until_multi_round(self, requests) -> list[str]:
        """Return each request's result after all its rounds, in order.

        After each round the task's `doc_to_text` gets the replies so far and returns the next
        question or the end. The n-th rounds of all requests are answered together.
        """
        rounds = [_Rounds(*r.args) for r in requests]
        while asking := [r for r in rounds if not r.ended]:
            rows = [
                self._row(r.context, r.options, r.visuals, r.task, r.split, r.doc_id, r.number)
                for r in asking
            ]
            for r, reply in zip(asking, self._answer(rows), strict=True):
                r.go_on(reply, self._doc(r.task, r.split, r.doc_id))
        return [r.results for r in rounds]

    def loglikelihood(self, requests) -> list[tuple[float, bool]]:
        """Return (loss, whether greedy decoding writes it) of each request, in order.

        The loss is the mean over tokens of −log p: LMMs-Eval's `multiple_choice` tasks take the
        smallest, although its base class documents log-likelihoods. An empty context is asked as a
        question mark, because a chat has no empty turns. The space that tasks put between context
        and continuation is stripped, because replies do not begin with one.
        """
        groups: dict[tuple, list] = {}
        for i, request in enumerate(requests):
            context, target, *rest = request.args
            visuals, doc_id, task, split = rest or (None, None, None, None)
            doc = self._doc(task, split, doc_id) if rest else None
            text = (target if isinstance(target, str) else str(target(doc))).strip()
            paths = self._paths(visuals, doc)
            groups.setdefault((tuple(paths), context), []).append((i, text))
        found: list = [None] * len(requests)
        order = sorted(groups, key=lambda key: key[0])  # a video's questions follow one another
        progress = Progress("likelihoods", len(order), "prompts")
        for start in range(0, len(order), self.batch_size):
            keys = order[start : start + self.batch_size]
            likely = self.vlm.loglikelihoods(
                [list(paths) or None for paths, _ in keys],
                [context if context.strip() else "?" for _, context in keys],
                [[text for _, text in groups[key]] for key in keys],
                batch_size=self.batch_size,
                **self.size,
            )
            for key, values in zip(keys, likely, strict=True):
                for (i, _), value in zip(groups[key], values, strict=True):
                    found[i] = _Loss((-value.logprob / value.num_tokens, value.greedy))
            progress.update(start + len(keys))
        progress.close()
        return found

    def _doc(self, task, split, doc_id):
        return self.task_dict[task][split][doc_id]

    def _row(self, context, options, visuals, task, split, doc_id, number=0) -> dict:
        """Return one question with its media, options and a name that identifies all of them."""
        paths = self._paths(visuals, self._doc(task, split, doc_id))
        asked = dict(
            task=task, split=split, doc_id=doc_id, round=number, context=context, media=paths,
            options=_decoding(options, self.max_new_tokens), model=self._identity(),
        )  # fmt: skip
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return {**asked, "name": name, "prompt": context, "gen_kwargs": options}

    def _identity(self) -> list:
        """Return what replies depend on besides the question."""
        return [self._model, *self.size.values()]

    def _paths(self, visuals: Callable | Sequence | None, doc) -> list[str]:
        """Return the files of a question's media; images in memory are written to files."""
        try:
            media = visuals(doc) if callable(visuals) else visuals
        except SystemExit as e:  # tasks exit when a file is missing
            raise VideoError(str(e)) from None
        return [self._path(medium) for medium in media or ()]

    def _path(self, medium) -> str:
        if not isinstance(medium, Image.Image):
            return str(medium)
        pixels = medium.convert("RGB")
        name = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
        path = self._images / f"{name}.png"
        if not path.exists():
            pixels.save(path)
        return str(path)

    def _answer(self, rows: list[dict]) -> list[str]:
        """Return replies in the order of the rows; answered questions are not asked again."""
        done = _read_replies(self.replies)
        asked = {row["name"]: row for row in rows if row["name"] not in done}
        # Sorted, so that questions with equal options, then those about one video, share batches.
        order = sorted(asked.values(), key=lambda row: (str(row["options"]), row["media"]))
        writer = JsonlWriter(self.replies) if self.replies else None
        progress = Progress("replies", len(order), "questions")
        broken = 0
        try:
            for count, batch in _batches(order, self.batch_size):
                replies = self._ask(batch)
                for row, reply in zip(batch, replies, strict=True):
                    if reply is None:
                        broken += 1
                        self.unanswered.add((row["task"], row["doc_id"]))
                        continue
                    done[row["name"]] = reply
                    if writer:
                        writer.write(name=row["name"], task=row["task"], reply=reply)
                    self.cache_hook.add_partial(
                        "generate_until", (row["prompt"], row["gen_kwargs"]), reply
                    )
                if broken > self.max_unreadable * len(rows):
                    raise VideoError(
                        f"{broken} questions about unreadable videos, more than max_unreadable = "
                        f"{self.max_unreadable:g} of {len(rows)}: {min(self.unreadable.values())}"
                    )
                progress.update(count)
        finally:
            progress.close()
            if writer:
                writer.close()
        return [done.get(row["name"], "") for row in rows]

    def _ask(self, batch: list[dict]) -> list[str | None]:
        """Return replies to questions with the same options; None where a video is unreadable."""
        try:
            return self._generate(batch)
        except VideoError:
            if len(batch) > 1:
                return [reply for row in batch for reply in self._ask([row])]
            return [None]

    def _generate(self, batch):
        try:
            replies = self.vlm.generate(
                [row["media"] or None for row in batch],
                [row["context"] for row in batch],
                batch_size=self.batch_size,
                **batch[0]["options"],
                **self.size,
            )
            return [reply.strip() for reply in replies]
        except VideoError as e:
            if len(batch) == 1:
                self.unreadable[batch[0]["media"][0]] = str(e)
            raise


def evaluate(
    lm: VvlmJax,
    asked: str,
    parts: Sequence[str],
    out: Path,
    task_files: Path | None = None,
    limit: int | None = None,
    workers: int = 4,
) -> tuple[dict, dict[str, list[dict]]]:
    """Evaluate one of LMMs-Eval's tasks, or a group; return (its `results`, {task: its samples}).

    Args:
      asked: name of the task or group.
      parts: names of the tasks it consists of, itself or the group's.
      out: folder in which some tasks leave files of their own.
      task_files: folder of task files that are read instead of the installed ones.
      limit: questions a part, at most.
      workers: questions scored at a time.

    Raises ConfigError when the task or its questions cannot be loaded, and what `lm` raises.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    tasks = TaskManager(
        "WARNING", str(task_files) if task_files else None, task_files is None, lm.name
    )
    if unknown := {asked, *parts} - set(tasks.all_tasks):
        raise ConfigError(f"{asked}: LMMs-Eval has no task file for {', '.join(sorted(unknown))}")
    lm.task_dict = {}
    try:
        found = simple_evaluate(
            lm,
            tasks=[asked],
            task_manager=tasks,
            batch_size=lm.batch_size,
            bootstrap_iters=0,
            limit=limit,
            process_docs_parallel=workers,
            # As its command line passes them; videochatgpt writes below `output_path`.
            cli_args=SimpleNamespace(output_path=str(out), process_with_media=False),
        )
    except Exception as e:
        if set(parts) <= set(lm.task_dict):
            raise
        raise ConfigError(
            f"{asked}: LMMs-Eval cannot load its questions, which come from the Hugging Face hub "
            f"or HF_HOME ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''})"
        ) from e
    return found["results"], found["samples"]


def version() -> str:
    """Return the version of LMMs-Eval."""
    return importlib.metadata.version("lmms_eval")


class _Loss(tuple, GenerationResult):
    """(loss, greedy) as a GenerationResult: LMMs-Eval 0.7.3 turns a bare pair into a string, on
    which its own tasks fail.
    """


class _Rounds:
    """State of one request with several rounds."""

    def __init__(self, context, options, visuals, doc_to_text, doc_id, task, split):
        self.context, self.options, self.visuals = context, options, visuals
        self.doc_to_text, self.doc_id, self.task, self.split = doc_to_text, doc_id, task, split
        self.number, self.ended, self.results, self._note = 0, False, [], None

    def go_on(self, reply: str, doc) -> None:
        """Add a round's reply, and ask the task for the next round."""
        self.results, self.number = [*self.results, reply], self.number + 1
        self.visuals, self.context, self.ended, results, self._note = self.doc_to_text(
            doc,
            previous_output=self.results,
            round_idx=self.number,
            previous_round_info=self._note,
        )
        self.results = list(results)


def _decoding(options: dict, max_new_tokens: int) -> dict:
    """Return a task's generation options as arguments of `VideoVLM.generate`."""
    if (beams := options.get("num_beams") or 1) > 1:
        raise ConfigError(f"generation_kwargs num_beams = {beams}: there is no beam search here")
    sampled = options.get("do_sample", False)
    return dict(
        max_tokens=int(options.get("max_new_tokens") or max_new_tokens),
        temperature=float(options.get("temperature") or 0) if sampled else 0.0,
        top_p=float(options.get("top_p") or 1) if sampled else 1.0,
    )


def _batches(rows: list[dict], size: int):
    """Yield (number of rows so far, up to `size` neighbours with the same options)."""
    start = 0
    while start < len(rows):
        same = rows[start]["options"]
        end = start + 1
        while end < min(start + size, len(rows)) and rows[end]["options"] == same:
            end += 1
        yield end, rows[start:end]
        start = end


def _read_replies(file: Path | None) -> dict[str, str]:
    """Return {name: reply} of an interrupted evaluation. Removes a truncated last line."""
    if file is None or not file.is_file():
        return {}
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return {row["name"]: row["reply"] for row in map(json.loads, whole.splitlines())}
