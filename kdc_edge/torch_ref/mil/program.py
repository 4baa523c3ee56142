"""One function of a package, walked operator by operator.

`exact=False`, the default, computes as the package declares: the result of every fp16 operator is rounded to fp16. With
`exact=True` nothing is rounded. Sums inside an operator are fp32 either way. Values are freed after their last use; weights
are restored when an operator needs them, and kept only where all of them are small.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.torch_ref.mil.container import Package
from kdc_edge.torch_ref.mil.operators import MOVES, OPERATORS, TYPES
from kdc_edge.torch_ref.mil.weights import RESTORE
from kdc_edge.torch_ref.quiet import silent

PIECE = 2**16  # numbers that are rounded at once
OWNERS = ("matmul", "mul", "add")  # operators whose result is no view of anything
KEEP_BYTES = 2**30  # of fp32 weights that are restored once instead of at every call

Arrays = Mapping[str, np.ndarray]
Outputs = tuple[Tensor, ...]


class Ref(NamedTuple):
    """An input of the function, or what an earlier operator gave."""

    name: str


class Stored:
    """A constant array: as it lies in the package, and as the fp32, int32 or bool tensor that operators take."""

    def __init__(self, name: str, restore: Callable[[], np.ndarray], keep: bool) -> None:
        self.name, self._restore, self._keep = name, restore, keep
        self._tensor: Tensor | None = None

    def array(self) -> np.ndarray:
        """In the precision that the package declares."""
        return self._restore()

    def tensor(self) -> Tensor:
        if self._tensor is not None:
            return self._tensor
        array = self.array()
        kind = np.float32 if array.dtype.kind == "f" else bool if array.dtype.kind == "b" else np.int32
        tensor = torch.from_numpy(np.array(array, kind))
        if self._keep:
            self._tensor = tensor
        return tensor


@dataclass(frozen=True, eq=False)
class Step:
    """An operator: its arguments are Ref, Stored, numbers, texts, or lists of them."""

    place: int
    kind: str
    inputs: dict[str, Any]
    outputs: tuple[str, ...]
    types: tuple[str, ...]
    """MIL's name of each output's type."""
    last: tuple[str, ...]
    """Values that nothing reads after it."""
    into: str | None = None
    """One of them whose memory holds the result: fresh pages for attention's weights cost more than the softmax."""

    def run(self, values: Mapping[str, Tensor], exact: bool) -> Outputs:
        given = {name: _taken(value, values) for name, value in self.inputs.items()}
        found = OPERATORS[self.kind](given if self.into is None else given | {"into": values[self.into]})
        outputs = tuple(found) if isinstance(found, tuple | list) else (found,)
        if exact or (self.kind in MOVES):
            return outputs
        return tuple(_rounded(out, kind, self.kind) for out, kind in zip(outputs, self.types, strict=True))

    @property
    def weight(self) -> str | None:
        """Name of the stored array that it multiplies by."""
        value = self.inputs.get("weight")
        return value.name if isinstance(value, Stored) else None


