"""The whole model in torch and transformers, with our weights, and its optimiser step.

What `bench_train` measures against: SiglipVisionModel up to the feature layer, LLaVA's projector,
bilinear interpolation, the splice, LlamaForCausalLM, all as a practised user would run them:
float32 master weights, autocast to bfloat16, fused AdamW, logits at supervised positions only.
"""

import functools
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tools.bench.bench_model import llama
from tools.bench.bench_train import PREFIX, Step, built_model, rates, towers
from vvlm_jax.config import TrainConfig, VisionConfig


class Reference(nn.Module):
    """The torch model: frames and tokens to the mean loss of the answers."""

    def __init__(self, tower, projector, llm, side: int, half: bool):
        super().__init__()
        self.vision, self.projector, self.llm = tower, projector, llm
        self.side, self.half = side, half

    def forward(self, tokens_BL, frames_BTHWC, at_A, target_A):
        """Return the mean cross-entropy at the flat positions `at_A` of [B · L]."""
        B, T = frames_BTHWC.shape[:2]
        with torch.autocast(tokens_BL.device.type, torch.bfloat16, enabled=self.half):
            pixels = frames_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
            x = self.vision.embeddings(pixels)
            x = self.projector(self.vision.encoder(inputs_embeds=x).last_hidden_state)
            visual = interpolate(x, self.side).reshape(B, T * self.side**2, -1)
            text = self.llm.get_input_embeddings()(tokens_BL)
            end = PREFIX + visual.shape[1]
            x = torch.cat([text[:, :PREFIX], visual.to(text.dtype), text[:, end:]], 1)
            x = self.llm.model(inputs_embeds=x, use_cache=False).last_hidden_state
            logits = self.llm.lm_head(x.flatten(0, 1)[at_A])
        return F.cross_entropy(logits.float(), target_A)


def interpolate(x_BPD, side: int):
    """Resize [B, g², D] to [B, side², D], as LLaVA-NeXT pools."""
    B, P, D = x_BPD.shape
    grid = round(P**0.5)
    x = x_BPD.reshape(B, grid, grid, D).permute(0, 3, 1, 2)
    x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=False)
    return x.permute(0, 2, 3, 1).reshape(B, side * side, D)


def siglip(params, config: VisionConfig, attention: str):
    """Return a SiglipVisionModel with the weights of our SoViT, without copies."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    to, D = torch.from_dlpack, config.width
    blocks = params["Transformer"]["encoderblock"]
    heads, mlp = blocks["MultiHeadDotProductAttention_0"], blocks["MlpBlock_0"]
    tensors = {
        "embeddings.patch_embedding.weight": to(params["embedding"]["kernel"]).permute(3, 2, 0, 1),
        "embeddings.patch_embedding.bias": to(params["embedding"]["bias"]),
        "embeddings.position_embedding.weight": to(params["pos_embedding"])[0],
    }
    for i in range(config.blocks_run):
        at = f"encoder.layers.{i}."
        for theirs, norm in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1")):
            tensors[f"{at}{theirs}.weight"] = to(blocks[norm]["scale"])[i]
            tensors[f"{at}{theirs}.bias"] = to(blocks[norm]["bias"])[i]
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            kernel = to(heads[ours]["kernel"])[i]  # [D, N, H], and of `out` [N, H, D]
            tensors[f"{at}self_attn.{theirs}_proj.weight"] = kernel.reshape(D, D).T
            tensors[f"{at}self_attn.{theirs}_proj.bias"] = to(heads[ours]["bias"])[i].reshape(D)
        for theirs, ours in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            tensors[f"{at}mlp.{theirs}.weight"] = to(mlp[ours]["kernel"])[i].T
            tensors[f"{at}mlp.{theirs}.bias"] = to(mlp[ours]["bias"])[i]
    described = SiglipVisionConfig(
        hidden_size=D, intermediate_size=config.mlp_dim, num_hidden_layers=config.blocks_run,
        num_attention_heads=config.num_heads, image_size=config.image_size,
        patch_size=config.patch_size, vision_use_head=False, attn_implementation=attention,
    )  # fmt: skip
    with torch.device(tensors["embeddings.patch_embedding.bias"].device):
        model = SiglipVisionModel(described)
    model.post_layernorm = nn.Identity()  # behind the features that are read
    return filled(model, tensors)


def projector(params):
    """Return LLaVA's `mlp2x_gelu` with our weights."""
    to = torch.from_dlpack
    kernels = [to(params[name]["kernel"]) for name in ("fc1", "fc2")]
    biases = [to(params[name]["bias"]) for name in ("fc1", "fc2")]
    with torch.device(biases[0].device):
        first, second = (nn.Linear(*kernel.shape) for kernel in kernels)
    tensors = {"0.weight": kernels[0].T, "0.bias": biases[0]}
    tensors |= {"2.weight": kernels[1].T, "2.bias": biases[1]}
    return filled(nn.Sequential(first, nn.GELU(), second), tensors)


