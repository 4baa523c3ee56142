"""A traced network → a Core ML program in memory: which operators become fp16, which weights it gets at the end."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convert.apple.targets import TARGETS
from kdc_edge.errors import GateError
from kdc_edge.ports import Ports

if TYPE_CHECKING:
    from convert.apple.hollow import Weights
    from convert.apple.package import Settings

WAVES = ("sin", "cos")


def convert(traced: Any, ports: Ports, settings: "Settings", weights: "Weights | None" = None) -> Any:
    """A Core ML program in memory, of a network that is hollow where there are `weights`.

    Raises GateError for an operator that coremltools does not know.
    """
    import coremltools as ct
    import numpy as np
    from coremltools.converters.mil.mil import Builder

    Builder.name_count.clear()  # which a conversion that failed leaves behind: names would be others than without it
    pipeline = ct.PassPipeline.DEFAULT
    if weights is not None:
        from convert.apple.hollow import filling

        pipeline = filling(pipeline, weights)
    selector = _selector(settings.islands)
    precision = ct.transform.FP16ComputePrecision(selector) if settings.half else ct.precision.FLOAT32
    try:
        return ct.convert(
            traced,
            convert_to="mlprogram",
            skip_model_load=True,
            inputs=[ct.TensorType(port.name, port.shape, np.float32) for port in ports.inputs],
            outputs=[ct.TensorType(port.name, dtype=np.float32) for port in ports.outputs],
            minimum_deployment_target=getattr(ct.target, TARGETS[settings.target].coremltools),
            compute_precision=precision,
            pass_pipeline=pipeline,
        )
    except (NotImplementedError, RuntimeError, ValueError) as error:
        message = str(error).strip().splitlines()[0]
        raise GateError(f"coremltools {ct.__version__} cannot convert it: {message}; nothing was written") from error


def mil_name(name: str) -> str:
    """What coremltools makes of a weight's name in the checkpoint, before it says that it was cast."""
    return f"model_{name.replace('.', '_')}"


def _selector(islands: Sequence[str]) -> Callable[[Any], bool]:
    """Whether an operator becomes fp16: not the sine and cosine of the timestep, nor what they are computed from.

    In fp16 the angle at t = 981 is off by up to 0.3.
    """
    kept: dict[int, set[str]] = {}

    def half(op: Any) -> bool:
        block = op.enclosing_block
        if id(block) not in kept:
            kept[id(block)] = _ancestors(block, WAVES)
        names = {out.name for out in op.outputs}
        return not names & kept[id(block)] and not names & set(islands)

    return half


def _ancestors(block: Any, kinds: Sequence[str]) -> set[str]:
    """Outputs of the operators of these kinds and of all that they are computed from."""
    waiting = [op for op in block.operations if op.op_type in kinds]
    found: set[str] = set()
    while waiting:
        op = waiting.pop()
        if op.op_type != "const" and op.outputs[0].name not in found:
            found |= {out.name for out in op.outputs}
            waiting += [var.op for var in op.inputs.values() if getattr(var, "op", None) is not None]
    return found
