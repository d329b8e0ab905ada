"""Every option of a model, a stage and a run, as frozen dataclasses. Imports no jax.

A config is a value: `override.py` changes a copy of it and writes and reads it as JSON,
`config_check.py` checks it. The JSON is saved in the folder of every run.
"""

import math
from dataclasses import dataclass, field


class ConfigError(ValueError):
    """A wrong option: the message is one line that names the field and what is allowed."""


RESAMPLERS = ("bilinear", "area", "antialias", "quecc")
"""Values of `ModelConfig.resampler`."""
QUECC_HEADS = 8
"""Attention heads of QueCC; the encoder's width is a multiple of it."""
TRACKERS = ("tensorboard", "wandb")
DTYPES = ("bfloat16", "float32")
"""Values of `ModelConfig.dtype` and `OptimConfig.mu_dtype`."""
ATTENTION = ("auto", "reference")
"""Values of `ModelConfig.attention`."""
REMAT = ("none", "products", "attention", "full", "chunks")
"""Values of `ModelConfig.remat`, from the fastest to the one that takes least memory."""
SCHEMES = ("gs", "s3")
"""Buckets that data may be read from, `gs://…` and `s3://…`."""
NEWLINES = ("none", "per-video", "per-frame", "grid")
"""Values of `ModelConfig.newline`."""


class Stopped(RuntimeError):
    """Work that stopped for a reason that the user can fix (bad files, divergence), in one line."""


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a SoViT, big_vision's ViT without a class token; `models/variants.py` names some."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int
    image_size: int
    feature_layer: int = -2
    """Block whose output the projector reads, without a final norm: 1 to depth, or −1 (the last)
    to −depth. LLaVA uses −2.
    """
    head: str = "none"
    """`none`, or `map`: the final norm and SigLIP's attention pooling after the last block, which
    give one feature a frame; needs feature_layer −1.
    """

    @property
    def grid(self) -> int:
        """Return the patches along one side (VALID convolution: remaining pixels are unused)."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Return the features a frame, P."""
        return self.grid**2

    @property
    def blocks_run(self) -> int:
        """Return the number of blocks that are built and run; later ones would get no gradient."""
        last = self.feature_layer
        return last if last > 0 else self.depth + 1 + last

    @property
    def out_grid(self) -> int:
        """Return the output features along one side: the grid, or 1 with a pooling head."""
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
    """Sizes of a Llama 3.x or Qwen2.5 decoder; `models/variants.py` names some."""

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
    """Rematerialisation: what each block of both towers keeps for the backward pass besides its
    input; the rest is computed again. `none` keeps everything; `products` the outputs of matrix
    products and attention that gradients need; `attention` only those of the attention half; `full`
    nothing; `chunks` is `full` and keeps only the pixels of each chunk of frames. On a CPU
    `products` is as fast as `none`.
    """
    unroll: int = 1
    """Blocks of a tower in one iteration of the loop over them; above 1 only with `remat = "none"`.
    With all blocks there is no loop: faster on a CPU, slower to compile.
    """
    frame_chunk: int = 0
    """Most frames a row that are encoded at once; 0 takes all."""
    resampler: str = "bilinear"
    """Method from the encoder's grid to x_V tokens: `bilinear` (the paper's, no antialiasing),
    `area` (each token averages its cell), `antialias` (bilinear with a widened kernel) or `quecc`
    (Li et al.: attention within each cell, conditioned on the question, before the projector).
    """
    quecc_layers: tuple[int, ...] = ()
    """Encoder blocks, from 1 to the feature layer, that give QueCC its keys and values."""
    newline: str = "none"
    """Learnt separators among a video's tokens: `none`, one after it (`per-video`), one after each
    frame (`per-frame`), or one after each of a frame's r rows (`grid`).
    """
    attention: str = "auto"
    """`auto`: for bfloat16, cuDNN's kernel on NVIDIA GPUs and Pallas' splash on TPUs; `reference`:
    plain products everywhere, which float32 always uses.
    """


