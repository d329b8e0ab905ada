"""Checks of a config. Imports no jax.

Each raises ConfigError, one line that names the field, its value and what is allowed.
"""

import difflib
import math
import re
from collections.abc import Iterable

from vvlm_jax.config import (
    ATTENTION,
    DTYPES,
    NEWLINES,
    QUECC_HEADS,
    REMAT,
    RESAMPLERS,
    SCHEMES,
    TRACKERS,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    VisionConfig,
)


def require(ok: bool, name: str, value, allowed: str) -> None:
    """Raise a ConfigError, `{name} = {value}: must be {allowed}`, unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} = {value!r}: must be {allowed}")


def check_seed(name: str, seed: int) -> None:
    """Raise ConfigError for a seed that jax and NumPy do not both take."""
    require(0 <= seed < 2**63, name, seed, "0 or above, below 2^63")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `did you mean …?` with the closest of `known`, or `known: …` when none is close."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", … ({len(known)} in all)" if len(known) > _LISTED else ""
    return f"known: {', '.join(known[:_LISTED])}{more}"


_LISTED = 30
"""Most names that an error lists; a sweep may have thousands."""


def choose(table: dict, key, name: str):
    """Return `table[key]`, or `key` itself when it is no string but the sizes already.

    Raises ConfigError that names the option and the nearest key.
    """
    if not isinstance(key, str):
        return key
    if key not in table:
        raise ConfigError(f"{name} = {key!r}: unknown; {nearest(key, table)}")
    return table[key]


def tokens_side(tokens_per_frame: int, grid: int, name: str = "model.tokens_per_frame") -> int:
    """Return r with r² = x_V. Raises ConfigError unless x_V is a square with 1 ≤ r ≤ grid."""
    side = math.isqrt(tokens_per_frame) if tokens_per_frame > 0 else 0
    allowed = f"a perfect square from 1 to {grid}² = {grid**2} (the encoder's features)"
    ok = side >= 1 and side**2 == tokens_per_frame and side <= grid
    require(ok, name, tokens_per_frame, allowed)
    return side


def validate(config: TrainConfig, vision: VisionConfig) -> TrainConfig:
    """Return `config`. Raises ConfigError for the first option that cannot work.

    `vision` holds the sizes that `config.model.vision` names. Checks that need the data, such as
    more examples than there are, are made where the data is opened.
    """
    _validate_paths(config)
    _validate_model(config.model, vision)
    _validate_data(config.data)
    _validate_run(config)
    _validate_optim(config.optim)
    return config


def _validate_vision(vision: VisionConfig) -> None:
    for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size"):
        value = getattr(vision, name)
        require(value >= 1, f"model.vision.{name}", value, "at least 1")
    layer, depth = vision.feature_layer, vision.depth
    require(
        1 <= abs(layer) <= depth,
        "model.vision.feature_layer",
        layer,
        f"from 1 to {depth}, or from -1 to -{depth} counted from the end",
    )
    require(vision.head in ("none", "map"), "model.vision.head", vision.head, "none or map")
    require(
        vision.head == "none" or vision.blocks_run == depth,
        "model.vision.feature_layer",
        layer,
        "-1 with head = 'map', which pools what the last block gives",
    )


def _validate_quecc(model: ModelConfig, vision: VisionConfig) -> None:
    layers, used = model.quecc_layers, model.resampler == "quecc"
    require(
        bool(layers) == used and all(1 <= layer <= vision.blocks_run for layer in layers),
        "model.quecc_layers",
        layers,
        f"blocks from 1 to {vision.blocks_run}, at least one, with resampler = 'quecc'; else none",
    )
    if not used:
        return
    require(vision.head == "none", "model.vision.head", vision.head, "none with quecc")
    width, grid = vision.width, vision.grid
    require(
        width % QUECC_HEADS == 0, "model.vision.width", width, f"a multiple of {QUECC_HEADS} heads"
    )
    fits = [str(r * r) for r in range(1, grid + 1) if grid % r == 0]
    require(
        str(model.tokens_per_frame) in fits,
        "model.tokens_per_frame",
        model.tokens_per_frame,
        f"{', '.join(fits[:-1])} or {fits[-1]} with quecc, whose cells divide the {grid} × {grid} "
        "grid",
    )


def _validate_model(model: ModelConfig, vision: VisionConfig) -> None:
    require(model.num_frames >= 1, "model.num_frames", model.num_frames, "at least 1")
    _validate_vision(vision)
    tokens_side(model.tokens_per_frame, vision.out_grid)
    require(model.dtype in DTYPES, "model.dtype", model.dtype, " or ".join(DTYPES))
    require(model.unroll >= 1, "model.unroll", model.unroll, "at least 1")
    # Without a loop the compiler would keep what a policy wants computed again.
    require(
        model.unroll == 1 or model.remat == "none",
        "model.unroll",
        model.unroll,
        f"1 with remat = {model.remat!r}",
    )
    require(model.frame_chunk >= 0, "model.frame_chunk", model.frame_chunk, "0 (all) or above")
    for name, known in (
        ("resampler", RESAMPLERS),
        ("newline", NEWLINES),
        ("attention", ATTENTION),
        ("remat", REMAT),
    ):
        choose(dict.fromkeys(known), getattr(model, name), f"model.{name}")
    require(
        model.remat != "chunks" or model.frame_chunk > 0,
        "model.frame_chunk",
        model.frame_chunk,
        "above 0 with remat = 'chunks'",
    )
    _validate_quecc(model, vision)


def _validate_paths(config: TrainConfig) -> None:
    # Without this check, an unknown scheme such as `gcs://…` would become a local folder `gcs:`.
    data = {
        "data.annotations": config.data.annotations,
        "data.media_root": config.data.media_root,
    }
    for name, path in data.items():
        scheme, remote, _ = path.partition("://")
        known = not remote or scheme in SCHEMES
        buckets = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        require(known, name, path, f"a path, or one in a bucket: {buckets}")
    paths = {
        "out_dir": config.out_dir,
        "data.tokenizer": config.data.tokenizer,
        **{f"init[{part}]": path for part, path in config.init},
    }
    for name, path in paths.items():
        require(
            "://" not in path,
            name,
            path,
            "a path: mount the bucket on every host (gcsfuse for gs://) and give its path there",
        )


def _validate_data(data: DataConfig) -> None:
    prompts = ("llama3", "chatml", "plain")
    require(data.prompt in prompts, "data.prompt", data.prompt, "llama3, chatml or plain")
    require(data.mask in ("answers", "llava"), "data.mask", data.mask, "answers or llava")
    require(
        data.frame_sampling in ("uniform", "force"),
        "data.frame_sampling",
        data.frame_sampling,
        "uniform or force",
    )
    share = data.max_unreadable
    require(0 <= share <= 1, "data.max_unreadable", share, "a share from 0 to 1")
    seconds = data.max_read_seconds
    require(seconds > 0, "data.max_read_seconds", seconds, "above 0")
    for name, least in (("max_text_tokens", 1), ("frame_cache_mb", 0), ("read_threads", 0)):
        value = getattr(data, name)
        require(value >= least, f"data.{name}", value, f"{least} or above")
    buckets = data.text_buckets
    require(
        sorted({0, data.max_text_tokens, *buckets})
        in ([0, *buckets], [0, *buckets, data.max_text_tokens]),
        "data.text_buckets",
        buckets,
        f"ascending, from 1 to at most max_text_tokens = {data.max_text_tokens}",
    )
    n = data.num_examples
    require(n is None or n >= 1, "data.num_examples", n, "at least 1, or null for all")


def _validate_run(config: TrainConfig) -> None:
    check_seed("seed", config.seed)
    require(config.batch_size >= 1, "batch_size", config.batch_size, "at least 1")
    require(
        config.microbatches >= 1 and config.batch_size % config.microbatches == 0,
        "microbatches",
        config.microbatches,
        f"a divisor of batch_size = {config.batch_size}",
    )
    require(config.epochs >= 1, "epochs", config.epochs, "at least 1")
    require(
        config.loss_weighting in ("token", "sample"),
        "loss_weighting",
        config.loss_weighting,
        "token or sample",
    )
    for name in config.trackers:
        choose(dict.fromkeys(TRACKERS), name, "trackers")
    require(config.loss_chunk >= 0, "loss_chunk", config.loss_chunk, "0 (all) or above")
    require(config.log_every >= 1, "log_every", config.log_every, "at least 1")
    require(
        config.checkpoint_every >= 0,
        "checkpoint_every",
        config.checkpoint_every,
        "0 (only the last) or above",
    )
    kept, every = config.keep_checkpoints, config.keep_every
    require(kept >= 1, "keep_checkpoints", kept, "at least 1")
    require(
        every == 0 or every > 0 < config.checkpoint_every and every % config.checkpoint_every == 0,
        "keep_every",
        every,
        f"0 (none) or a multiple of checkpoint_every = {config.checkpoint_every}",
    )


def _validate_optim(optim: OptimConfig) -> None:
    require(0 <= optim.warmup < 1, "optim.warmup", optim.warmup, "a share from 0 to below 1")
    require(optim.clip_norm > 0, "optim.clip_norm", optim.clip_norm, "above 0")
    for name in ("b1", "b2"):
        value = getattr(optim, name)
        require(0 <= value < 1, f"optim.{name}", value, "from 0 to below 1")
    require(optim.eps > 0, "optim.eps", optim.eps, "above 0")
    require(optim.mu_dtype in DTYPES, "optim.mu_dtype", optim.mu_dtype, " or ".join(DTYPES))
    spike = optim.spike_factor
    require(spike == 0 or spike > 1, "optim.spike_factor", spike, "0 (never skip), or above 1")
    require(optim.max_skipped >= 1, "optim.max_skipped", optim.max_skipped, "at least 1")
    require(optim.weight_decay >= 0, "optim.weight_decay", optim.weight_decay, "0 or above")
    for pattern, rate in optim.learning_rates:
        require(rate >= 0, f"optim.learning_rates[{pattern}]", rate, "0 (frozen) or above")
        try:
            re.compile(pattern)
        except re.error as e:
            raise ConfigError(f"optim.learning_rates: {pattern!r} is no regex: {e}") from None
