"""Convert config.json of Hugging Face directories to our configs, and back.

Both spellings of transformers are read, v4's (`rope_scaling` and `rope_theta`, `torch_dtype`) and
v5's (`rope_parameters`, `dtype`); v4's is written, which both versions read. A setting that the
other side cannot express raises an error that names the field, and never becomes a default.
"""

import math
from pathlib import Path

from vvlm_jax.config import LlamaConfig, ModelConfig, RopeScaling, VisionConfig
from vvlm_jax.weights.files import read_json
from vvlm_jax.weights.huggingface import SKIP
from vvlm_jax.weights.mapping import DTYPES, WeightsError, short

MOST_PIXELS = 4096
"""Largest side of a tower's images."""


_SUPPORTED = (
    "not supported; take a vision tower (siglip, siglip_vision_model), a language model (llama, "
    "qwen2, which Qwen2.5 is too) or a whole model (llava_onevision)"
)


class _Fields:
    """A config.json, read field by field with errors that name the field."""

    def __init__(self, values: dict, where: str):
        self.values, self.where = values, where

    def wrong(self, name: str, value, allowed: str) -> WeightsError:
        return WeightsError(f"{self.where}: {name} = {short(value)}: {allowed}")

    def get(self, name: str, default):
        """Return a value; null counts as missing."""
        value = self.values.get(name)
        return default if value is None else value

    def size(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise self.wrong(name, value, "must be a positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.wrong(name, value, "must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "must be true or false")
        return value

    def must_be(self, name: str, only, default=None) -> None:
        value = self.values.get(name, default)
        if value != only:
            raise self.wrong(name, value, f"only {only!r} can be converted")

    def inner(self, name: str) -> "_Fields":
        if not isinstance(self.values.get(name), dict):
            raise WeightsError(f"{self.where}: has no {name}; copy or download it again")
        return _Fields(self.values[name], f"{self.where}: {name}")


def read_config(folder: str | Path) -> dict:
    """Read a folder's config.json. Raise WeightsError if it is missing, damaged or unsupported."""
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise WeightsError(f"{file}: no such file; a Hugging Face directory has one")
    values = read_json(file, "a config")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in SKIP:
        raise _Fields(values, str(file)).wrong("model_type", kind, _SUPPORTED)
    return values


def to_model_config(values: dict, where: str) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return (our config with towers as sizes, parts that the checkpoint holds).

    Raises WeightsError naming the first field that our model cannot express.
    """
    fields, kind = _Fields(values, where), values["model_type"]
    common = dict(dtype="float32" if _dtype(fields) == "float32" else "bfloat16")
    if kind in ("llama", "qwen2"):
        return ModelConfig(llm=_llama(fields), **common), ("llm",)
    if kind != "llava_onevision":
        tower = fields.inner("vision_config") if kind == "siglip" else fields
        return ModelConfig(vision=_siglip(tower), **common), ("vision",)
    fields.must_be("vision_feature_select_strategy", "full", "full")
    fields.must_be("projector_hidden_act", "gelu", "gelu")
    fields.must_be("multimodal_projector_bias", True, True)
    text, tower = fields.inner("text_config"), fields.inner("vision_config")
    for inner, kinds in ((tower, ("siglip_vision_model",)), (text, ("llama", "qwen2"))):
        if (kind := inner.values.get("model_type")) not in kinds:
            raise inner.wrong("model_type", kind, f"only {' or '.join(kinds)} is supported here")
    for part in (text, tower):
        _dtype(part)
    if fields.flag("tie_word_embeddings", False):
        text.values = text.values | {"tie_word_embeddings": True}
    vision = _siglip(tower, values.get("vision_feature_layer", -1))
    side = -(-vision.grid // 2)  # the class pools by two, rounding up
    model = ModelConfig(
        vision=vision, llm=_llama(text), tokens_per_frame=side**2, newline="per-video", **common
    )
    return model, ("vision", "projector", "llm", "newline")


def with_image_size(values: dict, image_size: int) -> dict:
    """Return the config with another image size of its tower."""
    if "vision_config" not in values:
        return values | {"image_size": image_size}
    return values | {"vision_config": values["vision_config"] | {"image_size": image_size}}


def _dtype(f: _Fields) -> str:
    """Return the dtype that the weights are stored in. Raise WeightsError for quantised weights."""
    for name in ("quantization_config", "compression_config"):
        if f.values.get(name) is not None:
            raise f.wrong(
                name, f.values[name], "quantised weights are not read; take the model they are from"
            )
    name = "dtype" if f.values.get("dtype") else "torch_dtype"
    value = f.get(name, "float32")
    if value not in DTYPES:
        raise f.wrong(name, value, f"only {', '.join(DTYPES)} can be converted")
    return value


def _siglip(f: _Fields, layer: int | None = None) -> VisionConfig:
    """Return a tower's sizes, with transformers' defaults for missing fields.

    Args:
      layer: transformers' index into hidden states, 0 being before the first block; None for a
        whole tower by itself.
    """
    f.must_be("hidden_act", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    f.must_be("layer_norm_eps", 1e-6, 1e-6)
    f.must_be("num_channels", 3, 3)
    depth = f.size("num_hidden_layers", 12)
    if layer is not None and (type(layer) is not int or not -depth <= layer <= depth):
        raise f.wrong("vision_feature_layer", layer, f"must be one layer, from -{depth} to {depth}")
    if layer == 0:
        raise f.wrong("vision_feature_layer", 0, "no block would run")
    has_head = f.flag("vision_use_head", True) and layer is None
    width, heads = f.size("hidden_size", 768), f.size("num_attention_heads", 12)
    if width % heads:
        raise f.wrong("num_attention_heads", heads, f"must divide hidden_size = {width}")
    pixels, patch = f.size("image_size", 224), f.size("patch_size", 16)
    if not patch <= pixels <= MOST_PIXELS:
        raise f.wrong("image_size", pixels, f"must be from patch_size = {patch} to {MOST_PIXELS}")
    return VisionConfig(
        width=width,
        depth=depth,
        mlp_dim=f.size("intermediate_size", 3072),
        num_heads=heads,
        patch_size=patch,
        image_size=pixels,
        feature_layer=-1 if layer is None else layer - depth - 1 if layer > 0 else layer,
        head="map" if has_head else "none",
    )


def _llama(f: _Fields) -> LlamaConfig:
    qwen = f.values["model_type"] == "qwen2"
    f.must_be("hidden_act", "silu", "silu")
    for name in ("attention_bias", "mlp_bias"):
        f.must_be(name, False, False)
    _every_layer_sees_all(f)
    width, heads = f.size("hidden_size", 4096), f.size("num_attention_heads", 32)
    kv_heads = f.size("num_key_value_heads", 32 if qwen else heads)
    if heads % kv_heads:
        raise f.wrong("num_key_value_heads", kv_heads, f"must divide num_attention_heads = {heads}")
    head_dim = f.size("head_dim", width // heads or None)
    if head_dim % 2:
        raise f.wrong("head_dim", head_dim, "must be even: rotary positions turn pairs")
    theta, scaling = _rope(f)
    return LlamaConfig(
        vocab=f.size("vocab_size", 151936 if qwen else 32000),
        width=width,
        depth=f.size("num_hidden_layers", 32),
        mlp_dim=f.size("intermediate_size", 22016 if qwen else 11008),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        tie_embeddings=f.flag("tie_word_embeddings", False),
        qkv_bias=qwen,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=f.number("rms_norm_eps", 1e-6),
        max_position=f.size("max_position_embeddings", 32768 if qwen else 2048),
    )


def _every_layer_sees_all(f: _Fields) -> None:
    """Raise WeightsError for sliding windows, from `layer_types` (v5) or the flags of v4."""
    depth, kinds = f.size("num_hidden_layers", 32), f.values.get("layer_types")
    full = "full_attention"
    if kinds is None:
        first = f.get("max_window_layers", 28)
        window = f.flag("use_sliding_window", False) and f.values.get("sliding_window", 4096)
        if window and (type(first) is not int or first < depth):
            raise f.wrong(
                "use_sliding_window", True,
                f"layers from max_window_layers = {first} on would slide; only full attention can "
                "be converted",
            )  # fmt: skip
    elif not isinstance(kinds, list) or len(kinds) != depth:
        raise f.wrong("layer_types", kinds, f"must be a list of num_hidden_layers = {depth} kinds")
    elif others := [kind for kind in kinds if kind != full]:
        raise f.wrong("layer_types", others[0], f"only {full!r} can be converted")


def _rope(f: _Fields) -> tuple[float, RopeScaling | None]:
    """Return (base, scaling), from the spelling of v5 or of v4."""
    name = "rope_parameters" if f.values.get("rope_parameters") else "rope_scaling"
    rope = _Fields(f.get(name, {}), f"{f.where}: {name}")
    if not isinstance(rope.values, dict) or any(isinstance(v, dict) for v in rope.values.values()):
        raise f.wrong(name, rope.values, "must be one set of numbers with their names")
    theta = (rope if rope.values.get("rope_theta") is not None else f).number("rope_theta", 1e4)
    kind = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", f.get("partial_rotary_factor", 1.0))
    if kind not in ("default", "llama3") or partial != 1.0:
        raise WeightsError(
            f"{f.where}: rope_type = {short(kind)}, partial_rotary_factor = {short(partial)}: only "
            "default and llama3, whole heads, can be converted"
        )
    if kind == "default":
        return theta, None
    numbers = [rope.number(n) for n in ("factor", "low_freq_factor", "high_freq_factor")]
    of = "original_max_position_embeddings"
    known = rope.values.get(of) is not None
    return theta, RopeScaling(
        *numbers, rope.size(of) if known else f.size(of.removeprefix("original_"))
    )


def check_onevision(model: ModelConfig) -> None:
    """Raise WeightsError when LlavaOnevisionForConditionalGeneration cannot express a setting."""
    if model.vision.head != "none":
        raise WeightsError(
            f"model.vision.head = {model.vision.head!r}: LlavaOnevisionForConditionalGeneration "
            "reads patches, not one pooled feature"
        )
    side = -(-model.vision.grid // 2)
    for name, only, why in (
        ("resampler", "bilinear", "pools bilinearly"),
        ("tokens_per_frame", side**2, "pools the grid by two"),
        ("newline", "per-video", "puts one newline after each video"),
    ):
        if (value := getattr(model, name)) != only:
            raise WeightsError(
                f"model.{name} = {value!r}: LlavaOnevisionForConditionalGeneration {why}, so it "
                f"can express only {only!r}; --part vision or --part llm writes one tower"
            )


def from_model_config(model: ModelConfig, parts, dtype: str, head: bool, tokens: dict) -> dict:
    """Return the config.json of the class that holds `parts`.

    Args:
      tokens: ids `bos`, `eos`, `video` of the tokenizer, where known.

    Raises WeightsError when the placeholder's id is needed and unknown.
    """
    common = {"torch_dtype": dtype}
    if set(parts) == {"llm"}:
        return _llama_json(model.llm, tokens) | common
    if set(parts) == {"vision"}:
        return _siglip_json(model.vision, head) | common
    if "video" not in tokens:
        raise WeightsError(
            "LlavaOnevisionForConditionalGeneration needs the placeholder's id: put a "
            "tokenizer.json that has <|reserved_special_token_0|> or <|video_pad|> into the "
            "model's folder"
        )
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "vision_config": _siglip_json(model.vision, head=False),
        "text_config": _llama_json(model.llm, tokens) | common,
        # We have one placeholder, for images and videos alike.
        "image_token_index": tokens["video"],
        "video_token_index": tokens["video"],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "tie_word_embeddings": model.llm.tie_embeddings,
    } | common


def _siglip_json(c: VisionConfig, head: bool) -> dict:
    return {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "hidden_size": c.width,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.blocks_run,
        "num_attention_heads": c.num_heads,
        "num_channels": 3,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "vision_use_head": head,
    }


def _llama_json(c: LlamaConfig, tokens: dict) -> dict:
    scaling = None
    if (s := c.rope_scaling) is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_max_position,
        }
    kind = ("Qwen2ForCausalLM", "qwen2") if c.qkv_bias else ("LlamaForCausalLM", "llama")
    values = {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.max_position,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": tokens.get("bos"),
        "eos_token_id": tokens.get("eos"),
    }
    if c.qkv_bias:
        if c.head_dim * c.num_heads != c.width:
            raise WeightsError(
                f"model.llm.head_dim = {c.head_dim}: Qwen2ForCausalLM has width / heads = "
                f"{c.width // c.num_heads}"
            )
        del values["head_dim"]
        values["use_sliding_window"] = False
    return values
