"""A `tensorrt` of a chosen version: it has the attributes listed here for it and no other.

An engine of it is the ONNX file it was built from, and onnxruntime executes it, on memory of fake_cuda and in its order.

Sources: NVIDIA's Python API documentation, "Removed Python APIs and Replacements" (11.4.0, migration from 10.x to 11.x), and
the table of what each version has that the builder of this project was written from. Only what a builder may touch is
listed, with what was removed, so that touching that raises.
"""

import json
from pathlib import Path
from typing import Any

import onnx

from tests.kdc_edge.fake_cuda import Cuda

VERSIONS = ("10.3.0", "10.16.0", "11.4.0")
BOTH = {
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "BuilderFlag": {"REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL", "WEIGHT_STREAMING", "VERSION_COMPATIBLE"},
    "Builder": {"create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"},
    "IBuilderConfig": {
        "set_memory_pool_limit", "create_timing_cache", "set_timing_cache", "add_optimization_profile", "set_flag",
        "profiling_verbosity", "builder_optimization_level", "hardware_compatibility_level",
    },
    "Runtime": {"deserialize_cuda_engine"},
    "ICudaEngine": {"create_execution_context", "serialize", "create_engine_inspector", "device_memory_size_v2"},
    "IExecutionContext": {"set_tensor_address", "set_input_shape", "execute_async_v3", "profiler"},
    "EngineInspector": {"get_engine_information"},
    "Refitter": {"get_missing_weights", "refit_cuda_engine", "set_named_weights"},
    "OnnxParserRefitter": {"refit_from_file", "num_errors", "get_error"},
}  # fmt: skip
ONLY_10 = {
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH"},
    "BuilderFlag": {"FP16", "BF16", "INT8", "FP8", "INT4"},
    "Builder": {"platform_has_fast_fp16", "platform_has_fast_int8"},
    "IBuilderConfig": {"int8_calibrator", "set_quantization_flag"},
    "ICudaEngine": {"device_memory_size", "has_implicit_batch_dimension"},
    "IExecutionContext": {"execute_v2"},
}
SINCE_10_16 = {"BuilderFlag": {"EDITABLE_TIMING_CACHE", "STRICT_NANS"}}


def known(version: str, kind: str) -> set[str]:
    found = set(BOTH[kind])
    found |= ONLY_10.get(kind, set()) if version.startswith("10.") else set()
    return found | (SINCE_10_16.get(kind, set()) if version != "10.3.0" else set())


class Strict:
    """Anything of the names it is given; reading or setting another raises AttributeError. Calls are kept."""

    def __init__(self, kind: str, names: set[str], log: list[tuple[str, tuple]], **values: Any) -> None:
        self.__dict__.update(_kind=kind, _names=names | set(values), _log=log, **values)

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(f"this TensorRT's {self._kind} has no {name}")
        return lambda *given: self._log.append((name, given))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"this TensorRT's {self._kind} has no {name}")
        self._log.append((name, (value,)))


class Enum(Strict):
    def __getattr__(self, name: str) -> Any:
        super().__getattr__(name)
        return sorted(self._names).index(name)


ENGINE = b"engine "


class Engine:
    """What one of this version's engines can do; its weights can be replaced, and `broken` loses them."""

    def __init__(self, version: str, model: bytes, cuda: Cuda, broken: bool) -> None:
        self.version, self.model, self.cuda, self.broken = version, model, cuda, broken

    def strict(self, log: list[tuple[str, tuple]]) -> Strict:
        def part(kind: str, **values: Any) -> Strict:
            return Strict(kind, known(self.version, kind), log, **values)

        inspector = part("EngineInspector", get_engine_information=lambda _: json.dumps({"Layers": self._layers()}))
        return part(
            "ICudaEngine",
            create_execution_context=lambda: Context(self, known(self.version, "IExecutionContext")),
            serialize=lambda: ENGINE + self.model,
            create_engine_inspector=lambda: inspector,
            fake=self,
        )

    def _layers(self) -> list[dict[str, Any]]:
        nodes = onnx.load_from_string(self.model).graph.node
        return [
            {"Name": n.name or n.output[0], "LayerType": n.op_type, "Outputs": [{"Format/Datatype": "Half"}]}
            for n in nodes
        ]

    def refit(self, model: bytes) -> None:
        graph = onnx.load_from_string(model).graph
        for tensor in graph.initializer if self.broken else ():
            if tensor.raw_data and len(tensor.dims) > 1:
                tensor.raw_data = bytes(len(tensor.raw_data))
        kept = onnx.load_from_string(self.model)
        del kept.graph.initializer[:]
        kept.graph.initializer.extend(graph.initializer)
        self.model = kept.SerializeToString()


