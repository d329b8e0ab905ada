"""Every option of a model, a stage and a run, as frozen dataclasses. Imports no jax.

A config is a value: `override` returns a changed copy, `to_json` / `from_json` round-trip it, and
the JSON stands next to every run. `validate` raises `ConfigError`, one line that names the field,
the value and what is allowed.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from dataclasses import dataclass, field


class ConfigError(ValueError):
    """A wrong option: the message is one line that names the field and what is allowed."""


RESAMPLERS = ("bilinear", "area", "antialias", "quecc")
"""What `ModelConfig.resampler` may be."""
QUECC_HEADS = 8
"""Attention heads of QueCC; the encoder's width is a multiple of it."""
TRACKERS = ("tensorboard", "wandb")
DTYPES = ("bfloat16", "float32")
"""What `ModelConfig.dtype` and `OptimConfig.mu_dtype` may be."""
ATTENTION = ("auto", "reference")
"""What `ModelConfig.attention` may be."""
REMAT = ("none", "products", "attention", "full", "chunks")
"""What `ModelConfig.remat` may be, from the fastest to the smallest."""
BUCKETS = {"gs://": "gcsfs", "s3://": "s3fs"}
"""Where data may lie beside folders, and the library that reads them there."""
NEWLINES = ("none", "per-video", "per-frame", "grid")
"""What `ModelConfig.newline` may be."""


class Stopped(RuntimeError):
    """Work that ended for a reason people can mend (bad files, divergence): one line says which."""


@dataclass(frozen=True)
class VisionConfig:
    """A SoViT (big_vision's ViT without a class token). Sizes live in `models/variants.py`."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    image_size: int
    feature_layer: int = -2
    """Block whose output the projector reads: from 1 to depth, or from −1 back to −depth; −2 is
    LLaVA's tower. No final norm.
    """
    head: str = "none"
    """`none`, or `map`: after the last block the final norm and SigLIP's attention pooling make one
    feature of a frame; needs feature_layer −1.
    """

    @property
    def grid(self) -> int:
        """Patches along one side (VALID convolution: a remainder of pixels is unused)."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Features a frame, P."""
        return self.grid**2

    @property
    def blocks_run(self) -> int:
        """Blocks that are built and run; later ones would get no gradient."""
        last = self.feature_layer
        return last if last > 0 else self.depth + 1 + last

    @property
    def out_grid(self) -> int:
        """Features along one side of what comes out: the grid, or 1 behind a pooling head."""
        return 1 if self.head == "map" else self.grid


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """A Llama 3.x or Qwen2.5 decoder. Sizes live in `models/variants.py`."""

    vocab: int
    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tie_embeddings: bool
    qkv_bias: bool = False
    """Biases on queries, keys and values, as Qwen2.5 has them."""
    rope_theta: float = 5e5
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    max_position: int = 131072
    """Longest sequence the model was made for; generation refuses longer ones."""


