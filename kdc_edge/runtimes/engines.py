"""Builds TensorRT engines from typed ONNX, on the machine they will run on: no torch, the same code from 10.3 to 11.

Networks are strongly typed: precision is in the graph, and no precision flag is ever set, for TensorRT 11 has none. Driven
by the module it is given: `tensorrt`, `tensorrt_rtx` (which builds on a CPU), or a fake with a version's attributes.
"""

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc_edge.errors import BundleError, MissingBackend, ResourceError, UsageError
from kdc_edge.ports import Port, resolve

OLDEST, NEWEST = (10, 3), (12, 0)
SUPPLIED = "it comes with JetPack on a Jetson, with NVIDIA's container images and packages elsewhere"
FP8_FROM = 89  # sm_89: Ada

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """What decides an engine beside the graph; None leaves it to TensorRT."""

    workspace_mib: int | None = None
    """Memory that kernels may use beside weights and activations."""
    version_compatible: bool = False
    """Runs on later TensorRT of the same major version."""
    hardware_compatible: bool = False
    """Runs on other devices of Ampere and later; slower. Not on a Jetson."""
    weight_streaming: bool = False
    """Weights may stay outside the device's memory."""
    refit: bool = False
    """Weights can be replaced later: kdc-edge refit."""
    optimization_level: int | None = None
    """0 to 5: how long to look for kernels."""

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise UsageError(f"workspace is {self.workspace_mib} MiB, must be at least 1")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"optimization level is {self.optimization_level}, must be 0 to 5")


def toolchain() -> Any:
    """The tensorrt module. Raises MissingBackend where it is absent or of another age."""
    try:
        import tensorrt
    except ImportError:
        raise MissingBackend(f"tensorrt is not installed; {SUPPLIED}") from None
    if not OLDEST <= version(tensorrt) < NEWEST:
        raise MissingBackend(f"tensorrt {tensorrt.__version__} is here, 10.3 to 11 are supported; {SUPPLIED}")
    return tensorrt


def version(trt: Any) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", trt.__version__)[:2]
    return int(major), int(minor)


def check_device(precision: str, sm: int, memory_mib: int, options: BuildOptions) -> None:
    """Raises MissingBackend for a precision the device has not, ResourceError for a workspace larger than it."""
    if precision == "fp8" and sm < FP8_FROM:
        raise MissingBackend(f"fp8 needs sm_{FP8_FROM} or later, this device is sm_{sm}; use fp16 or int8")
    if options.workspace_mib is not None and options.workspace_mib > memory_mib:
        raise ResourceError(f"the workspace is {options.workspace_mib} MiB, the device has {memory_mib} in all")


def build(
    trt: Any,
    model: Path,
    inputs: Sequence[Port],
    profile: Mapping[str, Sequence[int]],
    options: BuildOptions = BuildOptions(),
    timing_cache: bytes = b"",
    target: Any = None,
) -> tuple[bytes, bytes]:
    """The serialized engine and the timing cache; `profile` says least, usual and largest size of each free axis.

    `target` is a compute capability to build for without a device (tensorrt-rtx). Raises BundleError for a graph that is
    not taken, with the parser's words.
    """
    log.info("as trtexec: %s", trtexec(model, inputs, profile, options))
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        told = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BundleError(
            f"{model}: TensorRT {trt.__version__} does not take it: {told}; python -m convert.tensorrt lint"
        )
    config = _config(trt, builder, options)
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(target, 0)
    cache = None
    if target is None:  # without a device nothing is timed
        cache = config.create_timing_cache(timing_cache)
        config.set_timing_cache(cache, False)
    if any(isinstance(axis, str) for port in inputs for axis in port.shape):
        config.add_optimization_profile(_profile(builder, inputs, profile))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError(f"{model}: TensorRT {trt.__version__} built nothing; its log above says why")
    return bytes(plan), b"" if cache is None else bytes(cache.serialize())


def refit(trt: Any, engine: bytes, model: Path) -> bytes:
    """The engine with the weights of another ONNX file of the same graph. Raises BundleError where one is missing."""
    logger = trt.Logger(trt.Logger.ERROR)
    opened = trt.Runtime(logger).deserialize_cuda_engine(engine)
    if opened is None:
        raise BundleError(f"TensorRT {trt.__version__} cannot load the engine; build it again: kdc-edge build")
    refitter = trt.Refitter(opened, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(model)):
        told = "; ".join(str(parser.get_error(i).desc()) for i in range(parser.num_errors))
        raise BundleError(f"{model}: TensorRT {trt.__version__} does not take its weights: {told}")
    if missing := list(refitter.get_missing_weights()):
        raise BundleError(f"{model}: the engine wants {len(missing)} more weights, '{missing[0]}' first")
    if not refitter.refit_cuda_engine():
        raise BundleError(f"{model}: TensorRT {trt.__version__} did not take its weights; its log above says why")
    return bytes(opened.serialize())


def _config(trt: Any, builder: Any, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    for wanted, flag in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.weight_streaming, "WEIGHT_STREAMING"),
        (options.refit, "REFIT"),
    ):
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, flag))
    return config


def _profile(builder: Any, inputs: Sequence[Port], sizes: Mapping[str, Sequence[int]]) -> Any:
    profile = builder.create_optimization_profile()
    for port in inputs:
        if port.shape:
            profile.set_shape(port.name, *(resolve(port, {axis: s[i] for axis, s in sizes.items()}) for i in range(3)))
    return profile


def trtexec(model: Path, inputs: Sequence[Port], sizes: Mapping[str, Sequence[int]], options: BuildOptions) -> str:
    """The command line that builds the same engine."""
    words = ["trtexec", f"--onnx={model}", "--stronglyTyped", "--profilingVerbosity=detailed"]
    words += [f"--saveEngine={model.with_suffix('.engine')}", f"--timingCacheFile={model.with_suffix('.timing')}"]
    if any(isinstance(axis, str) for port in inputs for axis in port.shape):
        for i, name in enumerate(("minShapes", "optShapes", "maxShapes")):
            at = {axis: s[i] for axis, s in sizes.items()}
            shapes = (f"{p.name}:{'x'.join(map(str, resolve(p, at)))}" for p in inputs if p.shape)
            words.append(f"--{name}={','.join(shapes)}")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}M")
    if options.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.hardware_compatible:
        words.append("--hardwareCompatibilityLevel=ampere+")
    flags = {
        "--versionCompatible": options.version_compatible,
        "--allowWeightStreaming": options.weight_streaming,
        "--refit": options.refit,
    }
    return shlex.join([*words, *(flag for flag, wanted in flags.items() if wanted)])