@dataclass(frozen=True, eq=False)
class Program:
    """A function, ready to be called."""

    path: Path
    inputs: dict[str, tuple[tuple[int | None, ...], str]]
    """Shape and type by name; None is a free size."""
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    stored: tuple[Stored, ...]

    @classmethod
    def open(cls, path: Path | str, function: str | None = None) -> "Program":
        """The default function of a package, or another. Raises BundleError, UsageError, MissingBackend."""
        package = Package.open(path)
        return cls.of(package, package.function(function))

    @classmethod
    def of(cls, package: Package, function: str) -> "Program":
        """Raises BundleError for a package that does not hold what it says."""
        program = package.load(function)
        shapes = package.shapes(function)
        inputs = {name: (shapes[name], _type(var)) for name, var in program.inputs.items()}
        outputs = tuple(var.name for var in program.outputs)
        steps, stored = _Reader(program, outputs).read()
        return cls(package.path, inputs, outputs, steps, stored)

    def __call__(self, exact: bool = False, threads: int | None = None, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays by name. Raises UsageError for inputs that do not fit."""
        return self.run(inputs, exact, threads)

    def run(self, inputs: Arrays, exact: bool = False, threads: int | None = None) -> dict[str, np.ndarray]:
        """The same for inputs in a mapping."""
        values, before = self._start(inputs, exact), torch.get_num_threads()
        torch.set_num_threads(before if threads is None else threads)
        try:
            for _ in self._walk(values, exact):
                pass
        finally:
            torch.set_num_threads(before)
        return {name: values[name].numpy() for name in self.outputs}

    def walk(self, inputs: Arrays, exact: bool = False) -> Iterator[tuple[Step, Outputs]]:
        """Every operator with what it gave, which the next one may overwrite."""
        return self._walk(self._start(inputs, exact), exact)

    def _walk(self, values: dict[str, Tensor], exact: bool) -> Iterator[tuple[Step, Outputs]]:
        for step in self.steps:
            with torch.inference_mode():
                try:
                    outputs = step.run(values, exact)
                except (NotImplementedError, RuntimeError, KeyError, TypeError, IndexError, ValueError) as error:
                    where = f"{self.path}, operator {step.place} of {len(self.steps)} ({step.outputs[0]})"
                    raise BundleError(f"{where}: {step.kind} cannot be executed here: {error}") from error
            values.update(zip(step.outputs, outputs, strict=True))
            yield step, outputs
            del outputs
            for name in step.last:
                del values[name]

    def _start(self, inputs: Arrays, exact: bool) -> dict[str, Tensor]:
        if inputs.keys() != self.inputs.keys():
            raise UsageError(f"{self.path} takes {', '.join(self.inputs)}, was given {', '.join(inputs) or 'nothing'}")
        values = {}
        for name, (shape, kind) in self.inputs.items():
            array = np.asarray(inputs[name])
            if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
                raise UsageError(f"{self.path}: {name} has shape {array.shape}, must have {shape}")
            tensor = torch.from_numpy(np.array(array)).to(TYPES[kind])
            values[name] = tensor if exact else _rounded(tensor, kind, "cast")
        return values


def _taken(value: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, Stored):
        return value.tensor()
    return [_taken(part, values) for part in value] if isinstance(value, list) else value


def _rounded(tensor: Tensor, kind: str, operator: str) -> Tensor:
    """To fp16 where that is the type; in place unless it may be the operator's own input."""
    if kind != "fp16" or tensor.dtype != torch.float32:
        return tensor
    if operator in ("cast", "pad", "fill"):
        return tensor.half().float()
    if tensor.is_contiguous():  # piece by piece, so that the halves stay in the processor's cache
        for piece in tensor.view(-1).split(PIECE):
            piece.copy_(piece.half())
        return tensor
    return tensor.copy_(tensor.half())


def _type(var: Any) -> str:
    with silent():
        from coremltools.converters.mil.mil.types import builtin_to_string
    return builtin_to_string(var.dtype)


class _Reader:
    """From coremltools' function to steps that need nothing of it."""

    def __init__(self, function: Any, outputs: tuple[str, ...]) -> None:
        self._operators = list(function.operations)
        self._outputs = outputs
        self._known: dict[int, Any] = {}
        sizes = (out.shape for op in self._operators if _constant(op) for out in op.outputs if out.rank > 1)
        self._keep = 4 * sum(int(np.prod(shape)) for shape in sizes) <= KEEP_BYTES

    def read(self) -> tuple[tuple[Step, ...], tuple[Stored, ...]]:
        operators = [op for op in self._operators if not _constant(op)]
        arguments = [{name: self._value(var) for name, var in op.inputs.items() if var is not None} for op in operators]
        lasts = self._lasts(operators, arguments)
        intos = self._intos(operators, lasts)
        steps = [
            Step(
                place, op.op_type, inputs, tuple(v.name for v in op.outputs), tuple(map(_type, op.outputs)), last, into
            )
            for place, (op, inputs, last, into) in enumerate(zip(operators, arguments, lasts, intos, strict=True), 1)
        ]
        return tuple(steps), tuple(value for value in self._known.values() if isinstance(value, Stored))

    def _lasts(self, operators: list[Any], arguments: list[dict[str, Any]]) -> list[tuple[str, ...]]:
        """By operator what can be freed after it: also its own results that nobody reads."""
        seen = set(self._outputs)
        found = []
        for op, inputs in zip(reversed(operators), reversed(arguments), strict=True):
            names = dict.fromkeys((*_references(list(inputs.values())), *(var.name for var in op.outputs)))
            found.append(tuple(name for name in names if name not in seen))
            seen.update(names)
        return found[::-1]

    def _intos(self, operators: list[Any], lasts: list[tuple[str, ...]]) -> Iterator[str | None]:
        """By operator: the input of a softmax that a product or sum made, for it alone."""
        made = {op.outputs[0].name for op in operators if op.op_type in OWNERS}
        for op, last in zip(operators, lasts, strict=True):
            name = op.inputs["x"].name if op.op_type == "softmax" else None
            yield name if name in made and name in last else None

    def _value(self, var: Any) -> Any:
        if isinstance(var, list | tuple):
            return [self._value(part) for part in var]
        if var.op is None or not _constant(var.op):
            return Ref(var.name)
        if id(var) not in self._known:
            self._known[id(var)] = self._constant_value(var)
        return self._known[id(var)]

    def _constant_value(self, var: Any) -> Any:
        if var.op.op_type != "const":
            return Stored(var.name, _Restored(var), self._keep)
        value = var.val
        if isinstance(value, np.ndarray) and value.ndim:
            return Stored(var.name, lambda: value, self._keep)
        return value.item() if isinstance(value, np.generic | np.ndarray) else value


class _Restored:
    """What a `constexpr_` operator gives, computed when asked for."""

    def __init__(self, var: Any) -> None:
        op = var.op
        self._kind, self._output = op.op_type, [out.name for out in op.outputs].index(var.name)
        self._inputs = {
            name: given.val if given.op.op_type == "const" else _Restored(given)
            for name, given in op.inputs.items()
            if given is not None
        }

    def __call__(self) -> np.ndarray:
        given = {name: value() if isinstance(value, _Restored) else value for name, value in self._inputs.items()}
        found = RESTORE[self._kind](given)
        return found[self._output] if isinstance(found, tuple) else found


def _constant(op: Any) -> bool:
    return op.op_type == "const" or op.op_type in RESTORE


def _references(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, Ref):
            yield value.name
        elif isinstance(value, list):
            yield from _references(value)
