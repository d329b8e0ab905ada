"""Reference models of transformers and torch, filled with weights of this package's models."""

import jax
import numpy as np

from vvlm_jax.config import LlamaConfig, VisionConfig


def varied(params, seed=0):
    """Return parameters with noise added, so that biases and scales are not 0 and 1."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noisy = [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, noisy)


def assert_close(ours, theirs):
    """Assert equality to 1e-4 of the reference's largest value."""
    theirs = theirs.detach().numpy()
    assert np.shape(ours) == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


def load(module, arrays, assign=False):
    """Load arrays into a torch module; only the tower's unused final norm may be missing.

    With `assign` the module shares the memory of float32 NumPy arrays.
    """
    import torch

    if not assign:
        arrays = {k: np.array(x, dtype=np.float32) for k, x in arrays.items()}
    state = {k: torch.from_numpy(x) for k, x in arrays.items()}
    missing, unexpected = module.load_state_dict(state, strict=False, assign=assign)
    assert unexpected == []
    assert all(name.startswith("post_layernorm") for name in missing), missing
    return module.eval()


def siglip(params, config: VisionConfig, assign=False):
    """Return a SiglipVisionModel with the weights of a SoViT; `assign` shares their memory."""
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    with torch.device("meta" if assign else "cpu"):
        model = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=config.width, intermediate_size=config.mlp_dim,
                num_hidden_layers=config.blocks_run, num_attention_heads=config.num_heads,
                image_size=config.image_size, patch_size=config.patch_size,
                vision_use_head=config.head == "map", attn_implementation="eager",
            )
        )  # fmt: skip
    if assign:  # not a weight, so not loaded
        model.embeddings.position_ids = torch.arange(config.num_patches)[None]
    blocks, D = params["Transformer"]["encoderblock"], config.width
    arrays = {
        "embeddings.patch_embedding.weight": params["embedding"]["kernel"].transpose(3, 2, 0, 1),
        "embeddings.patch_embedding.bias": params["embedding"]["bias"],
        "embeddings.position_embedding.weight": params["pos_embedding"][0],
    }
    attention, mlp = blocks["MultiHeadDotProductAttention_0"], blocks["MlpBlock_0"]
    for i in range(config.blocks_run):
        at = f"encoder.layers.{i}."
        for theirs, norm in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1")):
            arrays[f"{at}{theirs}.weight"] = blocks[norm]["scale"][i]
            arrays[f"{at}{theirs}.bias"] = blocks[norm]["bias"][i]
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            arrays[f"{at}self_attn.{theirs}.weight"] = attention[ours]["kernel"][i].reshape(D, D).T
            arrays[f"{at}self_attn.{theirs}.bias"] = attention[ours]["bias"][i].reshape(D)
        arrays[f"{at}self_attn.out_proj.weight"] = attention["out"]["kernel"][i].reshape(D, D).T
        arrays[f"{at}self_attn.out_proj.bias"] = attention["out"]["bias"][i]
        for theirs, ours in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{at}mlp.{theirs}.weight"] = mlp[ours]["kernel"][i].T
            arrays[f"{at}mlp.{theirs}.bias"] = mlp[ours]["bias"][i]
    if config.head == "map":
        arrays |= siglip_head(params, D)
    return load(model, arrays, assign)


def siglip_head(params, D):
    """Return the weights of the final norm and attention pooling by transformers' names."""
    norm, head = params["Transformer"]["encoder_norm"], params["MAPHead_0"]
    attention, mlp = head["MultiHeadDotProductAttention_0"], head["MlpBlock_0"]
    qkv = [attention[name] for name in ("query", "key", "value")]
    arrays = {
        "post_layernorm.weight": norm["scale"],
        "post_layernorm.bias": norm["bias"],
        "head.probe": head["probe"],
        "head.attention.in_proj_weight": np.concatenate([x["kernel"].reshape(D, D).T for x in qkv]),
        "head.attention.in_proj_bias": np.concatenate([x["bias"].reshape(D) for x in qkv]),
        "head.attention.out_proj.weight": attention["out"]["kernel"].reshape(D, D).T,
        "head.attention.out_proj.bias": attention["out"]["bias"],
        "head.layernorm.weight": head["LayerNorm_0"]["scale"],
        "head.layernorm.bias": head["LayerNorm_0"]["bias"],
    }
    for theirs, ours in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
        arrays[f"head.mlp.{theirs}.weight"] = mlp[ours]["kernel"].T
        arrays[f"head.mlp.{theirs}.bias"] = mlp[ours]["bias"]
    return arrays


