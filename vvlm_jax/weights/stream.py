"""Stream tensors from a file into device memory, a piece at a time.

A large parameter is allocated once on each of its devices and filled in place by a compiled update
with a donated buffer, which also splits, transposes and casts. The host holds one piece of one
tensor at a time: the layers of a scanned stack are never stacked on the host.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from vvlm_jax.weights.mapping import Entry

PIECE_BYTES = 4 * 2**20
"""Most bytes read at once, unless a single row has more. Small, so that a piece is transposed
within a core's cache.
"""


def fill(entries: list[Entry], like: dict, reader, replaced=None, on_tensor=None) -> dict:
    """Return {path: array} of all parameters in `like`, read from a checkpoint.

    Args:
      entries: the tensors to read, checked by `mapping.account`.
      like: {path: array or ShapeDtypeStruct}; dtype and sharding are those of the result. Without a
        sharding, the default device.
      reader: `read(name, start, count)` as in `files`.
      replaced: {their name: array} to use in place of the file's (a resized embedding).
      on_tensor: called with the number of tensors read so far.
    """
    by_path: dict[str, list[Entry]] = {path: [] for path in like}
    for entry in entries:
        if not entry.rule.copy:
            by_path[entry.ours].append(entry)
    filled, done = {}, 0
    for path, parts in by_path.items():
        small = math.prod(like[path].shape) * like[path].dtype.itemsize <= PIECE_BYTES
        target = _HostTarget(like[path]) if small else _DeviceTarget(like[path])
        for entry in parts:
            if replaced and entry.theirs in replaced:
                target.write(entry, 0, replaced[entry.theirs].reshape(entry.split))
            else:
                _copy(entry, reader, target)
            done += 1
            if on_tensor:
                on_tensor(done)
        filled[path] = target.result()
    return filled


def _copy(entry: Entry, reader, target) -> None:
    """Copy one tensor, some rows of its first axis at a time."""
    rows, row_size = entry.split[0], int(np.prod(entry.split[1:]))
    begin = entry.rule.part[0] * rows * row_size
    step = max(1, PIECE_BYTES // (4 * row_size))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        piece = reader.read(entry.theirs, begin + first * row_size, count * row_size)
        target.write(entry, first, piece.reshape(count, *entry.split[1:]))


def _sharding(like):
    return getattr(like, "sharding", None) or SingleDeviceSharding(jax.devices()[0])


class _HostTarget:
    """A parameter no larger than a piece, assembled on the host so that nothing is compiled."""

    def __init__(self, like):
        self.host, self.sharding = np.empty(like.shape, like.dtype), _sharding(like)
        self.bounds = tuple((0, n) for n in like.shape)

    def write(self, entry: Entry, first: int, piece: np.ndarray) -> None:
        """Write rows `first`, … of a tensor's first axis."""
        part, starts = _inside(entry, first, piece, self.bounds)
        if part is not None:
            x = part.transpose(entry.order)
            x = x.reshape((1,) * (len(starts) - x.ndim) + x.shape)
            at = tuple(slice(start, start + n) for start, n in zip(starts, x.shape, strict=True))
            self.host[at] = x

    def result(self) -> jax.Array:
        """Return the whole array, with its sharding."""
        return jax.make_array_from_callback(
            self.host.shape, self.sharding, lambda index: self.host[index]
        )


class _DeviceTarget:
    """A large parameter, as one buffer for each device. Replicas get the same bytes."""

    def __init__(self, like):
        self.shape, self.dtype = tuple(like.shape), jnp.dtype(like.dtype)
        self.sharding = _sharding(like)
        # Two-byte floats are moved as integers: XLA on CPU would take them through float32, which
        # changes NaNs and rewrites the whole buffer every time.
        self.bits = np.dtype(np.uint16) if self.dtype.itemsize == 2 else self.dtype
        self.slices, self.buffers = {}, {}
        for device, index in self.sharding.addressable_devices_indices_map(self.shape).items():
            bounds = tuple(s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True))
            local = tuple(stop - start for start, stop in bounds)
            self.slices.setdefault(bounds, []).append(device)
            with jax.default_device(device):
                self.buffers[device] = jax.device_put(jnp.zeros(local, self.bits), device)

    def write(self, entry: Entry, first: int, piece: np.ndarray) -> None:
        """Write rows `first`, … of a tensor's first axis."""
        if piece.dtype == self.dtype:
            piece = piece.view(self.bits)
        for bounds, devices in self.slices.items():
            part, starts = _inside(entry, first, piece, bounds)
            if part is None:
                continue
            for device in devices:
                self.buffers[device] = _place(
                    self.buffers[device], part, np.int32(starts), entry.order, self.dtype
                )
        jax.block_until_ready(
            list(self.buffers.values())
        )  # so that pieces do not queue up on the host

    def result(self) -> jax.Array:
        """Return the whole array, with its sharding."""
        arrays = list(self.buffers.values())
        if self.bits != self.dtype:
            arrays = [_from_bits(x, self.dtype) for x in arrays]
        self.buffers.clear()
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, arrays)


def _inside(entry: Entry, first: int, piece: np.ndarray, bounds):
    """Return the part of a piece inside `bounds` of our parameter, and its start there; (None,
    None) if there is none.
    """
    starts = []
    if entry.layer is not None:
        (begin, end), *bounds = bounds
        if not begin <= entry.layer < end:
            return None, None
        starts.append(entry.layer - begin)
    order, cut = list(entry.order), [slice(None)] * piece.ndim
    for letter, (begin, end) in zip(entry.our_axes, bounds, strict=True):
        if letter == "1":
            starts.append(0)
            continue
        axis = order.pop(0)
        offset = first if axis == 0 else 0
        low, high = max(begin, offset), min(end, offset + piece.shape[axis])
        if low >= high:
            return None, None
        cut[axis] = slice(low - offset, high - offset)
        starts.append(low - begin)
    return np.ascontiguousarray(piece[tuple(cut)]), starts


def _from_bits(x: jax.Array, dtype) -> jax.Array:
    (device,) = x.devices()
    if device.platform == "cpu":  # a view; a compiled bitcast would copy on CPUs
        return jax.device_put(np.asarray(x).view(dtype), device)
    return _bitcast(x, dtype)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="dtype")
def _bitcast(x, dtype):
    return jax.lax.bitcast_convert_type(x, dtype)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("order", "dtype"))
def _place(buffer, piece, starts, order, dtype):
    x = piece.transpose(order)
    if x.dtype != buffer.dtype:
        x = jax.lax.bitcast_convert_type(x.astype(dtype), buffer.dtype)
    # The piece lacks our depth axis in front, and our axes of size 1.
    x = jax.lax.expand_dims(x, range(buffer.ndim - x.ndim))
    return jax.lax.dynamic_update_slice(buffer, x, tuple(starts))
