"""Core ML itself, on a Mac: packages are compiled once and kept, then loaded for the compute units that were asked for.

`provider` is cpu, gpu (and CPU), ane (the Neural Engine and CPU) or all, Core ML's own choice and the default. Where an
operator ran is what Core ML's compute plan says it prefers, which is as near as the system lets one look.
"""

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend, choose
from kdc_edge.ports import Ports
from kdc_edge.runtimes import Options, apple, compiled
from kdc_edge.timing import SYSTEM

UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE"}
DEVICES = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}
REMEDY = "ask for another --provider, or pass --allow-fallback to let Core ML choose"


@dataclass(frozen=True)
class Prepared:
    """Wall seconds before the first prediction; `compile` is 0 where the cache had it."""

    compile: float
    load: float


class CoremlRuntime:
    """A component's compiled models behind its ports."""

    def __init__(self, models: Sequence[Any], component: str, ports: Ports, batch: int, prepared: Prepared) -> None:
        self.ports, self.prepared = ports, prepared
        self._models, self._component, self._batch = list(models), component, batch

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return apple.call(self._component, self.ports, self._batch, self._predict, inputs)

    def _predict(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call under Apple's names; a second half takes the inputs, too, and what the first gives."""
        outputs: dict[str, np.ndarray] = {}
        for model in self._models:
            outputs = {name: np.asarray(array) for name, array in model.predict({**inputs, **outputs}).items()}
        return outputs

    def close(self) -> None:
        self._models.clear()


def open(bundle: Bundle, component: str, options: Options) -> CoremlRuntime:
    """Compile what is not in the cache, load it, and see that the unit that was asked for is used."""
    library, unit = toolchain(), _unit(options)
    start = SYSTEM.wall()
    paths, fresh = _compiled(library, bundle, component, options)
    after = SYSTEM.wall()
    models = [_load(library, path, unit) for path in paths]
    prepared = Prepared(after - start if fresh else 0.0, SYSTEM.wall() - after)
    wanted = options.provider
    if wanted in ("gpu", "ane") and not options.allow_fallback:
        used = _placement(library, paths, unit)
        if not used.get(wanted):
            seen = ", ".join(f"{count} on {name}" for name, count in used.items())
            raise MissingBackend(f"{component}: {wanted} was asked for, Core ML puts operators {seen}; {REMEDY}")
    known = bundle.component(component)
    return CoremlRuntime(models, component, known.ports, known.options.get("batch", 1), prepared)


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """Operators by the device that Core ML's plan prefers for them."""
    library = toolchain()
    return _placement(library, _compiled(library, bundle, component, options)[0], _unit(options))


def available() -> list[str]:
    """Compute units that can be asked for on this Mac."""
    toolchain()
    return list(UNITS)


def toolchain() -> Any:
    """The coremltools module, on macOS. Raises MissingBackend."""
    if sys.platform != "darwin":
        raise MissingBackend(
            f"Core ML predicts on macOS, this is {sys.platform}; --runtime mil executes the saved program anywhere"
        )
    try:
        import coremltools
    except ImportError:
        raise MissingBackend("coremltools is not installed; pip install 'kdc-edge[coreml]'") from None
    return coremltools


def _unit(options: Options) -> str:
    return UNITS[choose("all" if options.provider is None else options.provider, UNITS, "compute unit")]


def _compiled(library: Any, bundle: Bundle, component: str, options: Options) -> tuple[list[Path], bool]:
    """Compiled models of a component, and whether they had to be made."""
    cache = compiled.home() if options.cache_dir is None else options.cache_dir
    folder = compiled.folder(cache, bundle, component, "coremltools", library.__version__)
    packages = apple.packages(bundle, component)
    names = [f"{package.stem}.mlmodelc" for package in packages]
    fresh = not folder.exists()
    if fresh:
        with compiled.making(folder) as made:
            for package, name in zip(packages, names, strict=True):
                _compile(library, package, made / name)
    return [folder / name for name in names], fresh


def _compile(library: Any, package: Path, target: Path) -> None:
    try:
        library.models.utils.compile_model(str(package), str(target))
    except Exception as error:  # the framework's errors come as RuntimeError, and as Exception from its bridge
        raise BundleError(f"{package}: Core ML cannot compile it: {error}") from error


def _load(library: Any, path: Path, unit: str) -> Any:
    try:
        return library.models.CompiledMLModel(str(path), compute_units=getattr(library.ComputeUnit, unit))
    except Exception as error:
        shutil.rmtree(path.parent, ignore_errors=True)  # the next open compiles it anew
        raise BundleError(f"{path}: Core ML cannot load it: {error}; it was removed and is compiled anew") from error


def _placement(library: Any, paths: Sequence[Path], unit: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for path in paths:
        plan = library.models.compute_plan.MLComputePlan.load_from_path(
            str(path), compute_units=getattr(library.ComputeUnit, unit)
        )
        for function in plan.model_structure.program.functions.values():
            for operation in function.block.operations:
                usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                if usage is not None:  # a constant has none
                    kind = type(usage.preferred_compute_device).__name__
                    found[DEVICES.get(kind, kind)] += 1
    return dict(found)
