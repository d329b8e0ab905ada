"""Decoding beside bare PyAV, and how long a train step waits for its data.

Example:
    python -m tools.bench.bench_data --quick

Reading: chosen frames of H.264 files in MP4, made here, as the trainer reads them
(`vvlm_jax.data.video.read_frames`) and as a plain loop over PyAV does that trusts the header: from
the start, or seeking to every frame, whichever is faster. Both deliver the same pixels on one
thread, in turn; what counts is CPU time, so that other work on the machine disturbs little. The bar
is 90% of PyAV's frames a second of a core. At the files' own size, and resized for the model. Where
they are installed, decord and torchcodec read the same frames in the same turns.

Waiting: the trainer's pipeline decodes on one core with one thread while the trainer's step runs on
another, which is pinned; steps are repeated on a batch until the decoder alone would need 80% of
the time. The bar is 5% of the time waiting for data. Below, as a control, steps that are too fast
for the decoder: they must wait for about what is missing.
"""

import dataclasses
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.arguments import read_options
from tools.bench import other_decoders
from tools.common import die_in_one_line
from vvlm_jax import atomic
from vvlm_jax.config import (
    ConfigError,
    DataConfig,
    LlamaConfig,
    ModelConfig,
    Stopped,
    TrainConfig,
    VisionConfig,
)

FPS = 30
CLIPS = ((320, 240, 60), (640, 360, 30), (1280, 720, 10))
"""Width, height, seconds."""
QUICK_CLIPS = ((320, 240, 10),)
SHARES = (0.8, 1.25)
"""Of a step's time that the decoder needs: below and above what it can give."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.bench.bench_data`."""

    frames: tuple[int, ...] = (8, 32, 64)
    """x_T: frames taken of each file."""
    sizes: tuple[int, ...] = (0, 384)
    """Pixels along a side of what is delivered; 0 leaves the file's own."""
    gop: int = 250
    """Frames from keyframe to keyframe; 250 is x264's default."""
    repeats: int = 5
    """The best of so many readings."""
    folder: Path | None = None
    """Where files are kept and found again; without it they are made anew."""
    wait: bool = True
    """Measure waiting too (needs two cores)."""
    steps: int = 40
    """Train steps over which waiting is measured."""
    quick: bool = False
    """One short file, 8 frames, one reading, 12 steps."""


class Disagreement(Stopped):
    """An error: the two sides do not deliver the same frames."""


class Reading(NamedTuple):
    """CPU seconds of reading one choice of frames."""

    ours: float
    sequential: float
    seeking: float


def main(args: Args) -> None:
    """Print both tables."""
    check(args)
    if args.quick:
        args = dataclasses.replace(args, frames=(8,), repeats=1, steps=12)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        clips = [make_clip(folder, *clip, args.gop) for clip in clips_of(args)]
        print(decoding(args, clips), flush=True)
        if args.wait:
            print(waiting(args, clips, folder))


def check(args: Args) -> None:
    """Raise ConfigError for options that cannot work."""
    for name, least in (("gop", 1), ("repeats", 1), ("steps", 1)):
        if getattr(args, name) < least:
            raise ConfigError(f"{name} = {getattr(args, name)}: must be at least {least}")
    for name, least in (("frames", 1), ("sizes", 0)):
        values = getattr(args, name)
        if not values or min(values) < least:
            raise ConfigError(f"{name} = {values}: must be numbers of at least {least}")
    if args.wait and len(os.sched_getaffinity(0)) < 2:
        raise ConfigError("wait: needs a core for the decoder and one for the step; --no-wait")


def clips_of(args: Args):
    """Return (width, height, seconds) of every file."""
    return QUICK_CLIPS if args.quick else CLIPS


