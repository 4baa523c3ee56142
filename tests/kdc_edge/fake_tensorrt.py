"""A `tensorrt` of a chosen version: it has the attributes listed here for it and no other, and builds nothing.

Sources: NVIDIA's Python API documentation, "Removed Python APIs and Replacements" (11.4.0, migration from 10.x to 11.x), and
the table of what each version has that the builder of this project was written from. Only what a builder may touch is
listed, with what was removed, so that touching that raises.
"""

from typing import Any

VERSIONS = ("10.3.0", "10.16.0", "11.4.0")
BOTH = {
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
    "BuilderFlag": {"REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL", "WEIGHT_STREAMING", "VERSION_COMPATIBLE"},
    "Builder": {"create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"},
    "IBuilderConfig": {
        "set_memory_pool_limit", "create_timing_cache", "set_timing_cache", "add_optimization_profile", "set_flag",
        "profiling_verbosity", "builder_optimization_level", "hardware_compatibility_level",
    },
}  # fmt: skip
ONLY_10 = {
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH"},
    "BuilderFlag": {"FP16", "BF16", "INT8", "FP8", "INT4"},
    "Builder": {"platform_has_fast_fp16", "platform_has_fast_int8"},
    "IBuilderConfig": {"int8_calibrator", "set_quantization_flag"},
}
SINCE_10_16 = {"BuilderFlag": {"EDITABLE_TIMING_CACHE", "STRICT_NANS"}}


def known(version: str, kind: str) -> set[str]:
    found = set(BOTH[kind])
    found |= ONLY_10[kind] if version.startswith("10.") else set()
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


def fake(version: str, accepts: bool = True) -> tuple[Any, list[tuple[str, tuple]]]:
    """The module, and what is called in it."""
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
        "build_serialized_network": keep("build_serialized_network", b"engine"),
    }
    builder = Strict("Builder", known(version, "Builder"), log, **parts)
    error = Strict("ParserError", set(), log, desc=lambda: "no importer")
    parser = Strict(
        "OnnxParser", set(), log, parse_from_file=lambda _: accepts, num_errors=1, get_error=lambda _: error
    )
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    enums = {
        "NetworkDefinitionCreationFlag": known(version, "NetworkDefinitionCreationFlag"),
        "BuilderFlag": known(version, "BuilderFlag"),
        "ProfilingVerbosity": {"DETAILED", "LAYER_NAMES_ONLY", "NONE"},
        "MemoryPoolType": {"WORKSPACE"},
        "HardwareCompatibilityLevel": {"NONE", "AMPERE_PLUS"},
    }
    module = {name: Enum(name, names, log) for name, names in enums.items()}
    module |= {"Logger": logger, "Builder": lambda _: builder, "OnnxParser": lambda *_: parser, "__version__": version}
    return Strict("module", set(), log, **module), log
