"""Core ML packages executed op by op, not by Core ML, on any system: what a program computes, not how fast a device is.

    python -m kdc_edge.runtimes.mil Unet.mlpackage --list-ops

Every fp16 operator's result is rounded to fp16, as the package declares. Needs torch and coremltools.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from kdc_edge import command
from kdc_edge.bundle import Bundle
from kdc_edge.errors import GateError, MissingBackend
from kdc_edge.ports import Ports
from kdc_edge.runtimes import Options, apple

LABEL = "executed op by op, not by Core ML"


@dataclass(frozen=True)
class LookConfig:
    """What to look into."""

    path: tyro.conf.Positional[Path]
    """A .mlpackage."""
    list_ops: bool = False
    """Count its operators by kind and stop; else every operator's range on seeded inputs is shown."""
    function: str | None = None
    """Of a package with several; the default one if not given."""


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


def look(config: LookConfig) -> dict[str, Any]:
    """Say what a Core ML package is made of, and which numbers go through it."""
    if config.list_ops:
        found = kinds(toolchain().Package.open(config.path), config.function)
        print(*(f"{count:6}  {kind}" for kind, count in sorted(found.items())), sep="\n", file=sys.stderr)
        return {"package": str(config.path), "operators": dict(sorted(found.items()))}
    return verify(config.path, None, config.function, every=True)


def verify(path: Path, against: Path | None, function: str | None = None, every: bool = False) -> dict[str, Any]:
    """Execute a package on seeded inputs; raises GateError where it is not what PyTorch computes of `against`."""
    toolchain()
    from kdc_edge.torch_ref.mil import report
    from kdc_edge.torch_ref.mil.verify import DEPARTS, verify

    found = verify(path, against, function)
    print(*report.table(found.lines if every else found.shown), sep="\n", file=sys.stderr)
    print(f"{path}: {found.operators} operators, {LABEL}, in {found.calls} calls", file=sys.stderr)
    whom = "its fp32 execution" if against is None else f"{against} in PyTorch fp32"
    if found.departs is None:
        print(f"no operator departs from {whom} by more than {DEPARTS:.0%}", file=sys.stderr)
    else:
        print(f"{found.departs.name} is the first to depart from {whom} by more than {DEPARTS:.0%}", file=sys.stderr)
    for name, db in (found.snr_db or {}).items():
        print(f"{name}: SNR {db:.1f} dB, floor {found.floor_db:.0f} dB", file=sys.stderr)
    if not found.passed:
        low = ", ".join(f"{name} {db:.1f} dB" for name, db in (found.snr_db or {}).items() if not db >= found.floor_db)
        raise GateError(f"{path} is not what PyTorch computes of {against}: {low}, floor {found.floor_db:.0f} dB")
    return {"kind": "package", "path": str(path), "executed": LABEL, **found.to_json()}


def main(argv: list[str] | None = None) -> None:
    command.run(look, argv, prog="python -m kdc_edge.runtimes.mil", description=__doc__)


if __name__ == "__main__":
    main()