def llama(params, config: LlamaConfig):
    """Return a LlamaForCausalLM with these weights, or Qwen2ForCausalLM with biases on q, k, v."""
    import transformers

    rope = dict(rope_type="default", rope_theta=config.rope_theta)
    if (s := config.rope_scaling) is not None:
        rope |= dict(
            rope_type="llama3", factor=s.factor, low_freq_factor=s.low_freq_factor,
            high_freq_factor=s.high_freq_factor,
            original_max_position_embeddings=s.original_max_position,
        )  # fmt: skip
    family = "Qwen2" if config.qkv_bias else "Llama"
    model = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(
            vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.mlp_dim,
            num_hidden_layers=config.depth, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
            tie_word_embeddings=config.tie_embeddings, rms_norm_eps=config.norm_eps,
            max_position_embeddings=4096, rope_parameters=rope, attn_implementation="eager",
            bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    layers, D = params["layers"], config.width
    embedding = params["embed"]["embedding"]
    head = embedding if config.tie_embeddings else params["lm_head"]["kernel"].T
    arrays = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": params["norm"]["scale"],
        "lm_head.weight": head,
    }
    for i in range(config.depth):
        at = f"model.layers.{i}."
        arrays[f"{at}input_layernorm.weight"] = layers["attn_norm"]["scale"][i]
        arrays[f"{at}post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][i]
        for name in "qkv":
            kernel = layers["attn"][name]["kernel"][i]
            arrays[f"{at}self_attn.{name}_proj.weight"] = kernel.reshape(D, -1).T
            if config.qkv_bias:
                bias = layers["attn"][name]["bias"][i]
                arrays[f"{at}self_attn.{name}_proj.bias"] = bias.reshape(-1)
        arrays[f"{at}self_attn.o_proj.weight"] = layers["attn"]["o"]["kernel"][i].reshape(-1, D).T
        for name in ("gate", "up", "down"):
            arrays[f"{at}mlp.{name}_proj.weight"] = layers["mlp"][name]["kernel"][i].T
    return load(model, arrays)


def mlp2x_gelu(params):
    """Return LLaVA's projector as a torch module."""
    from torch import nn

    fc1, fc2 = params["fc1"], params["fc2"]
    (d_in, width), d_out = fc1["kernel"].shape, fc2["kernel"].shape[1]
    model = nn.Sequential(nn.Linear(d_in, width), nn.GELU(), nn.Linear(width, d_out))
    arrays = {"0.weight": fc1["kernel"].T, "0.bias": fc1["bias"]}
    return load(model, arrays | {"2.weight": fc2["kernel"].T, "2.bias": fc2["bias"]})


def interpolate(x_BPD, side):
    """Resample a torch tensor [B, g², D] to [B, side², D] as LLaVA-NeXT does."""
    import torch.nn.functional as F

    B, P, D = x_BPD.shape
    grid = round(P**0.5)
    x = x_BPD.reshape(B, grid, grid, D).permute(0, 3, 1, 2)
    x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=False)
    return x.permute(0, 2, 3, 1).reshape(B, side * side, D)


def run_siglip(params, config, pixels_BHWC, assign=False):
    """Return (outputs of the embedding and of each block, before the final norm; all outputs)."""
    import torch

    tower = siglip(params, config, assign)
    pixels = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
    with torch.no_grad():
        out = tower(pixels, output_hidden_states=True)
    return out.hidden_states, out
