"""Rules for tensor names of SigLIP, Llama, Qwen2 and LLaVA-OneVision in Hugging Face directories.

They are those of transformers (`modeling_siglip.py`, `modeling_llama.py`,
`modeling_llava_onevision.py`). Its versions differ only in prefixes, which are detected.
"""

from typing import NamedTuple

from vvlm_jax.config import LlamaConfig, ModelConfig, VisionConfig
from vvlm_jax.weights.mapping import Entry, Rule, expand

_BLOCK, _MAP = "Transformer/encoderblock/", "MAPHead_0/"


def _attention(theirs: str, ours: str):
    """Yield the rules of a SigLIP block's attention."""
    for name, our in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        yield Rule(f"{theirs}{name}.weight", f"{ours}{our}/kernel", "(N H) D -> D N H")
        yield Rule(f"{theirs}{name}.bias", f"{ours}{our}/bias", "(N H) -> N H")
    yield from _out_projection(theirs, ours)


def _out_projection(theirs: str, ours: str):
    yield Rule(f"{theirs}out_proj.weight", f"{ours}out/kernel", "D (N H) -> N H D")
    yield Rule(f"{theirs}out_proj.bias", f"{ours}out/bias")


def _norm(theirs: str, ours: str):
    yield Rule(f"{theirs}.weight", f"{ours}/scale")
    yield Rule(f"{theirs}.bias", f"{ours}/bias")


def _mlp(theirs: str, ours: str):
    yield Rule(f"{theirs}fc1.weight", f"{ours}Dense_0/kernel", "F D -> D F")
    yield Rule(f"{theirs}fc1.bias", f"{ours}Dense_0/bias", "F -> F")
    yield Rule(f"{theirs}fc2.weight", f"{ours}Dense_1/kernel", "D F -> F D")
    yield Rule(f"{theirs}fc2.bias", f"{ours}Dense_1/bias")


SIGLIP = (
    Rule("embeddings.patch_embedding.weight", "embedding/kernel", "D C Y X -> Y X C D"),
    Rule("embeddings.patch_embedding.bias", "embedding/bias"),
    Rule("embeddings.position_embedding.weight", "pos_embedding", "P D -> 1 P D"),
    *_norm("encoder.layers.{i}.layer_norm1", _BLOCK + "LayerNorm_0"),
    *_norm("encoder.layers.{i}.layer_norm2", _BLOCK + "LayerNorm_1"),
    *_attention("encoder.layers.{i}.self_attn.", _BLOCK + "MultiHeadDotProductAttention_0/"),
    *_mlp("encoder.layers.{i}.mlp.", _BLOCK + "MlpBlock_0/"),
)
"""Rules of the tower up to its last block."""

SIGLIP_NORM = tuple(_norm("post_layernorm", "Transformer/encoder_norm"))

SIGLIP_HEAD = (
    Rule("head.probe", _MAP + "probe", "1 1 D -> 1 1 D"),
    *(
        rule
        for k, our in enumerate(("query", "key", "value"))
        for rule in (
            Rule(
                "head.attention.in_proj_weight",
                f"{_MAP}MultiHeadDotProductAttention_0/{our}/kernel",
                "(N H) D -> D N H",
                (k, 3),
            ),
            Rule(
                "head.attention.in_proj_bias",
                f"{_MAP}MultiHeadDotProductAttention_0/{our}/bias",
                "(N H) -> N H",
                (k, 3),
            ),
        )
    ),
    *_out_projection("head.attention.", _MAP + "MultiHeadDotProductAttention_0/"),
    *_norm("head.layernorm", _MAP + "LayerNorm_0"),
    *_mlp("head.mlp.", _MAP + "MlpBlock_0/"),
)
"""Rules of the MAP head, a torch MultiheadAttention with q, k, v in one tensor, and its MLP."""