@dataclass(frozen=True)
class ModelConfig:
    """x = (x_N, x_T, x_V) and the towers it is built from."""

    vision: str | VisionConfig = "so400m/14-384"
    """Encoder: a key of `variants.VISION`, or its sizes."""
    llm: str | LlamaConfig = "llama3.2-1b"
    """Language model: a key of `variants.LLAMA`, or its sizes; fixes x_N."""
    num_frames: int = 32
    """x_T: frames a video, sampled uniformly, exactly this many."""
    tokens_per_frame: int = 196
    """x_V: visual tokens a frame, a perfect square r², r at most the encoder's grid."""
    dtype: str = "bfloat16"
    """Dtype of matrix products: bfloat16 or float32. Parameters stay float32."""
    remat: str = "full"
    """What each block of both towers keeps for the backward pass besides its input; the rest is
    computed again. `none`: everything is kept; `products`: what matrix products and attention give,
    as far as gradients need it; `attention`: the attention half of these; `full`: nothing more;
    `chunks`: as `full`, and of each chunk of frames only the pixels. On a CPU `products` is as fast
    as `none`.
    """
    unroll: int = 1
    """Blocks of a tower in one turn of the loop over them; above 1 with `remat = "none"` alone. All
    of them, or more, are no loop: faster on a CPU, and slower to compile.
    """
    frame_chunk: int = 0
    """Frames a row that are encoded at once, at most; 0 takes all."""
    resampler: str = "bilinear"
    """From the encoder's grid to x_V tokens: `bilinear` (the paper's, no antialiasing), `area`
    (each token averages its cell), `antialias` (bilinear with a widened kernel) or `quecc` (Li et
    al.: attention within each cell, with the question in view, before the projector).
    """
    quecc_layers: tuple[int, ...] = ()
    """Encoder blocks, from 1 up to the feature layer, that QueCC's keys and values come from."""
    newline: str = "none"
    """Learnt separators among a video's tokens: `none`, one after it (`per-video`), one after each
    frame (`per-frame`), or one after each of a frame's r rows (`grid`).
    """
    attention: str = "auto"
    """`auto`: for bfloat16, cuDNN's kernel on NVIDIA GPUs and Pallas' splash on TPUs; `reference`:
    plain products everywhere, as always with float32.
    """


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they become token ids and frames."""

    annotations: str = "data/train.json"
    """LLaVA-style JSON or JSONL: `id`, `conversations`, and `video`, `image` (a path or a list of
    paths), both or neither; or a folder that `tools.prepare` made. Here or in a bucket, `gs://…`,
    `s3://…`.
    """
    media_root: str = "data"
    """Folder that `video` and `image` paths are relative to; or a bucket's, as above."""
    tokenizer: str = "data/tokenizer"
    """A `tokenizer.json`, or a folder that holds one."""
    num_examples: int | None = None
    """n: the first n of a seeded order, so that smaller sets are nested in larger; None takes
    all.
    """
    prompt: str = "llama3"
    """Chat format, `llama3` or `chatml` (Qwen), or `plain` (stage 1: the caption follows the
    image).
    """
    mask: str = "answers"
    """Where loss falls: on `answers` alone, or as in LLaVA-NeXT (`llava`) on the assistant's header
    and on every turn's special tokens too.
    """
    system: str = ""
    """System message of the chat format; empty leaves it out."""
    frame_sampling: str = "uniform"
    """`uniform` (1 frame a second, linspace when longer, repeats when shorter) or `force`
    (linspace).
    """
    max_text_tokens: int = 512
    """Room for text in a sequence; a longer example is an error, not a silent cut."""
    text_buckets: tuple[int, ...] = ()
    """Smaller rooms, ascending: a batch takes the smallest that holds its longest text. One compile
    each.
    """
    frame_cache_mb: int = 0
    """Decoded frames kept in memory, MiB; 0 decodes every time."""
    read_threads: int = 4
    """Threads that decode and tokenise ahead of the train step."""
    max_unreadable: float = 0.01
    """Share of examples that may be unreadable (counted, replaced) before the run stops."""
    max_read_seconds: float = 300.0
    """Time for one media file; what takes longer counts as unreadable."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with one peak learning rate a parameter group (Table 4)."""

    learning_rates: tuple[tuple[str, float], ...] = (
        ("vision/.*", 2e-6),
        ("(projector|quecc|llm)/.*|newline", 1e-5),
    )
    """Ordered (path regex, peak rate); first full match wins; 0 freezes; an unmatched parameter is
    an error.
    """
    warmup: float = 0.03
    """Share of the steps in linear warm-up, before cosine decay to 0."""
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down."""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mu_dtype: str = "float32"
    """Dtype of Adam's first moment: float32, or bfloat16 to save two bytes a parameter."""
    spike_factor: float = 0.0
    """Skip a step whose loss exceeds this many times the running mean of recent losses; 0: none.
    Steps whose loss or gradient is not finite are skipped always.
    """
    max_skipped: int = 5
    """Steps skipped in a row at which the run stops, and leaves their batches in diverged.npz."""


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init: tuple[tuple[str, str], ...] = ()
    """(part, checkpoint folder): where `vision`, `projector`, `llm` start from; the rest is
    random.
    """
    out_dir: str = "runs/train"
    batch_size: int = 256
    microbatches: int = 1
    """Parts a batch is split into; gradients are summed over them."""
    epochs: int = 1
    loss_weighting: str = "token"
    """`token`: mean over answer tokens of the batch; `sample`: every example weighs the same
    (LLaVA).
    """
    loss_chunk: int = 0
    """Answer positions a row whose logits are in memory at once; 0 takes all."""
    seed: int = 0
    log_every: int = 10
    trackers: tuple[str, ...] = ()
    """Where metrics go beside `metrics.jsonl`: `tensorboard`, `wandb`."""
    checkpoint_every: int = 500
    """Steps between checkpoints, besides the last; 0 keeps only the last."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay while the stage runs."""
    keep_every: int = 0
    """Checkpoints of steps that this divides stay for good; 0 keeps none."""
    mesh: tuple[tuple[str, int], ...] = (("replica", 1), ("data", 1), ("fsdp", -1), ("tensor", 1))
    """Devices along each axis, 1 where it is left out; one −1 takes the rest. Batches are split
    over `replica` (slices of TPUs), `data` and `fsdp`; parameters over `fsdp` and `tensor`.
    """