class Context:
    """Reads and writes device memory at the addresses it was told, when its turn on the stream has come."""

    def __init__(self, engine: Engine, names: set[str]) -> None:
        import onnxruntime

        self.__dict__.update(_names=names, _addresses={}, _shapes={}, _cuda=engine.cuda, _layers=engine._layers())
        self.__dict__["_session"] = onnxruntime.InferenceSession(engine.model)
        self.__dict__["profiler"] = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"this TensorRT's IExecutionContext has no {name}")
        self.__dict__[name] = value

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shapes, profiler = dict(self._shapes), self.profiler

        def run() -> None:
            kinds = {i.name: onnx_type(i.type) for i in self._session.get_inputs()}
            feed = {n: self._cuda.array(self._addresses[n], shapes[n], kinds[n]).copy() for n in kinds}
            for out, result in zip(self._session.get_outputs(), self._session.run(None, feed), strict=True):
                self._cuda.array(self._addresses[out.name], result.shape, result.dtype)[...] = result
            for layer in self._layers if profiler is not None else ():
                profiler.report_layer_time(layer["Name"], 0.5)

        return self._cuda.enqueue(stream, run)


def onnx_type(text: str) -> str:
    return {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}[text]


class IProfiler:
    pass


def running(version: str, log: list[tuple[str, tuple]], cuda: Cuda, broken: bool) -> dict[str, Any]:
    """What executes and refits engines."""

    def deserialize(data: bytes) -> Any:
        return Engine(version, data[len(ENGINE) :], cuda, broken).strict(log) if data.startswith(ENGINE) else None

    def refitter(engine: Any, _: Any) -> Strict:
        parts = {"get_missing_weights": list, "refit_cuda_engine": lambda: True, "engine": engine}
        return Strict("Refitter", known(version, "Refitter"), log, **parts)

    def parser(of: Any, _: Any) -> Strict:
        def read(path: str) -> bool:
            of.engine.fake.refit(Path(path).read_bytes())
            return True

        return Strict(
            "OnnxParserRefitter", known(version, "OnnxParserRefitter"), log, refit_from_file=read, num_errors=0
        )

    return {
        "Runtime": lambda _: Strict("Runtime", known(version, "Runtime"), log, deserialize_cuda_engine=deserialize),
        "Refitter": refitter,
        "OnnxParserRefitter": parser,
        "IProfiler": IProfiler,
    }


def fake(
    version: str, accepts: bool = True, cuda: Cuda | None = None, broken: bool = False
) -> tuple[Any, list[tuple[str, tuple]]]:
    """The module, and what is called in it. A `broken` one's refits lose the weights."""
    log: list[tuple[str, tuple]] = []

    def keep(name: str, result: Any) -> Any:
        return lambda *given: (log.append((name, given)), result)[1]

    cache = Strict("ITimingCache", set(), log, serialize=lambda: b"timings")
    config = Strict(
        "IBuilderConfig", known(version, "IBuilderConfig"), log, create_timing_cache=keep("create_timing_cache", cache)
    )
    profile = Strict("IOptimizationProfile", {"set_shape"}, log)
    parts = {
        "create_network": keep("create_network", "network"),
        "create_builder_config": lambda: config,
        "create_optimization_profile": lambda: profile,
        "build_serialized_network": lambda *given: keep("build_serialized_network", ENGINE + read[-1])(*given),
    }
    builder = Strict("Builder", known(version, "Builder"), log, **parts)
    error = Strict("ParserError", set(), log, desc=lambda: "no importer")
    read: list[bytes] = []

    def parse(path: str) -> bool:
        read.append(Path(path).read_bytes() if Path(path).exists() else b"")
        return accepts

    parser = Strict("OnnxParser", set(), log, parse_from_file=parse, num_errors=1, get_error=lambda _: error)
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    enums = {
        "NetworkDefinitionCreationFlag": known(version, "NetworkDefinitionCreationFlag"),
        "BuilderFlag": known(version, "BuilderFlag"),
        "ProfilingVerbosity": {"DETAILED", "LAYER_NAMES_ONLY", "NONE"},
        "MemoryPoolType": {"WORKSPACE"},
        "HardwareCompatibilityLevel": {"NONE", "AMPERE_PLUS"},
        "LayerInformationFormat": {"JSON", "ONELINE"},
    }
    module = {name: Enum(name, names, log) for name, names in enums.items()}
    module |= {"Logger": logger, "Builder": lambda _: builder, "OnnxParser": lambda *_: parser, "__version__": version}
    module |= running(version, log, Cuda() if cuda is None else cuda, broken)
    return Strict("module", set(), log, **module), log
