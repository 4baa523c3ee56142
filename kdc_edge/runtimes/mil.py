"""Core ML packages executed op by op, not by Core ML, on any system: what the saved program computes, not how fast a device is.

    python -m kdc_edge.runtimes.mil Unet.mlpackage --list-ops

Every fp16 operator's result is rounded to fp16, as the package declares. Needs torch and coremltools.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import MissingBackend
from kdc_edge.ports import Ports
from kdc_edge.runtimes import Options, apple

LABEL = "executed op by op, not by Core ML"


class MilRuntime:
    """A component's programs behind its ports."""

    def __init__(self, packages: Sequence[Any], component: str, ports: Ports, batch: int, threads: int | None) -> None:
        self.ports = ports
        self._packages, self._component, self._batch, self._threads = list(packages), component, batch, threads
        self._programs: dict[tuple[int, str], Any] = {}

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return apple.call(self._component, self.ports, self._batch, self._predict, inputs)

    def _predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call under Apple's names; a second half takes the inputs, too, and what the first gives."""
        arrays, outputs = dict(inputs), dict[str, np.ndarray]()
        for index, package in enumerate(self._packages):
            program = self._program(index, package.fitting({name: array.shape for name, array in arrays.items()}))
            outputs = program(threads=self._threads, **{name: arrays[name] for name in program.inputs})
            arrays |= outputs
        return outputs

    def _program(self, index: int, function: str) -> Any:
        from kdc_edge.torch_ref.mil.program import Program

        if (index, function) not in self._programs:
            self._programs[index, function] = Program.of(self._packages[index], function)
        return self._programs[index, function]

    def close(self) -> None:
        self._packages.clear()
        self._programs.clear()


def open(bundle: Bundle, component: str, options: Options) -> MilRuntime:
    """Read a component's packages. Raises BundleError for what is damaged or not known here, MissingBackend."""
    known = bundle.component(component)
    packages = _packages(bundle, component, options)
    return MilRuntime(packages, component, known.ports, known.options.get("batch", 1), options.threads)


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """All operators, executed by torch on the CPU."""
    packages = _packages(bundle, component, options)
    return {"cpu": sum(sum(kinds(package).values()) for package in packages)}


def available() -> list[str]:
    """The CPU. Raises MissingBackend."""
    toolchain()
    return ["cpu"]


def toolchain() -> Any:
    """The package reader. Raises MissingBackend where torch is absent; coremltools is looked for when a package is read."""
    try:
        from kdc_edge.torch_ref.mil import container
    except ImportError as error:
        raise MissingBackend(f"{error.name} is not installed; pip install 'kdc-edge[coreml]'") from None
    container.require()
    return container


def kinds(package: Any, function: str | None = None) -> Counter[str]:
    """Operators of a function by kind, constants left out."""
    name = package.function(function)
    found = (operation.type for operation in toolchain().operations(package.functions[name]))
    return Counter(kind for kind in found if kind != "const" and not kind.startswith("constexpr_"))


def _packages(bundle: Bundle, component: str, options: Options) -> list[Any]:
    container = toolchain()
    if options.provider not in (None, "cpu") and not options.allow_fallback:
        raise MissingBackend(f"mil has no {options.provider}, it executes on the cpu; pass --allow-fallback to go on")
    return [container.Package.open(path) for path in apple.packages(bundle, component)]
