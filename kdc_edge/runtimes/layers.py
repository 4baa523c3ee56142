"""What an engine's layers are and how long each takes: TensorRT's inspector for types, its profiler for times."""

import json
from typing import Any

import numpy as np

UNSAID = "not said"
TYPE_KEYS = ("Format/Datatype", "Datatype")  # by version


def described(trt: Any, engine: Any) -> dict[str, dict[str, str]]:
    """By layer its kind and the types it makes; engines built with detailed verbosity say them, others names alone."""
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    found = {}
    for layer in json.loads(told)["Layers"]:
        if isinstance(layer, str):
            found[layer] = {"kind": UNSAID, "precision": UNSAID}
            continue
        types = {next((str(out[key]) for key in TYPE_KEYS if key in out), UNSAID) for out in layer.get("Outputs", [])}
        found[layer["Name"]] = {"kind": layer.get("LayerType", UNSAID), "precision": ", ".join(sorted(types)) or UNSAID}
    return found


def timer(trt: Any, into: dict[str, list[float]]) -> Any:
    """A profiler that puts milliseconds of every call under the layer's name."""

    class Timer(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            into.setdefault(layer_name, []).append(ms)

    return Timer()


def table(kinds: dict[str, dict[str, str]], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row a layer in the order it ran, its median milliseconds and how many calls they are of."""
    unknown = {"kind": UNSAID, "precision": UNSAID}
    return [
        {"name": name, **kinds.get(name, unknown), "ms": float(np.median(ms)), "calls": len(ms)}
        for name, ms in times.items()
    ]
