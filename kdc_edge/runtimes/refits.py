"""`kdc-edge refit`: new weights for an engine, where the graph is the same; for a student that goes on learning.

What an engine was built from, weights' values left out, stands in its sidecar, and of a new bundle in COMPONENT/weights.json:
names, shapes and types must agree, and the structure. The engine then answers what onnxruntime answers to the same graph, or
it is built anew with the timing cache.
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdc_edge import golden
from kdc_edge.bundle import Bundle
from kdc_edge.differences import snr_db
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.runtimes import Runtime, device, engines, open_runtime, plans, tensorrt

SHOWN = 3  # differences named
EXECUTED = {"bf16": "emulated", "fp8": "emulated"}  # what onnxruntime's CPU has no kernels for

log = logging.getLogger(__name__)


def refit_engine(path: Path, new: Path) -> dict[str, Any]:
    """Raises UsageError for an engine that was built without --refit, BundleError for a graph that is another."""
    trt, cudart = engines.toolchain(), device.runtime()
    sidecar, bundle = plans.sidecar(path), Bundle.open(new)
    if "component" not in sidecar:
        raise BundleError(f"{path}: its sidecar does not say of which component it is; build it again: kdc-edge build")
    component, flags = sidecar["component"], sidecar["identity"]["flags"]
    if not flags.get("refit"):
        raise UsageError(f"{path} was built without --refit, its weights are fixed; kdc-edge build {new} --refit")
    entry, options = bundle.component(component), engines.BuildOptions(**flags)
    about = tensorrt.about(bundle, component)
    wanted = tensorrt.identity(bundle, component, trt, device.device(cudart), options)
    old = plans.load(path, replace(wanted, onnx=sidecar["identity"]["onnx"]))
    if differ := differences(sidecar["weights"], about["weights"]):
        shown = "; ".join(differ[:SHOWN])
        raise BundleError(
            f"{new}: not the graph of {path}: {shown}; kdc-edge build {new} --refit makes an engine of it"
        )
    try:
        engine = engines.refit(trt, old, bundle.path / entry.files[0])
        worst = _compare(trt, cudart, engine, bundle, component)
    except BundleError as error:
        log.warning("%s; the engine is built anew", error)
        built, _ = tensorrt.engine(bundle, component, trt, cudart, path.parent, options)
        return {"engine": str(built), "refitted": False, "why": str(error)}
    target = path.parent / wanted.file(component)
    plans.save(target, engine, wanted, about)
    print(f"{target}: {worst:.1f} dB to onnxruntime", file=sys.stderr)
    return {"engine": str(target), "refitted": True, "snr_db": worst}


def differences(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    """In words; none where one graph may take the other's weights."""
    if old is None or new is None:
        return ["the engine's sidecar or the bundle does not say what its weights are"]
    was, now = old["weights"], new["weights"]
    found = [f"it has no '{name}'" for name in was if name not in now]
    found += [f"the engine has no '{name}'" for name in now if name not in was]
    for name in (name for name in was if name in now and was[name] != now[name]):
        found.append(f"'{name}' is {_described(now[name])}, the engine's {_described(was[name])}")
    if not found and old["structure"] != new["structure"]:
        found.append("its operators are others, though its weights have the same names")
    return found


def _described(kind: Mapping[str, Any]) -> str:
    return f"{kind['type']} {tuple(kind['shape'])}"


def _compare(trt: Any, cudart: Any, engine: bytes, bundle: Bundle, component: str) -> float:
    """Least SNR in dB of the engine to onnxruntime on the same calls. Raises BundleError below the converter's floor."""
    held = bundle.report.get("parity", {}).get(component)
    if held is None:
        raise BundleError(f"{bundle.path}: its report says nothing of {component}'s parity; convert the model again")
    floor = held["floor_db"]
    refitted = tensorrt.opened(trt, cudart, engine, bundle, component)
    checked = open_runtime(bundle, component, EXECUTED.get(bundle.manifest.precision, "ort"))
    try:
        worst = min(_distance(checked, refitted, feed) for feed in _feeds(bundle, component))
    finally:
        checked.close()
        refitted.close()
    if not worst >= floor:
        raise BundleError(f"{component} after the refit is {worst:.1f} dB from onnxruntime, floor {floor:g}")
    return worst


def _distance(reference: Runtime, found: Runtime, feed: Mapping[str, np.ndarray]) -> float:
    wanted, out = reference(**feed), found(**feed)
    return min(snr_db(wanted[name], out[name]) for name in wanted)


def _feeds(bundle: Bundle, component: str) -> list[dict[str, np.ndarray]]:
    """What the component meets on the way to the first golden picture."""
    known, spec = golden.read(bundle).arrays, bundle.manifest.pipeline
    if component == "text_encoder":
        return [{"input_ids": ids} for ids in known["input_ids"]]
    noise, latents = known["noise"][:1], known["latents"][0]
    if component == "vae_decoder":
        return [{"latent_sample": latents[-1:] / np.float32(spec.latent_scaling)}]
    text = known["last_hidden_state"][:1]
    met = zip([noise, *latents[:-1, None]], known["timesteps"], strict=True)
    return [{"sample": x, "timestep": np.array(t), "encoder_hidden_states": text} for x, t in met]
