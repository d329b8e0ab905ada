"""Peak rates of accelerators, as their makers state them."""

_PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Start of jax's `device_kind` → dense bfloat16 FLOP/s of one chip. The longest match counts."""


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a chip; None for one that is not known, such as a CPU."""
    known = [name for name in _PEAK_BF16 if device_kind.startswith(name)]
    return _PEAK_BF16[max(known, key=len)] if known else None


def known_devices() -> tuple[str, ...]:
    """Names that `peak_flops` knows."""
    return tuple(_PEAK_BF16)
