"""ONNX Runtime: the CPU unless another execution provider is asked for."""

import contextlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, MissingBackend, ResourceError, choose
from kdc_edge.ports import Ports, check
from kdc_edge.runtimes import Options, Runtime, compiled, usual_feed
from kdc_edge.runtimes.half import widened

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dml": "DmlExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
QUIET = 3  # log errors only
OPTIMISED = "model.onnx"
LEAST = 0.05  # of a component, to say that a provider runs it
SMALLER = "close other programs, pass --low-memory, or draw smaller pictures"


class OrtRuntime:
    """An onnxruntime session behind the component's ports."""

    def __init__(self, session: Any, component: str, ports: Ports) -> None:
        self.ports = ports
        self._session, self._component = session, component

    @property
    def provider(self) -> str:
        """The execution provider that comes first; it may leave single operators to the CPU."""
        return self._session.get_providers()[0]

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check(self.ports.inputs, inputs, self._component)
        names = [port.name for port in self.ports.outputs]
        try:
            return dict(zip(names, self._session.run(names, inputs), strict=True))
        except Exception as error:  # the library's own classes derive from nothing narrower
            if out_of_memory(error):
                raise ResourceError(f"{self._component}: out of memory in a call; {SMALLER}") from error
            raise

    def close(self) -> None:
        del self._session


def open(bundle: Bundle, component: str, options: Options) -> Runtime:
    """Load the first file of an ONNX component; a provider asked for by name must run nodes of it."""
    ports = bundle.component(component).ports
    if options.provider in (None, "cpu") or options.allow_fallback:
        session = _session(bundle, component, options)
    else:
        session, ran = _profiled(bundle, component, options)
        _require_used(component, PROVIDERS[options.provider], ran)
    ports.require(
        {port.name for port in (*session.get_inputs(), *session.get_outputs())}, f"{bundle.path}, {component}"
    )
    return widened(OrtRuntime(session, component, ports))


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """Nodes by the provider that ran them, in one call on zeros, told by onnxruntime's own profile."""
    short = {full: name for name, full in PROVIDERS.items()}
    _, ran = _profiled(bundle, component, options)
    return {short.get(provider, provider): nodes for provider, (nodes, _) in ran.items()}


def _profiled(bundle: Bundle, component: str, options: Options) -> tuple[Any, dict[str, tuple[int, float]]]:
    """A session after one call on zeros; by provider, how many nodes it ran and for how many microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(bundle, component, options, profile=str(Path(folder) / "profile"))
        session.run(None, usual_feed(bundle, component))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    told = [event for event in events if event.get("args", {}).get("provider")]
    nodes = Counter({event["name"]: event["args"]["provider"] for event in told}.values())
    times: Counter[str] = Counter()
    for event in told:
        times[event["args"]["provider"]] += event["dur"]
    return session, {provider: (count, times[provider]) for provider, count in nodes.items()}


def _require_used(component: str, wanted: str, ran: Mapping[str, tuple[int, float]]) -> None:
    """Raises MissingBackend where the provider left nearly everything to others: few of the nodes, and little of the time.

    A provider that compiles has one node for many, one that does not wait for its device takes no time.
    """
    nodes, time = ran.get(wanted, (0, 0.0))
    all_nodes, all_time = sum(count for count, _ in ran.values()), sum(us for _, us in ran.values())
    if nodes < LEAST * all_nodes and time <= LEAST * all_time:
        others = ", ".join(f"{provider} {count}" for provider, (count, _) in ran.items() if provider != wanted)
        raise MissingBackend(
            f"{component}: {wanted} was asked for and ran {nodes} of {all_nodes} nodes ({others}); {REMEDY}"
        )


def available() -> list[str]:
    """Short names of the providers that this onnxruntime was built with."""
    built = toolchain().get_available_providers()
    return [name for name, full in PROVIDERS.items() if full in built]


def toolchain() -> Any:
    """The onnxruntime module. Raises MissingBackend."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingBackend("onnxruntime is not installed; pip install 'kdc-edge[ort]'") from None
    return onnxruntime


def out_of_memory(error: Exception) -> bool:
    """By its words: onnxruntime has no class for it."""
    return any(words in str(error) for words in ("Failed to allocate memory", "bad_alloc", "bad allocation"))


def _session(bundle: Bundle, component: str, options: Options, profile: str | None = None) -> Any:
    onnxruntime = toolchain()
    path = bundle.path / bundle.component(component).files[0]
    settings = _settings(onnxruntime, bundle, component, options)
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    providers = _providers(onnxruntime, options)
    kept = _kept(onnxruntime, bundle, component, options, providers)
    try:
        session = _open(onnxruntime, path, settings, providers, kept)
    except Exception as error:  # the library's own classes derive from nothing narrower
        if out_of_memory(error):
            raise ResourceError(f"{path}: out of memory while it was opened; {SMALLER}") from error
        raise BundleError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it: {error}") from error
    used = session.get_providers()[0]
    if used != providers[0] and not options.allow_fallback:
        raise MissingBackend(f"{component}: {providers[0]} was asked for, onnxruntime chose {used}; {REMEDY}")
    return session


def _settings(onnxruntime: Any, bundle: Bundle, component: str, options: Options) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = QUIET
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    own = bundle.component(component).options if bundle.manifest.runtime == "onnx" else {}
    for key, value in own.items():
        settings.add_session_config_entry(key, str(value))
    return settings


def _kept(onnxruntime: Any, bundle: Bundle, component: str, options: Options, providers: list[str]) -> Path | None:
    """Where the optimised graph of this component is kept; other providers than the CPU compile in ways of their own."""
    if options.cache_dir is None or providers != [PROVIDERS["cpu"]]:
        return None
    return compiled.folder(options.cache_dir, bundle, component, "onnxruntime", onnxruntime.__version__)


def _open(onnxruntime: Any, path: Path, settings: Any, providers: list[str], kept: Path | None) -> Any:
    """A session; from `kept`, whose weights are mapped into memory, or, where that cannot be read, leaving it there."""
    whole = settings.graph_optimization_level
    if kept is not None and kept.exists():
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with contextlib.suppress(Exception):
            return onnxruntime.InferenceSession(str(kept / OPTIMISED), settings, providers=providers)
        settings.graph_optimization_level = whole
        shutil.rmtree(kept)
    if kept is not None:
        with contextlib.suppress(Exception):  # a full disk is no reason not to run
            return _keeping(onnxruntime, path, settings, providers, kept)
        settings.optimized_model_filepath = ""
    return onnxruntime.InferenceSession(str(path), settings, providers=providers)


def _keeping(onnxruntime: Any, path: Path, settings: Any, providers: list[str], kept: Path) -> Any:
    with compiled.making(kept) as made:
        settings.optimized_model_filepath = str(made / OPTIMISED)
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{OPTIMISED}.data"
        )
        session = onnxruntime.InferenceSession(str(path), settings, providers=providers)
    return session


REMEDY = "install the onnxruntime package that has it and its drivers, or pass --allow-fallback to run on the CPU"


def _providers(onnxruntime: Any, options: Options) -> list[str]:
    """The provider asked for, then the CPU, which every provider leaves some operators to."""
    name = "cpu" if options.provider is None else choose(options.provider, PROVIDERS, "provider")
    wanted, available = PROVIDERS[name], onnxruntime.get_available_providers()
    if wanted not in available:
        if not options.allow_fallback:
            raise MissingBackend(f"this onnxruntime has no {wanted}, it has {', '.join(available)}; {REMEDY}")
        wanted = PROVIDERS["cpu"]
    return list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