def filled(module, tensors):
    """Return `module` with copies of these parameters, which must be all that it has."""
    module.load_state_dict(tensors, strict=True)
    return module


def reference(config: TrainConfig, params, attention: str, checkpoint: bool) -> Reference:
    """Return the model with our parameters {vision, projector, llm}; it copies them."""
    vision, described = towers(config)
    tower = siglip(params["vision"], vision, attention)
    llm = llama(described, params["llm"], attention)
    model = Reference(
        tower,
        projector(params["projector"]),
        llm,
        round(config.model.tokens_per_frame**0.5),
        config.model.dtype == "bfloat16",
    )
    if checkpoint:
        for part in (tower, llm):
            older = part.gradient_checkpointing_enable  # its name in older transformers
            enable = getattr(part, "activation_checkpointing_enable", older)
            enable({"use_reentrant": False})
    return model.train()


def side(config: TrainConfig, batch, name: str, device: str, checkpoint: bool, threads: int):
    """Return {step, peak} of `eager`, `sdpa` or `compiled`, as `bench_train` asks for them."""
    import jax

    from vvlm_jax.models import vlm

    torch.set_num_threads(threads)
    params = jax.jit(functools.partial(vlm.init, built_model(config)))(jax.random.key(config.seed))
    model = reference(config, params, "eager" if name == "eager" else "sdpa", checkpoint)
    del params
    if device == "gpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    where = {"cpu": "cpu", "gpu": "cuda"}[device]
    parts = [on_host(part) for part in split(batch, config.microbatches)]
    optimiser, trained = adamw(config, model)
    loss_of = torch.compile(model, dynamic=False) if name == "compiled" else model

    def step():
        start, cpu = time.perf_counter(), time.process_time()
        optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for part in parts:
            loss = loss_of(*(x.to(where) for x in part)) / len(parts)  # all have as many answers
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(trained, config.optim.clip_norm)
        optimiser.step()
        if device == "gpu":
            torch.cuda.synchronize()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return Step(float(total), float(norm), seconds, cpu)

    def peak():
        return torch.cuda.max_memory_allocated() if device == "gpu" else None

    return {"step": step, "peak": peak}


def split(batch, microbatches: int):
    """Split the rows of a batch into `count` parts."""
    size = len(batch.tokens_BL) // microbatches
    for start in range(0, len(batch.tokens_BL), size):
        yield [None if x is None else x[start : start + size] for x in batch]


def on_host(part) -> list[torch.Tensor]:
    """Return [tokens, frames, flat answer positions, targets] of some rows of a batch."""
    tokens_BL, position_BM, target_BM, weight_BM, frames_BTHWC, *_ = part
    flat_BM = np.arange(len(tokens_BL))[:, None] * tokens_BL.shape[1] + position_BM
    is_answer = weight_BM > 0
    ids = (tokens_BL, flat_BM[is_answer], target_BM[is_answer])
    tokens, at, target = (torch.from_numpy(x.astype(np.int64)) for x in ids)
    return [tokens, torch.from_numpy(frames_BTHWC), at, target]


def adamw(config: TrainConfig, model: Reference):
    """Return (fused AdamW with one rate a part, its parameters); frozen parts get no gradient."""
    groups, o = [], config.optim
    for part, rate in rates(config).items():
        parameters = list(getattr(model, part).parameters())
        if rate > 0:
            groups.append({"params": parameters, "lr": rate})
        else:
            getattr(model, part).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        groups, betas=(o.b1, o.b2), eps=o.eps, weight_decay=o.weight_decay, fused=True
    )
    return optimiser, [p for group in groups for p in group["params"]]