_LAYER = "layers.{i}."
LLAMA = (
    Rule("embed_tokens.weight", "embed/embedding", "V D -> V D"),
    Rule(_LAYER + "input_layernorm.weight", "layers/attn_norm/scale"),
    Rule(_LAYER + "self_attn.q_proj.weight", "layers/attn/q/kernel", "(N H) D -> D N H"),
    Rule(_LAYER + "self_attn.k_proj.weight", "layers/attn/k/kernel", "(K H) D -> D K H"),
    Rule(_LAYER + "self_attn.v_proj.weight", "layers/attn/v/kernel", "(K H) D -> D K H"),
    Rule(_LAYER + "self_attn.o_proj.weight", "layers/attn/o/kernel", "D (N H) -> N H D"),
    Rule(_LAYER + "post_attention_layernorm.weight", "layers/mlp_norm/scale"),
    Rule(_LAYER + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", "F D -> D F"),
    Rule(_LAYER + "mlp.up_proj.weight", "layers/mlp/up/kernel", "F D -> D F"),
    Rule(_LAYER + "mlp.down_proj.weight", "layers/mlp/down/kernel", "D F -> F D"),
    Rule("norm.weight", "norm/scale"),
)
QKV_BIAS = (
    Rule(_LAYER + "self_attn.q_proj.bias", "layers/attn/q/bias", "(N H) -> N H"),
    Rule(_LAYER + "self_attn.k_proj.bias", "layers/attn/k/bias", "(K H) -> K H"),
    Rule(_LAYER + "self_attn.v_proj.bias", "layers/attn/v/bias", "(K H) -> K H"),
)
"""Qwen2's attention biases."""
HEAD = (Rule("lm_head.weight", "lm_head/kernel", "V D -> D V"),)
TIED_HEAD = (Rule("lm_head.weight", "embed/embedding", "V D -> V D", copy=True),)
"""Some files contain the tied matrix twice."""

PROJECTOR = (
    Rule("linear_1.weight", "fc1/kernel", "E D -> D E"),
    Rule("linear_1.bias", "fc1/bias", "E -> E"),
    Rule("linear_2.weight", "fc2/kernel", "O E -> E O"),
    Rule("linear_2.bias", "fc2/bias", "O -> O"),
)
NEWLINE = (Rule("image_newline", "newline"),)


class Prefixes(NamedTuple):
    """Prefixes of the tensor names of each part."""

    vision: str
    llm: str
    head: str
    projector: str
    newline: str


TOWER = Prefixes("vision_model.", "model.", "", "", "")
"""Those of `SiglipModel`, v4's `SiglipVisionModel`, and `LlamaForCausalLM`."""
ONEVISION = Prefixes(
    "vision_tower.vision_model.", "language_model.model.", "language_model.",
    "multi_modal_projector.", "",
)  # fmt: skip
"""Those of v4's `LlavaOnevisionForConditionalGeneration`; v5 reads them, too."""
_KNOWN = {
    False: Prefixes(("vision_model.", ""), ("model.", ""), ("",), ("",), ("",)),
    True: Prefixes(
        (ONEVISION.vision, "vision_tower.", "model.vision_tower.vision_model.",
         "model.vision_tower."),
        (ONEVISION.llm, "model.language_model."), (ONEVISION.head, ""),
        (ONEVISION.projector, "model.multi_modal_projector."), ("", "model."),
    ),
}  # fmt: skip
_ANCHORS = Prefixes(
    "embeddings.patch_embedding.weight", "embed_tokens.weight", "lm_head.weight",
    "linear_1.weight", "image_newline",
)  # fmt: skip

_BUFFERS = r".*\.(position_ids|rotary_emb\.inv_freq)"
_BESIDE_TOWER = r"text_model\..*|logit_scale|logit_bias"
SKIP = {
    "siglip": f"{_BUFFERS}|{_BESIDE_TOWER}",
    "siglip_vision_model": f"{_BUFFERS}|{_BESIDE_TOWER}",
    "llama": _BUFFERS,
    "qwen2": _BUFFERS,
    # Parts after the features that the language model reads: the final norm, the pooling head.
    "llava_onevision": _BUFFERS
    + r"|(model\.)?vision_tower\.(vision_model\.)?(post_layernorm|head)\..*",
}
"""Tensors that are allowed and ignored, by model type."""


def find_prefixes(names, whole: bool) -> Prefixes:
    """Return the prefixes that a checkpoint uses; the first known one of a part that it lacks."""
    return Prefixes(
        *(
            next((p for p in known if p + anchor in names), known[0])
            for known, anchor in zip(_KNOWN[whole], _ANCHORS, strict=True)
        )
    )


def vision_sizes(c: VisionConfig) -> dict[str, int]:
    """Return the sizes of the letters in the tower's rules."""
    return dict(
        D=c.width, F=c.mlp_dim, N=c.num_heads, H=c.width // c.num_heads, P=c.num_patches,
        C=3, Y=c.patch_size, X=c.patch_size,
    )  # fmt: skip


def vision_entries(c: VisionConfig, prefix: str, norm: bool, head: bool) -> list[Entry]:
    """Return the entries of a tower's `blocks_run` blocks, optionally with norm and MAP head."""
    rules = SIGLIP + SIGLIP_NORM * norm + SIGLIP_HEAD * head
    return expand(rules, vision_sizes(c), c.blocks_run, prefix, "vision/")


def llm_entries(c: LlamaConfig, prefix: str, head: str) -> list[Entry]:
    """Return the entries of a language model; `head` is the prefix of its `lm_head`."""
    sizes = dict(
        V=c.vocab, D=c.width, F=c.mlp_dim, N=c.num_heads, K=c.num_kv_heads, H=c.head_dim
    )  # fmt: skip
    trunk = expand(LLAMA + QKV_BIAS * c.qkv_bias, sizes, c.depth, prefix, "llm/")
    return trunk + expand(TIED_HEAD if c.tie_embeddings else HEAD, sizes, 0, head, "llm/")


def entries(model: ModelConfig, parts, prefixes: Prefixes, norm: bool, head: bool) -> list[Entry]:
    """Return the entries of `parts` of a model whose towers are given as sizes."""
    found: list[Entry] = []
    width = model.llm.width if isinstance(model.llm, LlamaConfig) else 0
    if "vision" in parts:
        found += vision_entries(model.vision, prefixes.vision, norm, head)
    if "projector" in parts:
        sizes = dict(D=model.vision.width, E=width, O=width)
        found += expand(PROJECTOR, sizes, 0, prefixes.projector, "projector/")
    if "llm" in parts:
        found += llm_entries(model.llm, prefixes.llm, prefixes.head)
    if "newline" in parts:
        found += expand(NEWLINE, dict(D=width), 0, prefixes.newline)
    return found
