"""Where a program's numbers overflow, and where they leave a reference: a line for each operator.

`largest` is what an operator gives in fp32, so that what does not fit in fp16 is seen; `broken` counts what is not finite
once every fp16 result is rounded; `drift` is the relative error (root mean square) of the rounded results against the fp32
execution of the same program, and `departure` that against the layers of a PyTorch network, where an operator is one.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdc_edge.torch_ref.mil.program import Arrays, Program, Step

LARGEST = 65504.0  # finite number in fp16
SHOWN = 8  # operators of a table


@dataclass(frozen=True)
class Line:
    """One operator, the worst of all calls."""

    place: int
    kind: str
    name: str
    type: str
    largest: float
    broken: int
    drift: float
    departure: float | None = None
    """None where no layer of the network stands for the operator."""

    @property
    def overflows(self) -> bool:
        return self.type == "fp16" and not self.largest <= LARGEST


def examine(
    program: Program, feeds: Sequence[Arrays], layers: Sequence[Mapping[str, Tensor]] | None = None
) -> list[Line]:
    """Of operators that give floating-point numbers; `layers` are `recorded` for each of the feeds."""
    worst: dict[int, Line] = {}
    for i, feed in enumerate(feeds):
        known = {} if layers is None else layers[i]
        for line in _lines(program, feed, known):
            worst[line.place] = _worse(worst.get(line.place, line), line)
    return list(worst.values())


def first(lines: Iterable[Line], beyond: float) -> Line | None:
    """The first operator that is further from its reference than this share; the network where there is one."""
    lines = list(lines)
    judged = [line for line in lines if line.departure is not None] or lines
    return next((line for line in judged if not error(line) <= beyond), None)


def error(line: Line) -> float:
    """Against the network where it is known, else against fp32."""
    return line.drift if line.departure is None else line.departure


def table(lines: Sequence[Line]) -> Iterator[str]:
    """As text, a line each."""
    yield f"{'':>5} {'operator':<28} {'type':<5} {'|x| max':>10} {'against fp32':>13} {'PyTorch':>10}  name"
    for line in lines:
        departure = "" if line.departure is None else f"{line.departure:.1e}"
        marks = "  OVERFLOWS fp16" if line.overflows else ""
        marks += f"  {line.broken} NOT FINITE" if line.broken else ""
        yield (
            f"{line.place:>5} {line.kind:<28} {line.type:<5} {line.largest:>10.4g} {line.drift:>13.1e} {departure:>10}"
            f"  {line.name}{marks}"
        )


def chosen(lines: Sequence[Line], beyond: float) -> list[Line]:
    """What a reader needs: all that overflow or break, the first that departs, and the furthest, in order."""
    bad = [line for line in lines if line.overflows or line.broken]
    departed = first(lines, beyond)
    judged = [line for line in lines if line.departure is not None] or list(lines)
    furthest = sorted(judged, key=lambda line: -error(line) if math.isfinite(error(line)) else -math.inf)[:SHOWN]
    places = {line.place for line in (*bad[:SHOWN], *furthest, *([departed] if departed else []))}
    return [line for line in lines if line.place in places]


def recorded(network: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """What each layer with a weight gives in one call, by the name a program has for that weight; and the outputs."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        outs = found.setdefault(f"{name.replace('.', '_')}_weight", [])
        return lambda _, __, out: outs.append(out)

    layers = ((name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    hooks = [module.register_forward_hook(keep(name)) for name, module in layers]
    try:
        with torch.inference_mode():
            outputs = network(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    once = {name: outs[0] for name, outs in found.items() if len(outs) == 1}
    return once, outputs if isinstance(outputs, tuple) else (outputs,)


def _lines(program: Program, feed: Arrays, layers: Mapping[str, Tensor]) -> Iterator[Line]:
    """Both arithmetics side by side, so that nothing has to be kept."""
    both = zip(program.walk(feed), program.walk(feed, exact=True), strict=True)
    for (step, rounded), (_, exact) in both:
        pairs = [(a, b) for a, b in zip(rounded, exact, strict=True) if b.is_floating_point()]
        if not pairs:
            continue
        layer = _layer(step, layers)
        fits = layer is not None and layer.shape == pairs[0][0].shape
        yield Line(
            step.place,
            step.kind,
            step.outputs[0],
            step.types[0],
            max(_largest(b) for _, b in pairs),
            sum(int((~a.isfinite()).sum()) for a, _ in pairs),
            max(_error(a, b) for a, b in pairs),
            _error(pairs[0][0], layer) if layer is not None and fits else None,
        )


def _layer(step: Step, layers: Mapping[str, Tensor]) -> Tensor | None:
    weight = step.weight
    if weight is None:
        return None
    return next((out for key, out in layers.items() if weight == key or weight.startswith(f"{key}_")), None)


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def _error(out: Tensor, reference: Tensor) -> float:
    noise, signal = float((out - reference).norm()), float(reference.norm())
    if noise == 0:
        return 0.0
    return noise / signal if signal else math.inf


def _worse(a: Line, b: Line) -> Line:
    departures = [line.departure for line in (a, b) if line.departure is not None]
    return replace(
        a,
        largest=_max(a.largest, b.largest),
        broken=max(a.broken, b.broken),
        drift=_max(a.drift, b.drift),
        departure=_max(*departures) if len(departures) == 2 else None,
    )


def _max(a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
