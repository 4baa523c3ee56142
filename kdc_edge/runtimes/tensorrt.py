"""TensorRT over bundles of typed ONNX: engines from the cache, built where there is none; numpy in and out.

Arrays go through one buffer a port; of calls of the same sizes, all after the first are one CUDA graph if it can be captured.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend, UsageError
from kdc_edge.files import read_json
from kdc_edge.ports import Ports, check, resolve, zeros
from kdc_edge.runtimes import Options, Runtime, compiled, engines, layers, plans
from kdc_edge.runtimes import device as cuda
from kdc_edge.runtimes.half import widened

TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
LAYER_CALLS = 10
DEFAULTS = engines.BuildOptions()
WEIGHTS = "weights.json"  # beside a component's graph: its structure, and names, types and shapes of its weights

log = logging.getLogger(__name__)


class TensorRtRuntime:
    """An execution context behind the component's ports."""

    def __init__(
        self, trt: Any, cudart: Any, engine: bytes, component: str, ports: Ports, profile: Mapping[str, Any]
    ) -> None:
        self.ports, self._trt = ports, trt
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
        self._seen: tuple[int, ...] | None = None  # sizes of the last call
        self._graph: Any = None  # of calls of those sizes
        self._captures = True

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        sizes = check(self.ports.inputs, inputs, self._component)
        for axis, size in sizes.items():
            if size > self._largest[axis]:
                raise UsageError(
                    f"{self._component}: {axis} is {size}, the engine was built for {self._largest[axis]} at most"
                )
        fed = {name: np.asarray(array, order="C") for name, array in inputs.items()}  # a scalar stays one
        for name, array in fed.items():
            self._context.set_input_shape(name, array.shape)
            self._copy(int(self._buffers[name]), array.ctypes.data, array.nbytes, TO_DEVICE)
        self._run(tuple(sizes.values()))
        outputs = {port.name: np.empty(resolve(port, sizes), port.dtype) for port in self.ports.outputs}
        for name, array in outputs.items():
            self._copy(array.ctypes.data, int(self._buffers[name]), array.nbytes, TO_HOST)
        cuda.call(self._cuda.cudaStreamSynchronize(self._stream))
        return outputs

    def layers(self, calls: int, **inputs: np.ndarray) -> list[dict[str, Any]]:
        """Kind, type and median milliseconds of each layer; without a CUDA graph, so that they sum up to more."""
        times: dict[str, list[float]] = {}
        self._drop()
        self(**inputs)
        self._captures = False
        self._context.profiler = profiler = layers.timer(self._trt, times)
        for _ in range(calls):
            self(**inputs)
        self._context.profiler, self._captures = None, True
        del profiler
        return layers.table(layers.described(self._trt, self._engine), times)

    def close(self) -> None:
        self._drop()
        for address in self._buffers.values():
            cuda.call(self._cuda.cudaFree(address))
        cuda.call(self._cuda.cudaStreamDestroy(self._stream))
        self._buffers = {}
        del self._context, self._engine, self._runtime

    def _allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        return cuda.call(self._cuda.cudaMalloc(max(1, int(np.prod(shape))) * np.dtype(dtype).itemsize))

    def _copy(self, target: int, source: int, count: int, kind: int) -> None:
        kinds = self._cuda.cudaMemcpyKind
        way = kinds.cudaMemcpyHostToDevice if kind == TO_DEVICE else kinds.cudaMemcpyDeviceToHost
        cuda.call(self._cuda.cudaMemcpyAsync(target, source, count, way, self._stream))

    def _run(self, sizes: tuple[int, ...]) -> None:
        """The first call of its sizes runs as it is, the second is captured, later ones replay; other sizes start anew."""
        if sizes != self._seen:
            self._drop()
            self._seen = sizes
        elif self._graph is None and self._captures:
            self._capture()
        if self._graph is None:
            self._execute()
        else:
            cuda.call(self._cuda.cudaGraphLaunch(self._graph, self._stream))

    def _capture(self) -> None:
        """An engine that cannot be captured runs without a graph, and says so once."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call(self._cuda.cudaStreamSynchronize(self._stream))
        cuda.call(self._cuda.cudaStreamBeginCapture(self._stream, mode))
        done = self._context.execute_async_v3(int(self._stream))
        error, graph = self._cuda.cudaStreamEndCapture(self._stream)
        if not done or int(error) != 0:
            log.warning(
                "%s: the engine cannot be captured into a CUDA graph; each call launches its kernels", self._component
            )
            self._captures = False
            return
        self._graph = cuda.call(self._cuda.cudaGraphInstantiate(graph, 0))
        cuda.call(self._cuda.cudaGraphDestroy(graph))

    def _drop(self) -> None:
        if self._graph is not None:
            cuda.call(self._cuda.cudaGraphExecDestroy(self._graph))
        self._graph = self._seen = None

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise BundleError(f"{self._component}: the engine failed; build it again: kdc-edge build")


def open(bundle: Bundle, component: str, options: Options) -> Runtime:
    """From the cache, whatever flags it was built with; built first where there is none."""
    trt, cudart = engines.toolchain(), cuda.runtime()
    return opened(trt, cudart, _cached(bundle, component, trt, cudart, options.cache_dir), bundle, component)


def _cached(bundle: Bundle, component: str, trt: Any, cudart: Any, cache: Path | None) -> bytes:
    folder = compiled.home() if cache is None else cache
    wanted = identity(bundle, component, trt, cuda.device(cudart), DEFAULTS)
    path = plans.fitting(folder, component, wanted) or engine(bundle, component, trt, cudart, folder)[0]
    return path.read_bytes()


def opened(trt: Any, cudart: Any, plan: bytes, bundle: Bundle, component: str) -> Runtime:
    """An engine of a component, to be called."""
    entry = bundle.component(component)
    return widened(TensorRtRuntime(trt, cudart, plan, component, entry.ports, entry.options.get("profile", {})))


def engine(
    bundle: Bundle, component: str, trt: Any, cudart: Any, cache: Path | None = None,
    options: engines.BuildOptions = DEFAULTS,
) -> tuple[Path, bool]:  # fmt: skip
    """The engine of a component for this device, and whether it was built now."""
    entry, here = bundle.component(component), cuda.device(cudart)
    engines.check_device(bundle.manifest.precision, here.sm, here.memory_mib, options)
    model, profile = bundle.path / entry.files[0], entry.options.get("profile", {})
    return plans.obtain(
        compiled.home() if cache is None else cache,
        component,
        identity(bundle, component, trt, here, options),
        lambda timing: engines.build(trt, model, entry.inputs, profile, options, timing),
        about(bundle, component),
    )


def identity(
    bundle: Bundle, component: str, trt: Any, here: cuda.Device, options: engines.BuildOptions
) -> plans.Identity:
    entry = bundle.component(component)
    files, profile = [bundle.path / file for file in entry.files], entry.options.get("profile", {})
    return plans.Identity.of(files, profile, trt.__version__, here, options)


def about(bundle: Bundle, component: str) -> dict[str, Any]:
    """What the sidecar says for a later refit: the component, and what its graph is but for the weights' values."""
    path = bundle.path / component / WEIGHTS
    return {"component": component, "weights": read_json(path) if path.exists() else None}


def layer_times(bundle: Bundle, component: str, options: Options) -> list[dict[str, Any]]:
    """Of each layer of the engine, on a call of the largest batch: what it is, what it computes in, how long it takes."""
    trt, cudart = engines.toolchain(), cuda.runtime()
    plan, entry = _cached(bundle, component, trt, cudart, options.cache_dir), bundle.component(component)
    profile = entry.options.get("profile", {})
    opened = TensorRtRuntime(trt, cudart, plan, component, entry.ports, profile)
    try:
        return opened.layers(LAYER_CALLS, **zeros(entry.inputs, {axis: s[2] for axis, s in profile.items()}))
    finally:
        opened.close()


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
