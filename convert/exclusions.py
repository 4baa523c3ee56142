"""Which layers int8 spares: measured one by one on the network's output, bought back where they cost least.

Each layer alone gets 8-bit activations, of a convolution in and out, of the ranges that calibration met, and weights as int8
has them; or the weights alone, where products are not int8. Layers return to fp32 in the order of error removed for a
multiplication, or for a weight, until what is left, measured together, is below what is allowed on every probe; or, where a
call may take so long and no longer, in the order of error removed for a millisecond, while there is time.
"""

# L layers, P probes

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convert.latency import savings
from convert.rounding import Grid, nearest
from convert.schemes import excluded
from convert.weights import Feed, Feeds, operator, run, weighted

E4M3_TOP = 448.0


@dataclass(frozen=True)
class Arithmetic:
    """What of a layer a runtime has in int8."""

    weight_bits: int
    symmetric: bool
    """Activations have a zero point of 0."""
    outputs: bool
    """What comes out of a convolution is rounded to int8, too."""
    inputs: bool = True
    """What goes in is rounded; else weights alone are small."""
    floating: bool = False
    """In fp8 (e4m3) instead."""
    probes: int = 32
    """Calls to judge by."""
    margin_db: float = 3.0
    """Above the floor: other calls than the probes are worse."""


UNSIGNED = Arithmetic(weight_bits=7, symmetric=False, outputs=True)  # onnxruntime's, see convert.integers
SYMMETRIC = Arithmetic(weight_bits=8, symmetric=True, outputs=False)  # TensorRT's
E4M3 = replace(SYMMETRIC, floating=True)
STORED = replace(SYMMETRIC, inputs=False, probes=8, margin_db=5.0)  # calls differ less


@dataclass
class Range:
    """Least and greatest value of what goes into a layer and comes out; of a call, input shape and multiplications."""

    arithmetic: Arithmetic
    ends: dict[str, tuple[float, float]] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    macs: int = 0

    def meet(self, where: str, x: Tensor) -> None:
        low, high = self.ends.get(where, (0.0, 0.0))
        self.ends[where] = (min(low, x.min().item()), max(high, x.max().item()))

    def quantised(self, where: str, x: Tensor) -> Tensor:
        """Through 8 bits."""
        low, high = self.ends[where]
        if self.arithmetic.floating:
            step = max(-low, high, 1e-12) / E4M3_TOP
            return (x / step).clamp(-E4M3_TOP, E4M3_TOP).to(torch.float8_e4m3fn).float() * step
        if self.arithmetic.symmetric:
            step = max(-low, high, 1e-12) / 127
            return (x / step).round().clamp(-127, 127) * step
        step = max(high - low, 1e-12) / 255
        zero = round(-low / step)
        return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step


