"""fp16 at a component's border, fp32 outside it: pipelines compute in fp32, and half the bytes go to the device."""

from dataclasses import replace

import numpy as np

from kdc_edge.ports import Port, Ports
from kdc_edge.runtimes import Runtime


class Widened:
    """A runtime whose fp16 ports look like fp32 ones."""

    def __init__(self, inner: Runtime) -> None:
        self._inner = inner
        self._halves = {port.name for port in inner.ports.inputs if port.dtype == "float16"}
        self.ports = Ports(tuple(map(_wide, inner.ports.inputs)), tuple(map(_wide, inner.ports.outputs)))

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Numbers past fp16's range become infinite, as they would on the device."""
        with np.errstate(over="ignore"):
            narrow = {
                n: a.astype(np.float16) if n in self._halves and a.dtype == np.float32 else a for n, a in inputs.items()
            }
        outputs = self._inner(**narrow)
        return {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in outputs.items()}

    def close(self) -> None:
        self._inner.close()


def widened(runtime: Runtime) -> Runtime:
    """`runtime` itself where no port is fp16."""
    ports = (*runtime.ports.inputs, *runtime.ports.outputs)
    return Widened(runtime) if any(port.dtype == "float16" for port in ports) else runtime


def _wide(port: Port) -> Port:
    return replace(port, dtype="float32") if port.dtype == "float16" else port