def _require(ok: bool, name: str, value, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{name} = {value!r}: must be {allowed}")


def nearest(word: str, known) -> str:
    """`; did you mean …?` for the closest of `known`, or the list when nothing is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", … ({len(known)} in all)" if len(known) > _LISTED else ""
    return f"known: {', '.join(known[:_LISTED])}{more}"


_LISTED = 30
"""Names that an error lists; a sweep may have thousands."""


def choose(table: dict, key, name: str):
    """`table[key]`, or a ConfigError that names the nearest key; sizes in its place are taken."""
    if not isinstance(key, str):
        return key
    if key not in table:
        raise ConfigError(f"{name} = {key!r}: unknown; {nearest(key, table)}")
    return table[key]


def tokens_side(tokens_per_frame: int, grid: int, name: str = "model.tokens_per_frame") -> int:
    """r with r² = x_V. Raises ConfigError unless x_V is a perfect square with 1 ≤ r ≤ grid."""
    side = math.isqrt(tokens_per_frame) if tokens_per_frame > 0 else 0
    allowed = f"a perfect square from 1 to {grid}² = {grid**2} (the encoder's features)"
    _require(
        side >= 1 and side**2 == tokens_per_frame and side <= grid, name, tokens_per_frame, allowed
    )
    return side


def visual_length(num_frames: int, tokens_per_frame: int, newline: str = "none") -> int:
    """Positions that a video of T frames × V tokens takes in the sequence, newlines counted.

    T·V, and with newlines T·V + 1 (`per-video`), T·(V + 1) (`per-frame`) or T·r·(r + 1) (`grid`),
    as LLaVA-NeXT's `mm_newline_position` counts them (reference §1). 0 without frames.
    """
    rows = math.isqrt(tokens_per_frame)
    newlines = {"none": 0, "per-video": 1, "per-frame": num_frames, "grid": num_frames * rows}
    return num_frames * tokens_per_frame + newlines[newline] if num_frames else 0


def _validate_vision(vision: VisionConfig) -> None:
    for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size"):
        value = getattr(vision, name)
        _require(value >= 1, f"model.vision.{name}", value, "at least 1")
    layer, depth = vision.feature_layer, vision.depth
    _require(
        1 <= abs(layer) <= depth,
        "model.vision.feature_layer",
        layer,
        f"from 1 to {depth}, or from -1 to -{depth} counted from the end",
    )
    _require(vision.head in ("none", "map"), "model.vision.head", vision.head, "none or map")
    _require(
        vision.head == "none" or vision.blocks_run == depth,
        "model.vision.feature_layer",
        layer,
        "-1 with head = 'map', which pools what the last block gives",
    )


def _validate_quecc(model: ModelConfig, vision: VisionConfig) -> None:
    layers, used = model.quecc_layers, model.resampler == "quecc"
    _require(
        bool(layers) == used and all(1 <= layer <= vision.blocks_run for layer in layers),
        "model.quecc_layers",
        layers,
        f"blocks from 1 to {vision.blocks_run}, at least one, with resampler = 'quecc'; else none",
    )
    if not used:
        return
    _require(vision.head == "none", "model.vision.head", vision.head, "none with quecc")
    width, grid = vision.width, vision.grid
    _require(
        width % QUECC_HEADS == 0, "model.vision.width", width, f"a multiple of {QUECC_HEADS} heads"
    )
    fits = [str(r * r) for r in range(1, grid + 1) if grid % r == 0]
    _require(
        str(model.tokens_per_frame) in fits,
        "model.tokens_per_frame",
        model.tokens_per_frame,
        f"{', '.join(fits[:-1])} or {fits[-1]} with quecc, whose cells divide the {grid} × {grid} "
        "grid",
    )


def _validate_model(model: ModelConfig, vision: VisionConfig) -> None:
    _require(model.num_frames >= 1, "model.num_frames", model.num_frames, "at least 1")
    _validate_vision(vision)
    tokens_side(model.tokens_per_frame, vision.out_grid)
    _require(model.dtype in DTYPES, "model.dtype", model.dtype, " or ".join(DTYPES))
    _require(model.unroll >= 1, "model.unroll", model.unroll, "at least 1")
    # Without a loop the compiler would keep what a policy wants computed again.
    _require(
        model.unroll == 1 or model.remat == "none",
        "model.unroll",
        model.unroll,
        f"1 with remat = {model.remat!r}",
    )
    _require(model.frame_chunk >= 0, "model.frame_chunk", model.frame_chunk, "0 (all) or above")
    for name, known in (
        ("resampler", RESAMPLERS),
        ("newline", NEWLINES),
        ("attention", ATTENTION),
        ("remat", REMAT),
    ):
        choose(dict.fromkeys(known), getattr(model, name), f"model.{name}")
    _require(
        model.remat != "chunks" or model.frame_chunk > 0,
        "model.frame_chunk",
        model.frame_chunk,
        "above 0 with remat = 'chunks'",
    )
    _validate_quecc(model, vision)


def _validate_places(config: TrainConfig) -> None:
    """A `gs://…` that nothing reads would quietly become a folder `gs:` here."""
    data = {
        "data.annotations": config.data.annotations,
        "data.media_root": config.data.media_root,
    }
    for name, place in data.items():
        scheme, remote, _ = place.partition("://")
        known = not remote or f"{scheme}://" in BUCKETS
        _require(known, name, place, f"a path, or one in a bucket: {', '.join(BUCKETS)}")
    places = {
        "out_dir": config.out_dir,
        "data.tokenizer": config.data.tokenizer,
        **{f"init[{part}]": place for part, place in config.init},
    }
    for name, place in places.items():
        _require(
            "://" not in place,
            name,
            place,
            "a path: mount the bucket on every host (gcsfuse for gs://) and give its path there",
        )


def validate(config: TrainConfig, vision: VisionConfig) -> TrainConfig:
    """Returns `config`, or raises ConfigError on the first option that cannot work.

    Checks what needs no data; `n larger than the data` is raised where the data is opened.
    """
    model, data, optim = config.model, config.data, config.optim
    _validate_places(config)
    _validate_model(model, vision)
    prompts = ("llama3", "chatml", "plain")
    _require(data.prompt in prompts, "data.prompt", data.prompt, "llama3, chatml or plain")
    _require(data.mask in ("answers", "llava"), "data.mask", data.mask, "answers or llava")
    _require(
        data.frame_sampling in ("uniform", "force"),
        "data.frame_sampling",
        data.frame_sampling,
        "uniform or force",
    )
    share = data.max_unreadable
    _require(0 <= share <= 1, "data.max_unreadable", share, "a share from 0 to 1")
    seconds = data.max_read_seconds
    _require(seconds > 0, "data.max_read_seconds", seconds, "above 0")
    for name, least in (("max_text_tokens", 1), ("frame_cache_mb", 0), ("read_threads", 0)):
        value = getattr(data, name)
        _require(value >= least, f"data.{name}", value, f"{least} or above")
    buckets = data.text_buckets
    _require(
        sorted({0, data.max_text_tokens, *buckets})
        in ([0, *buckets], [0, *buckets, data.max_text_tokens]),
        "data.text_buckets",
        buckets,
        f"ascending, from 1 to at most max_text_tokens = {data.max_text_tokens}",
    )
    n = data.num_examples
    _require(n is None or n >= 1, "data.num_examples", n, "at least 1, or null for all")
    _require(config.batch_size >= 1, "batch_size", config.batch_size, "at least 1")
    _require(
        config.microbatches >= 1 and config.batch_size % config.microbatches == 0,
        "microbatches",
        config.microbatches,
        f"a divisor of batch_size = {config.batch_size}",
    )
    _require(config.epochs >= 1, "epochs", config.epochs, "at least 1")
    _require(
        config.loss_weighting in ("token", "sample"),
        "loss_weighting",
        config.loss_weighting,
        "token or sample",
    )
    for name in config.trackers:
        choose(dict.fromkeys(TRACKERS), name, "trackers")
    _require(config.loss_chunk >= 0, "loss_chunk", config.loss_chunk, "0 (all) or above")
    _require(config.log_every >= 1, "log_every", config.log_every, "at least 1")
    _require(
        config.checkpoint_every >= 0,
        "checkpoint_every",
        config.checkpoint_every,
        "0 (only the last) or above",
    )
    kept, every = config.keep_checkpoints, config.keep_every
    _require(kept >= 1, "keep_checkpoints", kept, "at least 1")
    _require(
        every == 0 or every > 0 < config.checkpoint_every and every % config.checkpoint_every == 0,
        "keep_every",
        every,
        f"0 (none) or a multiple of checkpoint_every = {config.checkpoint_every}",
    )
    _require(0 <= optim.warmup < 1, "optim.warmup", optim.warmup, "a share from 0 to below 1")
    _require(optim.clip_norm > 0, "optim.clip_norm", optim.clip_norm, "above 0")
    for name in ("b1", "b2"):
        value = getattr(optim, name)
        _require(0 <= value < 1, f"optim.{name}", value, "from 0 to below 1")
    _require(optim.eps > 0, "optim.eps", optim.eps, "above 0")
    _require(optim.mu_dtype in DTYPES, "optim.mu_dtype", optim.mu_dtype, " or ".join(DTYPES))
    spike = optim.spike_factor
    _require(spike == 0 or spike > 1, "optim.spike_factor", spike, "0 (never skip), or above 1")
    _require(optim.max_skipped >= 1, "optim.max_skipped", optim.max_skipped, "at least 1")
    _require(optim.weight_decay >= 0, "optim.weight_decay", optim.weight_decay, "0 or above")
    for pattern, rate in optim.learning_rates:
        _require(rate >= 0, f"optim.learning_rates[{pattern}]", rate, "0 (frozen) or above")
        try:
            re.compile(pattern)
        except re.error as e:
            raise ConfigError(f"optim.learning_rates: {pattern!r} is no regex: {e}") from None
    return config


# --- overrides and JSON ---


def _coerce(value, hint, name: str):
    """`value` (from JSON or a command line) as the type `hint`; ConfigError names the field and
    the type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        # A name or sizes: a mapping can only mean the sizes.
        sizes = [a for a in kinds if dataclasses.is_dataclass(a) and isinstance(value, dict | a)]
        return _coerce(value, (sizes or kinds)[0], name)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(hint, value, prefix=f"{name}.")
    if origin is tuple:
        _require(isinstance(value, list | tuple), name, value, "a list")
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
        _require(len(inner) == len(value), name, value, f"a list of {len(inner)} items")
        return tuple(
            _coerce(v, a, f"{name}[{i}]") for i, (v, a) in enumerate(zip(value, inner, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        raise ConfigError(
            f"{name} = {value!r}: must be {hint.__name__}, not {type(value).__name__}"
        )
    return value


def from_dict(cls, values: dict, prefix: str = ""):
    """Builds a config dataclass from nested dicts. Unknown keys and wrong types raise
    ConfigError.
    """
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: no such option; {nearest(key, hints)}")
    return cls(**{k: _coerce(v, hints[k], f"{prefix}{k}") for k, v in values.items()})


def override(config, assignments):
    """A copy of `config` with `["model.num_frames=8", …]` applied; values are JSON, or bare
    strings.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r}: write an override as key=value")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        config = _replace(config, path.split("."), value, path)
    return config


def _replace(config, keys, value, path):
    hints = typing.get_type_hints(type(config)) if dataclasses.is_dataclass(config) else {}
    head, *rest = keys
    if head not in hints:
        parent = path[: len(path) - len(".".join(keys))]
        if not hints:
            raise ConfigError(f"{path}: {parent[:-1]} is a value, it holds no options")
        name = f" {parent}{head}" if rest else ""
        raise ConfigError(f"{path}: no such option{name}; {nearest(head, hints)}")
    new = (
        _replace(getattr(config, head), rest, value, path)
        if rest
        else _coerce(value, hints[head], path)
    )
    return dataclasses.replace(config, **{head: new})


def to_json(config) -> str:
    """The config as indented JSON, keys in declaration order."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def from_json(cls, text: str):
    """Inverse of `to_json`."""
    return from_dict(cls, json.loads(text))


def first_difference(a, b):
    """(name, value in a, value in b) of the first option in which two configs differ; None if
    equal.
    """
    return next(differences(a, b), None)


def differences(a, b, prefix: str = ""):
    """Yields (name, value in a, value in b) of every option in which two configs differ."""
    for f in dataclasses.fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if x != y:
            if dataclasses.is_dataclass(x) and dataclasses.is_dataclass(y):
                yield from differences(x, y, f"{prefix}{f.name}.")
            else:
                yield prefix + f.name, x, y