@dataclass(frozen=True)
class DataConfig:
    """The source of examples, and how they become token ids and frames."""

    annotations: str = "data/train.json"
    """LLaVA-style JSON or JSONL: `id`, `conversations`, and `video`, `image` (a path or a list of
    paths), both or neither; or a folder that `vvlm prepare` made. On this machine or in a bucket,
    `gs://…`, `s3://…`.
    """
    media_root: str = "data"
    """Folder that `video` and `image` paths are relative to; also in a bucket."""
    tokenizer: str = "data/tokenizer"
    """A `tokenizer.json`, or a folder with one."""
    num_examples: int | None = None
    """n: the first n of a seeded order, so that smaller sets are subsets of larger ones; None takes
    all.
    """
    prompt: str = "llama3"
    """Chat format, `llama3` or `chatml` (Qwen), or `plain` (stage 1: the caption follows the
    image).
    """
    mask: str = "answers"
    """Tokens that count in the loss: `answers` alone, or as in LLaVA-NeXT (`llava`) also the
    assistant's header and every turn's special tokens.
    """
    system: str = ""
    """System message of the chat format; empty for none."""
    frame_sampling: str = "uniform"
    """`uniform` (1 frame a second, linspace when longer, repeats when shorter) or `force`
    (linspace).
    """
    max_text_tokens: int = 512
    """Most text tokens in a sequence; a longer example is an error, not silently cut."""
    text_buckets: tuple[int, ...] = ()
    """Smaller limits, ascending: a batch is padded to the smallest that holds its longest text.
    Each is compiled once.
    """
    frame_cache_mb: int = 0
    """Decoded frames kept in memory, MiB; 0 decodes every time."""
    read_threads: int = 4
    """Threads that decode and tokenise ahead of the train step."""
    max_unreadable: float = 0.01
    """Share of examples that may be unreadable, hence replaced, before the run stops."""
    max_read_seconds: float = 300.0
    """Seconds for one media file; one that takes longer counts as unreadable."""


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
    """Skip a step whose loss exceeds this many times the running mean of recent losses; 0 skips
    none. Steps whose loss or gradient is not finite are always skipped.
    """
    max_skipped: int = 5
    """Consecutive skipped steps at which the run stops and writes their batches to diverged.npz."""


@dataclass(frozen=True)
class TrainConfig:
    """One stage of training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    init: tuple[tuple[str, str], ...] = ()
    """(part, checkpoint folder): initial weights of `vision`, `projector`, `llm`; other parameters
    are random.
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
    """Trackers that get the metrics besides `metrics.jsonl`: `tensorboard`, `wandb`."""
    checkpoint_every: int = 500
    """Steps between checkpoints, besides the last; 0 keeps only the last."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that are kept while the stage runs."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are kept for good; 0 keeps none."""
    mesh: tuple[tuple[str, int], ...] = (("replica", 1), ("data", 1), ("fsdp", -1), ("tensor", 1))
    """Devices along each axis; a missing axis has 1, one −1 takes the rest. Batches are split over
     `replica` (slices of TPUs), `data` and `fsdp`; parameters over `fsdp` and `tensor`.
    """


def visual_length(num_frames: int, tokens_per_frame: int, newline: str = "none") -> int:
    """Return the positions that a video of T frames × V tokens takes, newlines included.

    T·V, and with newlines T·V + 1 (`per-video`), T·(V + 1) (`per-frame`) or T·r·(r + 1) (`grid`),
    as LLaVA-NeXT's `mm_newline_position` counts them. 0 without frames.
    """
    rows = math.isqrt(tokens_per_frame)
    newlines = {"none": 0, "per-video": 1, "per-frame": num_frames, "grid": num_frames * rows}
    return num_frames * tokens_per_frame + newlines[newline] if num_frames else 0
