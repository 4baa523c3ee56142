"""A Core ML bundle without Core ML: saved programs executed operator by operator, on any system. To check, not for speed."""

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.ports import Ports
from kdc_edge.runtimes import Options, apple


class MilRuntime:
    """A component's programs behind its ports."""

    def __init__(self, bundle: Bundle, component: str) -> None:
        from kdc_edge.torch_ref.programs import Program

        known = bundle.component(component)
        self.ports: Ports = known.ports
        self._component, self._batch = component, known.options.get("batch", 1)
        self._programs = [Program(package) for package in apple.packages(bundle, component)]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return apple.call(self._component, self.ports, self._batch, self._predict, inputs)

    def _predict(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A second half takes the inputs, too, and what the first gives."""
        outputs: dict[str, np.ndarray] = {}
        for program in self._programs:
            outputs = program(**{**arrays, **outputs})
        return outputs

    def close(self) -> None:
        self._programs.clear()


def open(bundle: Bundle, component: str, options: Options) -> MilRuntime:
    return MilRuntime(bundle, component)


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """Operators, all executed by PyTorch."""
    return {"torch": sum((bundle.component(component).operators or {}).values())}


def available() -> list[str]:
    return ["torch"]
