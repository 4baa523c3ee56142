"""Which layers int8 arithmetic spares: measured one by one on the network's output, bought back where they cost least.

Each layer alone gets 8-bit activations, in and out, of the ranges that calibration met, and weights as int8 has them. Layers
return to fp32 in the order of error removed for a multiplication, until what is left, measured together, is below what is
allowed on every probe.
"""

# L layers, P probes

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from convert.rounding import Grid, nearest
from convert.schemes import excluded
from convert.weights import Feed, Feeds, operator, run, weighted

MARGIN_DB = 5.0  # above the floor: other calls than the probes are worse


@dataclass(frozen=True)
class Arithmetic:
    """How a runtime multiplies in int8."""

    weight_bits: int
    symmetric: bool
    """Activations have a zero point of 0."""
    outputs: bool
    """What comes out is rounded to int8, too."""


UNSIGNED = Arithmetic(weight_bits=7, symmetric=False, outputs=True)  # onnxruntime's, see convert.integers
SYMMETRIC = Arithmetic(weight_bits=8, symmetric=True, outputs=False)  # TensorRT's


@dataclass
class Range:
    """Least and greatest value of what goes into a layer and comes out, and its multiplications in one call."""

    arithmetic: Arithmetic
    ends: dict[str, tuple[float, float]] = field(default_factory=dict)
    macs: int = 0

    def meet(self, where: str, x: Tensor) -> None:
        low, high = self.ends.get(where, (0.0, 0.0))
        self.ends[where] = (min(low, x.min().item()), max(high, x.max().item()))

    def quantised(self, where: str, x: Tensor) -> Tensor:
        """Through 8 bits."""
        low, high = self.ends[where]
        if self.arithmetic.symmetric:
            step = max(-low, high, 1e-12) / 127
            return (x / step).round().clamp(-127, 127) * step
        step = max(high - low, 1e-12) / 255
        zero = round(-low / step)
        return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step


def spared(
    network: nn.Module,
    feeds: Feeds,
    probes: Sequence[Feed],
    floor: float,
    leave: Sequence[str] = (),
    arithmetic: Arithmetic = UNSIGNED,
) -> list[str]:
    """Names of weights to leave in fp32, so that the output stays `floor` dB and a margin above its error.

    Probes that are not among the feeds, and so may pass the ranges, as calls on a device will, tell the most. `leave` are
    patterns of those that stay in fp32 anyway.
    """
    layers = {n: m for n, m in weighted(network).items() if operator(m) != "Gather"}
    layers = {n: m for n, m in layers.items() if not excluded(n, operator(m), leave)}
    ranges = _ranges(network, layers, feeds, arithmetic)
    reference = [run(network, probe) for probe in probes]

    def errors(names: Iterable[str]) -> np.ndarray:
        """(P,) squared error of the output over its square, with these in int8."""
        with _in_int8([(layers[name], ranges[name]) for name in names]):
            found = [run(network, probe) for probe in probes]
        return np.array([(y - r).square().sum() / r.square().sum() for y, r in zip(found, reference, strict=True)])

    alone = np.array([errors([name]) for name in layers])
    macs = np.array([ranges[name].macs for name in layers])
    names, wanted = list(layers), 10 ** (-(floor + MARGIN_DB) / 10)
    allowed, out = wanted, choose(alone, macs, wanted)
    while len(out) < len(names) and (together := errors(np.delete(names, out)).max()) > wanted:
        allowed *= 0.9 * wanted / together  # together they are more than their sum
        out = choose(alone, macs, allowed)
    return [names[number] for number in out]


def choose(errors: np.ndarray, macs: np.ndarray, allowed: float) -> list[int]:
    """Layers to leave out, so that the rest of `errors` (L, P) add up to at most `allowed` on every probe; `macs` (L,)."""
    left, out = np.ones(len(errors), bool), []
    while (over := errors[left].sum(0) > allowed).any():
        gain = np.where(left, errors[:, over].sum(1) / macs, -1)
        out.append(int(gain.argmax()))
        left[out[-1]] = False
    return out


def _ranges(
    network: nn.Module, layers: Mapping[str, nn.Module], feeds: Feeds, arithmetic: Arithmetic
) -> dict[str, Range]:
    ranges = {name: Range(arithmetic) for name in layers}

    def watch(met: Range) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            met.meet("in", inputs[0])
            met.meet("out", output)
            met.macs = output.numel() * layer.weight[0].numel()

        return hook

    with _hooked(layer.register_forward_hook(watch(ranges[name])) for name, layer in layers.items()):
        for feed in feeds:
            run(network, feed)
    return ranges


@contextlib.contextmanager
def _in_int8(layers: Sequence[tuple[nn.Module, Range]]) -> Iterator[None]:
    kept = [layer.weight.data for layer, _ in layers]
    for layer, met in layers:
        layer.weight.data = nearest(layer.weight.data, Grid(met.arithmetic.weight_bits)).restored()
    hooks = [hook for layer, met in layers for hook in _rounding(layer, met)]
    try:
        with _hooked(hooks):
            yield
    finally:
        for (layer, _), weight in zip(layers, kept, strict=True):
            layer.weight.data = weight


def _rounding(layer: nn.Module, met: Range) -> Iterator[RemovableHandle]:
    yield layer.register_forward_pre_hook(lambda _, inputs: (met.quantised("in", inputs[0]), *inputs[1:]))
    if met.arithmetic.outputs:
        yield layer.register_forward_hook(lambda _, __, output: met.quantised("out", output))


@contextlib.contextmanager
def _hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    taken = list(hooks)
    try:
        yield
    finally:
        for hook in taken:
            hook.remove()
