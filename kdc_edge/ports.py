"""The inputs and outputs of each component, written once: names, dtypes and named axes.

It feeds export names, dynamic axes, dummy inputs, the manifest and the check of every call. A port of COMPONENTS has
only named axes; `bind` turns those whose size is known into numbers, and what stays a name is free at run time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kdc_edge.errors import BundleError, UsageError, suggest

Axis = int | str


@dataclass(frozen=True)
class Port:
    """One named array; an axis is a size or, where it is free, a name."""

    name: str
    dtype: Literal["float32", "float16", "int64", "int32"]
    shape: tuple[Axis, ...]


@dataclass(frozen=True)
class Ports:
    """All arrays that go into a component and come out of it, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def bind(self, sizes: Mapping[str, int]) -> "Ports":
        """The same ports with the sizes of these axes fixed."""
        return Ports(tuple(bind(p, sizes) for p in self.inputs), tuple(bind(p, sizes) for p in self.outputs))

    def require(self, named: Collection[str], where: object) -> None:
        """BundleError where a component's file has others: `named` are its inputs and outputs."""
        if strange := [port.name for port in (*self.inputs, *self.outputs) if port.name not in named]:
            raise BundleError(f"{where}: the file has no '{strange[0]}', only {', '.join(sorted(named))}")


LATENT = ("batch", "channels", "height", "width")
PICTURE = ("batch", "colours", "image_height", "image_width")
TEXT = ("batch", "tokens", "text_width")

# timestep is float32: sigmas between two training steps have fractional ones
COMPONENTS: dict[str, Ports] = {
    "text_encoder": Ports(
        (Port("input_ids", "int64", ("batch", "tokens")),),
        (Port("last_hidden_state", "float32", TEXT), Port("pooler_output", "float32", ("batch", "text_width"))),
    ),
    "unet": Ports(
        (
            Port("sample", "float32", LATENT),
            Port("timestep", "float32", ()),
            Port("encoder_hidden_states", "float32", TEXT),
        ),
        (Port("out_sample", "float32", LATENT),),
    ),
    "vae_decoder": Ports(
        (Port("latent_sample", "float32", LATENT),),
        (Port("sample", "float32", PICTURE),),
    ),
    # mean and log variance where the autoencoder has them, before scaling
    "vae_encoder": Ports(
        (Port("sample", "float32", PICTURE),),
        (Port("latent_parameters", "float32", ("batch", "moments", "height", "width")),),
    ),
}


def bind(port: Port, sizes: Mapping[str, int]) -> Port:
    """`port` with the named axes in `sizes` replaced by their size."""
    return replace(port, shape=tuple(sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in port.shape))


def free_axes(ports: Sequence[Port]) -> dict[str, dict[int, str]]:
    """Per port the positions of its free axes and their names, as exporters want them."""
    return {p.name: {i: axis for i, axis in enumerate(p.shape) if isinstance(axis, str)} for p in ports}


def resolve(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of `port` once every free axis has a size; UsageError for one that has none."""
    shape = bind(port, sizes).shape
    if unknown := [axis for axis in shape if isinstance(axis, str)]:
        raise UsageError(f"{port.name}: no size for axis {', '.join(unknown)}; sizes given: {dict(sizes)}")
    return tuple(int(axis) for axis in shape)


def zeros(ports: Sequence[Port], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """A feed of zeros of the right names, types and shapes."""
    return {port.name: np.zeros(resolve(port, sizes), port.dtype) for port in ports}


def check(ports: Sequence[Port], arrays: Mapping[str, np.ndarray], where: str) -> dict[str, int]:
    """Hold a feed against its ports; returns the sizes its free axes took. Raises UsageError naming the port."""
    names = [port.name for port in ports]
    for name in arrays:
        if name not in names:
            raise UsageError(f"{where} has no input '{name}'; it takes {', '.join(names)}{suggest(name, names)}")
    sizes: dict[str, int] = {}
    for port in ports:
        if port.name not in arrays:
            raise UsageError(f"{where} lacks its input '{port.name}'; it takes {', '.join(names)}")
        _check_one(port, np.asarray(arrays[port.name]), sizes, where)
    return sizes


def _check_one(port: Port, array: np.ndarray, sizes: dict[str, int], where: str) -> None:
    if array.dtype != port.dtype:
        raise UsageError(f"{where}.{port.name} is {array.dtype}, must be {port.dtype}")
    wanted = bind(port, sizes).shape
    fixed = {i: size for i, size in enumerate(wanted) if isinstance(size, int)}
    if len(wanted) != array.ndim or any(array.shape[i] != size for i, size in fixed.items()):
        raise UsageError(f"{where}.{port.name} has shape {array.shape}, must have ({', '.join(map(str, wanted))})")
    sizes.update({axis: n for axis, n in zip(port.shape, array.shape, strict=True) if isinstance(axis, str)})