def make_clip(folder: Path, width: int, height: int, seconds: int, gop: int) -> Path:
    """Write a moving, grainy picture as H.264 with B-frames: x264's `veryfast` at quality 23."""
    import av

    path = folder / f"{width}x{height}-{seconds}s-{gop}.mp4"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 200, (height // 8 + 64, width // 8 + 64, 3), dtype=np.uint8)
    picture = coarse.repeat(8, 0).repeat(8, 1)
    grain = rng.integers(0, 32, (8, height, width, 3), dtype=np.uint8)
    with atomic.replacing(path) as partial, av.open(partial, "w") as container:
        options = {"preset": "veryfast", "crf": "23", "g": str(gop)}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(seconds * FPS):
            down = round(200 + 200 * np.sin(i / 40))
            image = picture[down : down + height, down // 2 : down // 2 + width] + grain[i % 8]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


# Reading.


def decoding(args: Args, clips: list[Path]) -> str:
    """Return the table of frames a second of a core."""
    import av

    from fitting import formatting

    others, missing = other_decoders.installed()
    rows = []
    for clip in clips:
        for size in args.sizes:
            for count in args.frames:
                taken, seconds, beside = read_in_turn(clip, count, size, args.repeats, others)
                rates = [taken / s for s in seconds]
                rows.append(
                    (
                        clip.stem,
                        f"{size}" if size else "own",
                        f"{taken}",
                        *(f"{r:,.0f}" for r in rates),
                        f"{rates[0] / max(rates[1:]):.2f}",
                        *(f"{taken / s:,.0f}" if s else "other frames" for s in beside.values()),
                    )
                )
    header = ("file (size-length-GOP)", "pixels", "frames", "ours", "PyAV, all", "PyAV, seeking",
              "ours / best", *others)  # fmt: skip
    return (
        f"distinct frames delivered a CPU second, one thread; best of {args.repeats}, in turn; "
        f"PyAV {av.__version__}\n"
        + formatting.aligned(header, rows)
        + "".join(f"\n{line}" for line in missing)
    )


def read_in_turn(
    path: Path,
    count: int,
    size: int,
    repeats: int,
    others: dict[str, other_decoders.Reader] | None = None,
) -> tuple[int, Reading, dict[str, float | None]]:
    """Return (distinct frames, best CPU seconds, those of other decoders).

    Raises Disagreement unless our three readers deliver the same frames. Another decoder that
    delivers other frames has None.
    """
    from vvlm_jax.data.frames import choose_frames
    from vvlm_jax.data.video import read_frames

    taken = []

    def choose(info):
        taken[:] = choose_frames(info.num_frames, info.fps, count)
        return np.array(taken)

    readers: list[Callable] = [
        lambda: read_frames(path, choose, size=size or None),
        lambda: bare(path, count, size, seeking=False),
        lambda: bare(path, count, size, seeking=True),
    ]
    expected = readers[0]()
    if not all(np.array_equal(expected, read()) for read in readers[1:]):
        raise Disagreement(f"{path}: bare PyAV delivers other frames than ours")
    beside = dict.fromkeys(others or {})
    right = [
        name
        for name, read in (others or {}).items()
        if other_decoders.same_frames(expected, read(path, count, size))
    ]
    readers += [lambda read=others[name]: read(path, count, size) for name in right]
    best = np.min([[cpu_seconds(read) for read in readers] for _ in range(repeats)], axis=0)
    beside |= dict(zip(right, best[3:].tolist(), strict=True))
    return len(set(taken)), Reading(*best[:3]), beside


def cpu_seconds(run: Callable) -> float:
    """Return the CPU time of this process that `run` takes."""
    start = time.process_time()
    run()
    return time.process_time() - start


def bare(path: Path, count: int, size: int, seeking: bool) -> np.ndarray:
    """Read frames with a plain PyAV loop that trusts the header and assumes a constant frame rate.

    Returns uint8 [count, H, W, 3].
    """
    import av
    from av.video.reformatter import VideoReformatter

    from vvlm_jax.data.frames import choose_frames, resize_square

    one_thread = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
    to_rgb = VideoReformatter()

    def pixels(frame):
        image = to_rgb.reformat(frame, format="rgb24", **one_thread).to_ndarray()
        return resize_square(image, size) if size else image

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        chosen = choose_frames(stream.frames, float(stream.average_rate), count)
        ranks, places = np.unique(chosen, return_inverse=True)
        ticks = 1 / (stream.average_rate * stream.time_base)
        if seeking:
            images = [pixels(_sought(container, stream, round(rank * ticks))) for rank in ranks]
        else:
            images, wanted = [], set(ranks.tolist())
            for rank, frame in enumerate(container.decode(stream)):
                if rank in wanted:
                    images.append(pixels(frame))
                if len(images) == len(ranks):
                    break
    return np.stack([images[place] for place in places])


def _sought(container, stream, time_shown: int):
    container.seek(time_shown, stream=stream)
    return next(f for f in container.decode(stream) if f.pts >= time_shown)


# Waiting.


def waiting(args: Args, clips: list[Path], folder: Path) -> str:
    """Return the table of shares of time spent waiting. Pins this process to two cores."""
    everywhere = os.sched_getaffinity(0)
    step_core, read_core = sorted(everywhere)[:2]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.sched_setaffinity(0, {step_core})  # of this thread, and of those that it starts: XLA's
    try:
        return _waiting(args, stage(clips, folder), step_core, read_core)
    finally:
        os.sched_setaffinity(0, everywhere)


def stage(clips: list[Path], folder: Path) -> TrainConfig:
    """Return a training stage with a small model over the files, with one question each."""
    from vvlm_jax.data.synthetic import WORDS, write_tokenizer

    write_tokenizer(folder)
    word = next(w for w in WORDS if w.isalpha())
    turns = [{"from": "human", "value": f"<video>\n{word}"}, {"from": "gpt", "value": word}]
    rows = [{"id": str(i), "video": c.name, "conversations": turns} for i, c in enumerate(clips)]
    (folder / "data.json").write_text(json.dumps(rows * 12))
    return TrainConfig(
        model=ModelConfig(
            VisionConfig(
                width=64, depth=2, mlp_dim=128, num_heads=1, patch_size=14, image_size=112
            ),
            LlamaConfig(
                vocab=1024, width=64, depth=2, mlp_dim=128, num_heads=1, num_kv_heads=1,
                head_dim=64, tie_embeddings=True,
            ),
            num_frames=8, tokens_per_frame=4, dtype="float32",
        ),
        data=DataConfig(
            annotations=str(folder / "data.json"), media_root=str(folder),
            tokenizer=str(folder), max_text_tokens=16, read_threads=1,
        ),
        batch_size=2,
    )  # fmt: skip


def _waiting(args: Args, config: TrainConfig, step_core: int, read_core: int) -> str:
    import jax

    from fitting import formatting
    from tools.bench.bench_train import step_program
    from vvlm_jax.data import pipeline, tokenizer
    from vvlm_jax.models import vlm
    from vvlm_jax.sharding import make_mesh
    from vvlm_jax.train.compiled import initial_state

    tok = tokenizer.load(config.data.tokenizer)
    vision = config.model.vision
    examples = pipeline.Examples(config.data, config.model, vision, tok, seed=0)
    model, mesh = vlm.build(config.model, pipeline.video_id(tok), tok.vocab), make_mesh(config.mesh)
    program, state = step_program(config, model, mesh), initial_state(config, model, mesh)

    def reading():
        """Return an iterator whose threads run on the other core only, and its first batch."""
        wait_for_readers()
        os.sched_setaffinity(0, {read_core})
        batches = iter(pipeline.batches(examples, config.batch_size, 1000, seed=0))
        first = next(batches)
        os.sched_setaffinity(0, {step_core})
        return batches, first

    def steps(batch, times: int):
        nonlocal state
        for _ in range(times):
            state, _ = program(state, batch, np.float32(1))
        jax.block_until_ready(state)

    batches, batch = reading()
    steps(batch, 2)  # compiles
    batches.close()
    decoder = decoder_seconds(reading, args.steps)
    wait_for_readers()
    one = min(wall_seconds(lambda: steps(batch, 5)) for _ in range(3)) / 5
    rows = []
    for share in SHARES:
        times = max(round(decoder / share / one), 1)
        busy, idle = run_steps(reading, lambda b, n=times: steps(b, n), args.steps)
        total, needed = busy + idle, decoder * args.steps
        rows.append((f"{needed / busy:.0%}", f"{idle / total:.1%}",
                     f"{max(1 - busy / needed, 0):.0%}"))  # fmt: skip
    header = ("decoder needs, of the steps' time", "waiting", "cannot be avoided")
    return (
        f"{config.batch_size} videos a step, {config.model.num_frames} frames; one core decodes "
        f"({config.batch_size / decoder:.1f} videos/s alone), one steps ({one * 1e3:.1f} ms an "
        f"update, repeated); {args.steps} steps\n" + formatting.aligned(header, rows)
    )


def decoder_seconds(reading: Callable, count: int) -> float:
    """Return the wall seconds a batch that the decoder alone takes for `run_steps`."""
    batches, _ = reading()
    seconds = wall_seconds(lambda: [next(batches) for _ in range(count)])
    batches.close()
    return seconds / count


def wait_for_readers() -> None:
    """Wait until the threads of closed iterators have finished the batch they began."""
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join()


def wall_seconds(run: Callable) -> float:
    """Return the wall seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def run_steps(reading: Callable, step: Callable, count: int) -> tuple[float, float]:
    """Return (seconds in steps, seconds waiting for batches), after the first batch."""
    batches, batch = reading()
    busy = idle = 0.0
    for _ in range(count):
        start = time.perf_counter()
        step(batch)
        middle = time.perf_counter()
        batch = next(batches)
        busy, idle = busy + middle - start, idle + time.perf_counter() - middle
    batches.close()  # else it would read ahead during what is measured next
    return busy, idle


if __name__ == "__main__":
    die_in_one_line(lambda: main(read_options(Args, __doc__)), continues=False)
