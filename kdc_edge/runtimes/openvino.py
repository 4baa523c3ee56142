"""OpenVINO over ONNX bundles: on x86 it multiplies in bfloat16 what an int8 bundle leaves in floating point.

Bundles of other precisions run in fp32, as onnxruntime runs them.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend
from kdc_edge.ports import Ports, check
from kdc_edge.runtimes import Options, compiled

FALLBACK = "CPU"


class OpenVinoRuntime:
    """A compiled model behind the component's ports."""

    def __init__(self, model: Any, component: str, ports: Ports) -> None:
        self.ports = ports
        self._request, self._component = model.create_infer_request(), component

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check(self.ports.inputs, inputs, self._component)
        found = self._request.infer({name: np.asarray(array, order="C") for name, array in inputs.items()})
        return {port.name: found[port.name].copy() for port in self.ports.outputs}

    def close(self) -> None:
        del self._request


def open(bundle: Bundle, component: str, options: Options) -> OpenVinoRuntime:
    """Read and compile the first file of an ONNX component."""
    ports, model = bundle.component(component).ports, _compile(bundle, component, options)
    named = {name for port in (*model.inputs, *model.outputs) for name in port.names}
    ports.require(named, f"{bundle.path}, {component}")
    return OpenVinoRuntime(model, component, ports)


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """Operators of the compiled model, all on its device."""
    model = _compile(bundle, component, options)
    device = str(model.get_property("EXECUTION_DEVICES")[0]).split(".")[0].strip("()").lower()
    kinds = Counter(node.get_type_name() for node in model.get_runtime_model().get_ops())
    return {device: kinds.total()}


def available() -> list[str]:
    """The devices OpenVINO sees, by their short names."""
    return sorted({name.split(".")[0].lower() for name in toolchain().Core().available_devices})


def toolchain() -> Any:
    """The openvino module. Raises MissingBackend."""
    try:
        import openvino
    except ImportError:
        raise MissingBackend("openvino is not installed; pip install 'kdc-edge[openvino]'") from None
    return openvino


def _compile(bundle: Bundle, component: str, options: Options) -> Any:
    core, version = toolchain().Core(), toolchain().__version__
    path = bundle.path / bundle.component(component).files[0]
    device = _device(core, options)
    settings: dict[str, Any] = {} if bundle.manifest.precision == "int8" else {"INFERENCE_PRECISION_HINT": "f32"}
    if options.threads is not None and device == "CPU":
        settings["INFERENCE_NUM_THREADS"] = options.threads
    try:
        model = core.read_model(path)
        if options.cache_dir is None:
            return core.compile_model(model, device, settings)
        kept = compiled.folder(options.cache_dir, bundle, component, "openvino", version)
        return _kept(core, model, device, settings, kept)
    except RuntimeError as error:
        raise BundleError(f"{path}: openvino {version} cannot load it: {error}") from error


def _kept(core: Any, model: Any, device: str, settings: dict[str, Any], kept: Path) -> Any:
    """Compiled from what lies in `kept`, or, where nothing does, leaving it there."""
    if kept.exists():
        return core.compile_model(model, device, settings | {"CACHE_DIR": str(kept)})
    with compiled.making(kept) as made:
        return core.compile_model(model, device, settings | {"CACHE_DIR": str(made)})


def _device(core: Any, options: Options) -> str:
    wanted = FALLBACK if options.provider is None else options.provider.upper()
    if wanted in {name.split(".")[0] for name in core.available_devices}:
        return wanted
    if options.allow_fallback:
        return FALLBACK
    seen = ", ".join(core.available_devices)
    raise MissingBackend(
        f"OpenVINO has no device {wanted} here, it has {seen}; pass --allow-fallback to run on the CPU"
    )
