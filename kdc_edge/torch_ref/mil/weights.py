"""How stored weights become numbers: the `constexpr_` operators, as numpy functions by name.

Arguments by their MIL names; the numbers are those that coremltools itself restores, bit for bit.

Source: coremltools.converters.mil.mil.ops.defs, iOS16.constexpr_ops and iOS18.compression.
"""

# N elements, D of them not zero, P entries of a table, V numbers of an entry

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Values = Mapping[str, Any]


def unpack(packed: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """`count` numbers of so many bits each, the least significant first, one after the other in bytes."""
    if bits == 8:
        return packed[:count]
    planes = np.unpackbits(packed, count=bits * count, bitorder="little").reshape(count, bits)
    return np.packbits(planes, axis=1, bitorder="little")[:, 0]


def _cast(v: Values) -> Array:
    return v["source_val"].astype(np.float32)


def _affine_dequantize(v: Values) -> Array:
    """scale · (data - zero point), both of the tensor or of each entry of `axis`."""
    data = v["quantized_data"]
    scale, zero = (_along(np.asarray(v[name]), int(v["axis"]), data.ndim) for name in ("scale", "zero_point"))
    restored = data.astype(np.float32)
    restored -= zero.astype(np.float32)
    restored *= scale
    return restored.astype(scale.dtype)


def _along(values: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _blockwise_shift_scale(v: Values) -> Array:
    """scale · (data - offset), each of a block of the axes: data.shape / scale.shape, in the scale's precision."""
    scale, offset = v["scale"], v.get("offset")
    data = v["data"].astype(scale.dtype)
    spread = data.reshape(
        [n for size, blocks in zip(data.shape, scale.shape, strict=True) for n in (blocks, size // blocks)]
    )
    every_other = [n for blocks in scale.shape for n in (blocks, 1)]
    if offset is not None:
        spread = spread - offset.reshape(every_other)
    return (scale.reshape(every_other) * spread).reshape(data.shape)


def _lut_to_dense(v: Values) -> Array:
    if "shape" in v:  # iOS 16: one table, packed indices
        lut, shape = v["lut"], tuple(int(n) for n in v["shape"])
        return lut[unpack(v["indices"], int(lut.size).bit_length() - 1, int(np.prod(shape)))].reshape(shape)
    return _looked_up(v["indices"], v["lut"], v.get("vector_axis"))


def _looked_up(indices: Array, lut: Array, axis: int | None) -> Array:
    """lut (*groups, P, V): a table for each group of the axes; an entry's V numbers lie one after the other on `axis`."""
    entries, width = lut.shape[-2:]
    numbers = indices.astype(np.int32)
    stride = entries
    for i in reversed(range(indices.ndim)):
        groups = lut.shape[i]
        if groups > 1:
            group = np.arange(indices.shape[i], dtype=np.int32) // (indices.shape[i] // groups)
            numbers += _along(stride * group, i, indices.ndim)
            stride *= groups
    found = lut.reshape(-1, width)[numbers]
    if width == 1:
        return found[..., 0]
    axis = int(axis or 0) % indices.ndim
    shape = [n * width if i == axis else n for i, n in enumerate(indices.shape)]
    return np.moveaxis(found, -1, axis + 1).reshape(shape)


def _sparse_to_dense(v: Values) -> Array:
    data, mask = v["nonzero_data"], v["mask"]
    if "shape" in v:  # iOS 16: packed bits
        shape = tuple(int(n) for n in v["shape"])
        mask = np.unpackbits(mask, count=int(np.prod(shape)), bitorder="little").reshape(shape)
    return _spread(data, mask)


def _spread(data: Array, mask: Array) -> Array:
    dense = np.zeros(mask.shape, data.dtype)
    dense[mask != 0] = data
    return dense


def _lut_to_sparse(v: Values) -> tuple[Array, Array]:
    """Mask and (D·V,) numbers of the mask's ones, in its order."""
    mask, lut, axis = v["indices_mask"], v["lut"], v.get("vector_axis")
    dense = _looked_up(_spread(v["indices_nonzero_data"], mask), lut, axis)
    if lut.shape[-1] > 1:
        mask = np.repeat(mask, lut.shape[-1], int(axis or 0))
    return mask, dense[mask != 0]


def _sparse_blockwise_shift_scale(v: Values) -> tuple[Array, Array]:
    """Mask and (D,) numbers of the mask's ones, in its order."""
    mask = v["data_mask"]
    dense = _blockwise_shift_scale({**v, "data": _spread(v["nonzero_data"], mask)})
    return mask, dense[mask != 0]


RESTORE: dict[str, Callable[[Values], Array | tuple[Array, Array]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
