"""TensorRT over bundles of typed ONNX: engines from the cache, built where there is none; numpy in and out.

Arrays go through one buffer a port; a call is one CUDA graph after the first of its shapes, where TensorRT can be captured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend, UsageError
from kdc_edge.ports import Ports, check, resolve
from kdc_edge.runtimes import Options, Runtime, engines, plans
from kdc_edge.runtimes import device as cuda
from kdc_edge.runtimes.half import widened

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
DEFAULTS = engines.BuildOptions()


class TensorRtRuntime:
    """An execution context behind the component's ports."""

    def __init__(
        self, trt: Any, cudart: Any, engine: bytes, component: str, ports: Ports, profile: Mapping[str, Any]
    ) -> None:
        self.ports = ports
        self._cuda, self._component, self._largest = cudart, component, {axis: s[2] for axis, s in profile.items()}
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise BundleError(
                f"{component}: TensorRT {trt.__version__} cannot load the engine; build it again: kdc-edge build"
            )
        self._context = self._engine.create_execution_context()
        self._stream = cuda.call(cudart.cudaStreamCreate())
        self._buffers = {
            p.name: self._allocate(resolve(p, self._largest), p.dtype) for p in (*ports.inputs, *ports.outputs)
        }
        for name, address in self._buffers.items():
            self._context.set_tensor_address(name, int(address))
        self._graphs: dict[tuple[int, ...], Any] = {}

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        sizes = check(self.ports.inputs, inputs, self._component)
        for axis, size in sizes.items():
            if size > self._largest[axis]:
                raise UsageError(
                    f"{self._component}: {axis} is {size}, the engine was built for {self._largest[axis]} at most"
                )
        fed = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in fed.items():
            self._context.set_input_shape(name, array.shape)
            self._copy(int(self._buffers[name]), array.ctypes.data, array.nbytes, TO_DEVICE)
        self._run(tuple(sizes.values()))
        outputs = {port.name: np.empty(resolve(port, sizes), port.dtype) for port in self.ports.outputs}
        for name, array in outputs.items():
            self._copy(array.ctypes.data, int(self._buffers[name]), array.nbytes, TO_HOST)
        cuda.call(self._cuda.cudaStreamSynchronize(self._stream))
        return outputs

    def close(self) -> None:
        for graph in self._graphs.values():
            cuda.call(self._cuda.cudaGraphExecDestroy(graph))
        for address in self._buffers.values():
            cuda.call(self._cuda.cudaFree(address))
        cuda.call(self._cuda.cudaStreamDestroy(self._stream))
        self._graphs, self._buffers = {}, {}
        del self._context, self._engine, self._runtime

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        return cuda.call(self._cuda.cudaMalloc(max(1, int(np.prod(shape))) * np.dtype(dtype).itemsize))

    def _copy(self, target: int, source: int, count: int, kind: int) -> None:
        kinds = self._cuda.cudaMemcpyKind
        way = kinds.cudaMemcpyHostToDevice if kind == TO_DEVICE else kinds.cudaMemcpyDeviceToHost
        cuda.call(self._cuda.cudaMemcpyAsync(target, source, count, way, self._stream))

    def _run(self, shape: tuple[int, ...]) -> None:
        """The first call of a shape runs as it is, the second is captured, later ones replay."""
        if shape not in self._graphs:
            self._execute()
            self._graphs[shape] = None
        elif self._graphs[shape] is None:
            mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            cuda.call(self._cuda.cudaStreamSynchronize(self._stream))
            cuda.call(self._cuda.cudaStreamBeginCapture(self._stream, mode))
            self._execute()
            graph = cuda.call(self._cuda.cudaStreamEndCapture(self._stream))
            self._graphs[shape] = cuda.call(self._cuda.cudaGraphInstantiate(graph, 0))
        if self._graphs[shape] is not None:
            cuda.call(self._cuda.cudaGraphLaunch(self._graphs[shape], self._stream))

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise BundleError(f"{self._component}: the engine failed; build it again: kdc-edge build")


def open(bundle: Bundle, component: str, options: Options) -> Runtime:
    """From the cache, built first where it is not there."""
    trt, cudart = engines.toolchain(), cuda.runtime()
    path, _ = engine(bundle, component, trt, cudart, options.cache_dir)
    entry = bundle.component(component)
    profile = entry.options.get("profile", {})
    return widened(TensorRtRuntime(trt, cudart, path.read_bytes(), component, entry.ports, profile))


def engine(
    bundle: Bundle, component: str, trt: Any, cudart: Any, cache: Path | None = None,
    options: engines.BuildOptions = DEFAULTS,
) -> tuple[Path, bool]:  # fmt: skip
    """The engine of a component for this device, and whether it was built now."""
    entry, here = bundle.component(component), cuda.device(cudart)
    engines.check_device(bundle.manifest.precision, here.sm, here.memory_mib, options)
    files, profile = [bundle.path / file for file in entry.files], entry.options.get("profile", {})
    identity = plans.Identity.of(files, profile, trt.__version__, here, options)
    folder = plans.default_cache() if cache is None else cache
    return plans.obtain(
        folder, component, identity, lambda timing: engines.build(trt, files[0], entry.inputs, profile, options, timing)
    )


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """Everything in an engine runs on the GPU."""
    return {"tensorrt": sum((bundle.component(component).operators or {}).values())}


def available() -> list[str]:
    """`cuda` where TensorRT, cuda-python and a device are here."""
    try:
        engines.toolchain()
        cuda.device(cuda.runtime())
    except MissingBackend:
        return []
    return ["cuda"]
