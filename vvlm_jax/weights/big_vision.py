"""Map big_vision checkpoints (`.npz`) to our vision tower, and back.

Our parameters have the names of big_vision's scan layout, so the rules are SigLIP's with our names
on both sides. The loop layout has `encoderblock_0`, `encoderblock_1`, … in place of a leading depth
axis. As in big_vision's `utils.load_params`, the prefix `params/` (or `opt/target/`) is optional,
and `FILE.npz:img` names a subtree.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from vvlm_jax.config import VisionConfig
from vvlm_jax.models.variants import VISION
from vvlm_jax.weights.files import Npz
from vvlm_jax.weights.huggingface import SIGLIP, SIGLIP_HEAD, SIGLIP_NORM, vision_sizes
from vvlm_jax.weights.mapping import Entry, Rule, WeightsError, expand

BLOCK = "Transformer/encoderblock"


def entries(config: VisionConfig, prefix: str, scan: bool, norm: bool, head: bool) -> list[Entry]:
    """Return the entries of a checkpoint of this tower: `blocks_run` blocks, and optionally the
    final norm and the MAP head.
    """
    rules = []
    for rule in SIGLIP + SIGLIP_NORM * norm + SIGLIP_HEAD * head:
        axes = rule.axes.split(" -> ")[1]
        name = rule.ours
        if name.startswith(BLOCK) and scan:
            axes = f"L {axes}"
        elif name.startswith(BLOCK):
            name = name.replace(BLOCK, BLOCK + "_{i}")
        rules.append(Rule(name, rule.ours, f"{axes} -> {axes}"))
    sizes = vision_sizes(config) | {"L": config.blocks_run}
    return expand(rules, sizes, config.blocks_run, prefix, "vision/")


def split_path(path: str | Path) -> tuple[Path, str | None]:
    """Split `FILE.npz:img` into (FILE.npz, "img"); without a colon the subtree is None."""
    file, colon, subtree = str(path).rpartition(":")
    if colon and file.endswith(".npz"):
        return Path(file), subtree
    return Path(path), None


def inspect(reader: Npz, subtree: str | None):
    """Return (config, prefix, scan, norm, head) of the tower in a checkpoint, by names and shapes.

    A checkpoint has no image size, only a grid of patches: the image size is that of a known
    variant with this grid, or else grid × patch.

    Raises WeightsError when there is no tower.
    """
    prefix = _prefix(reader, subtree)
    names = {n.removeprefix(prefix): n for n in reader.infos if n.startswith(prefix)}
    scan = any(n.startswith(BLOCK + "/") for n in names)
    numbers = [int(m[1]) for n in names if (m := re.match(BLOCK + r"_(\d{1,9})/", n))]
    first = BLOCK if scan else BLOCK + "_0"

    def shape(name: str, dims: int) -> tuple[int, ...]:
        found = reader.infos[names[name]].shape if name in names else None
        if found is None or len(found) != dims or 0 in found:
            is_ = "is missing" if found is None else f"has shape {list(found)}"
            raise WeightsError(
                f"{reader.file}: {prefix}{name} {is_}; is this a SigLIP image tower?"
            )
        return found

    patch, _, _, width = shape("embedding/kernel", 4)
    query = shape(f"{first}/MultiHeadDotProductAttention_0/query/kernel", 3 + scan)
    mlp = shape(f"{first}/MlpBlock_0/Dense_0/kernel", 2 + scan)
    grid = round(shape("pos_embedding", 3)[1] ** 0.5)
    depth = query[0] if scan else max(numbers) + 1
    if not scan and depth > len(names):  # before as many entries are made
        raise WeightsError(f"{reader.file}: has {BLOCK}_{depth - 1}, and only {len(names)} tensors")
    head = "MAPHead_0/probe" in names
    config = VisionConfig(
        width=width,
        depth=depth,
        mlp_dim=mlp[-1],
        num_heads=query[-2],
        patch_size=patch,
        image_size=grid * patch,
        feature_layer=-1,
        head="map" if head else "none",
    )
    config = dataclasses.replace(config, image_size=_known_size(config))
    return config, prefix, scan, "Transformer/encoder_norm/scale" in names, head


def _known_size(config: VisionConfig) -> int:
    """Return the image size of a known variant: 384 for So400m/14 with 27 × 27 patches, not 378."""
    for known in VISION.values():
        names = ("width", "depth", "mlp_dim", "num_heads", "patch_size", "grid")
        if all(getattr(known, n) == getattr(config, n) for n in names):
            return known.image_size
    return config.image_size


def _prefix(reader: Npz, subtree: str | None) -> str:
    for root in ("params/", "opt/target/", ""):
        for tree in ("img/", "") if subtree is None else (f"{subtree}/" if subtree else "",):
            if f"{root}{tree}embedding/kernel" in reader.infos:
                return root + tree
    asked = "" if subtree is None else f" under {subtree!r}"
    raise WeightsError(
        f"{reader.file}: no image tower{asked} (no …embedding/kernel); name its subtree as "
        f"{reader.file}:SUBTREE"
    )


def resample_posemb(old_1PD: np.ndarray, grid: int) -> np.ndarray:
    """Resample [1, P, D] position embeddings to grid² patches.

    Bilinear with fixed centres of the corner patches (`align_corners`), without antialiasing, as in
    big_vision (`models/vit.py resample_posemb`: `scipy.ndimage.zoom(…, order=1)`).
    """
    width = old_1PD.shape[-1]
    old_grid = round((old_1PD.size // width) ** 0.5)
    x = np.asarray(old_1PD, np.float32).reshape(old_grid, old_grid, width)
    at = np.linspace(0, old_grid - 1, grid) if grid > 1 else np.zeros(1)
    low = np.minimum(at.astype(int), max(old_grid - 2, 0))
    high, share = np.minimum(low + 1, old_grid - 1), (at - low).astype(np.float32)
    for axis in (0, 1):
        weight = np.expand_dims(share, tuple(a for a in range(3) if a != axis))
        x = x.take(low, axis) * (1 - weight) + x.take(high, axis) * weight
    return x.reshape(1, grid * grid, width)