class Sensitivity:
    """A network's layers, what they met, and what int8 does to its output.

    Probes that are not among the feeds, and so may pass the ranges, as calls on a device will, tell the most. `leave` are
    patterns of layers that stay in fp32 anyway; `stored` are the weights that the file will have, if they are known.
    """

    def __init__(
        self,
        network: nn.Module,
        feeds: Feeds,
        probes: Sequence[Feed],
        leave: Sequence[str] = (),
        arithmetic: Arithmetic = UNSIGNED,
        stored: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.network, self.probes, self.arithmetic = network, probes, arithmetic
        layers = {n: m for n, m in weighted(network).items() if operator(m) != "Gather"}
        self.layers = {n: m for n, m in layers.items() if not excluded(n, operator(m), leave)}
        self.ranges = _ranges(network, self.layers, feeds, arithmetic)
        self.reference = [run(network, probe) for probe in probes]
        self.stored = {} if stored is None else stored

    def costs(self) -> np.ndarray:
        """(L,) what leaving a layer out costs: multiplications of a call, or weights where they alone are small."""
        if self.arithmetic.inputs:
            return np.array([self.ranges[name].macs for name in self.layers])
        return np.array([layer.weight.numel() for layer in self.layers.values()])

    def errors(self, names: Iterable[str]) -> np.ndarray:
        """(P,) squared error of the output over its square, with these in int8."""
        with _small([(self.layers[name], self.ranges[name], self.stored.get(name)) for name in names]):
            found = [run(self.network, probe) for probe in self.probes]
        return np.array([(y - r).square().sum() / r.square().sum() for y, r in zip(found, self.reference, strict=True)])

    @functools.cached_property
    def alone(self) -> np.ndarray:
        """(L, P) those of every layer by itself."""
        return np.array([self.errors([name]) for name in self.layers])

    @functools.cached_property
    def saved_ms(self) -> np.ndarray:
        """(L,) what int8 saves of a call on this machine."""
        saved = savings(self.layers, {name: met.shape for name, met in self.ranges.items()})
        return np.array([saved[name] for name in self.layers])


def spared(found: Sensitivity, floor: float) -> list[str]:
    """Names of weights to leave in fp32, so that the output stays `floor` dB and a margin above its error."""
    names, wanted = list(found.layers), 10 ** (-(floor + found.arithmetic.margin_db) / 10)
    if found.errors(names).max() <= wanted:
        return []
    alone, costs = found.alone, found.costs()
    allowed, out = wanted, choose(alone, costs, wanted)
    while len(out) < len(names) and (together := found.errors(np.delete(names, out)).max()) > wanted:
        allowed *= 0.9 * wanted / together  # together they are more than their sum
        out = choose(alone, costs, allowed)
    return [names[number] for number in out]


def slower(found: Sensitivity) -> list[str]:
    """Names of weights that int8 makes no faster on this machine."""
    return [name for name, ms in zip(found.layers, found.saved_ms, strict=True) if ms <= 0]


def afforded(found: Sensitivity, left_ms: float) -> list[str]:
    """Names of weights to leave in fp32 where a call with int8 wherever that is faster may take `left_ms` more."""
    out = afford(found.alone, found.saved_ms, left_ms)
    return [name for number, name in enumerate(found.layers) if number in out]


def choose(errors: np.ndarray, costs: np.ndarray, allowed: float) -> list[int]:
    """Layers to leave out, so that the rest of `errors` (L, P) add up to at most `allowed` on every probe; `costs` (L,)."""
    left, out = np.ones(len(errors), bool), []
    while (over := errors[left].sum(0) > allowed).any():
        gain = np.where(left, errors[:, over].sum(1) / costs, -1)
        out.append(int(gain.argmax()))
        left[out[-1]] = False
    return out


def afford(errors: np.ndarray, ms: np.ndarray, left: float) -> set[int]:
    """Layers for whose saved `ms` (L,) there is room in `left`, most of `errors` (L, P) for a millisecond first."""
    out = set(np.flatnonzero(ms <= 0).tolist())  # int8 makes them slower
    for number in np.argsort(-errors.sum(1) / np.maximum(ms, 1e-9)).tolist():
        if number not in out and ms[number] <= left:
            out.add(number)
            left -= ms[number]
    return out


def _ranges(
    network: nn.Module, layers: Mapping[str, nn.Module], feeds: Feeds, arithmetic: Arithmetic
) -> dict[str, Range]:
    ranges = {name: Range(arithmetic) for name in layers}

    def watch(met: Range) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            met.meet("in", inputs[0])
            met.meet("out", output)
            met.shape = tuple(inputs[0].shape)
            met.macs = output.numel() * layer.weight[0].numel()

        return hook

    with _hooked(layer.register_forward_hook(watch(ranges[name])) for name, layer in layers.items()):
        for feed in feeds:
            run(network, feed)
    return ranges


@contextlib.contextmanager
def _small(layers: Sequence[tuple[nn.Module, Range, Tensor | None]]) -> Iterator[None]:
    kept = [layer.weight.data for layer, _, _ in layers]
    for layer, met, stored in layers:
        rounded = nearest(layer.weight.data, Grid(met.arithmetic.weight_bits)).restored() if stored is None else stored
        layer.weight.data = rounded
    hooks = [hook for layer, met, _ in layers for hook in _rounding(layer, met)]
    try:
        with _hooked(hooks):
            yield
    finally:
        for (layer, _, _), weight in zip(layers, kept, strict=True):
            layer.weight.data = weight


def _rounding(layer: nn.Module, met: Range) -> Iterator[RemovableHandle]:
    if met.arithmetic.inputs:
        yield layer.register_forward_pre_hook(lambda _, inputs: (met.quantised("in", inputs[0]), *inputs[1:]))
    if met.arithmetic.outputs and operator(layer) == "Conv":
        yield layer.register_forward_hook(lambda _, __, output: met.quantised("out", output))


@contextlib.contextmanager
def _hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    taken = list(hooks)
    try:
        yield
    finally:
        for hook in taken:
            hook.remove()
