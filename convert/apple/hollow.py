"""A network whose large weights are one number each while it is traced and converted, and get their own numbers at the end.

coremltools holds fp32 weights, the copies that become fp16, and the file being written in memory at once. Here the network
gives its weights away first, in fp16; what stands for a weight is a number that no other weight has, repeated without memory.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from coremltools.converters.mil.mil import Block, Operation
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY, register_pass
from numpy.typing import NDArray
from torch import nn

from convert.apple.schemes import SMALLEST
from kdc_edge.errors import GateError

STEP = 2.0**-14  # between the numbers; fp16 holds the first 2,048 of them exactly
MOST = 2048
PASS = "kdc_edge::fill_weights"


class Weights:
    """What a hollow network was relieved of: fp16 arrays by name, in the order of their numbers."""

    def __init__(self, arrays: dict[str, NDArray[np.float16]]) -> None:
        self._arrays = list(arrays.items())

    def fill(self, block: Block) -> None:
        """Into the constants of a program. Raises GateError where one is missing, or is not as it was in the network."""
        found = set()
        for op in [op for op in block.operations if op.op_type == "const"]:
            place = self._place(op)
            if place is not None:
                found.add(place)
                _replace(block, op, self._own(op, place))
        if lost := [name for place, (name, _) in enumerate(self._arrays) if place not in found]:
            raise GateError(f"{len(lost)} weights are not in the program, the first is {lost[0]}; nothing was written")

    def _place(self, op: Operation) -> int | None:
        value = op.outputs[0].val
        if not isinstance(value, np.ndarray) or value.size <= SMALLEST or value.dtype.kind != "f":
            return None
        number = float(value.flat[0]) / STEP
        place = round(number) - 1
        if not (0 <= place < len(self._arrays) and number == place + 1):
            return None
        return place if (value == value.flat[0]).all() else None

    def _own(self, op: Operation, place: int) -> NDArray[Any]:
        """In the shape and type of the constant, which may have axes of 1 more."""
        (name, array), value = self._arrays[place], op.outputs[0].val
        if [n for n in array.shape if n > 1] != [n for n in value.shape if n > 1]:
            raise GateError(f"{name} is {array.shape}, in the program {value.shape}; nothing was written")
        return array.reshape(value.shape).astype(value.dtype, copy=False)


def hollow(network: nn.Module) -> Weights:
    """Takes large weights out of a network, one at a time."""
    arrays: dict[str, NDArray[np.float16]] = {}
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1 and parameter.numel() > SMALLEST and len(arrays) < MOST:
            arrays[name] = parameter.data.half().numpy()
            parameter.data = torch.tensor((len(arrays)) * STEP).expand(parameter.shape)
    return Weights(arrays)


def _replace(block: Block, op: Operation, array: NDArray[Any]) -> None:
    with block:
        new = mb.const(val=array, before_op=op, name=op.name)
    block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=new)
    block.remove_ops([op])


class FillWeights(AbstractGraphPass):
    """The last one: `fill` is a Weights' own."""

    fill: Callable[[Block], None] | None = None

    def apply(self, program: Any) -> None:
        assert self.fill is not None
        for function in program.functions.values():
            self.fill(function)


def filling(pipeline: Any, weights: Weights) -> Any:
    """A pass pipeline that fills the program at its end."""
    if PASS not in PASS_REGISTRY:
        register_pass(namespace="kdc_edge", name="fill_weights")(FillWeights)
    pipeline.append_pass(PASS)
    pipeline.set_options(PASS, {"fill": weights.fill})
    return pipeline
