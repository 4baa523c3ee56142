"""Golden vectors: what a bundle does with fixed prompts and seeds, stage by stage, for whoever ports it to a device.

golden/golden.json says what was run and how near a port must come; golden/vectors.safetensors holds (P prompts, S steps):

    text_ids           (K, T) int64           ids of `texts`: scripts, emoji, the empty text, one that is too long
    input_ids          (P, B, T) int64        ids of negative and prompt; B is 1 where guidance is 1
    last_hidden_state  (P, T, D)              the text encoder's answer to the prompt
    noise              (P, C, H, W)           unit normal, from seed + p
    timesteps, sigmas  (S,)                   what the U-Net is told in a step; the noise level after it
    latents            (P, S, C, H, W)        after each step, in unit variance
    images             (P, height, width, 3)  uint8
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.parity import Call, Recorder, max_abs
from kdc_edge import schema
from kdc_edge.bundle import Bundle
from kdc_edge.files import write_json
from kdc_edge.golden import FORMAT, SETTINGS, VECTORS, Settings
from kdc_edge.manifest import PipelineSpec
from kdc_edge.noise import gaussian
from kdc_edge.pipeline import COMPONENTS, Pipeline
from kdc_edge.process import peak_mib
from kdc_edge.runtimes import Runtime, open_runtime
from kdc_edge.tokenizer import Tokenizer

PROMPTS = ("red apple", "waving hand: medium skin tone")
TEXTS = (*PROMPTS, "", "Ωμέγα, naïve café — 中文 🍎🇳🇴", "it's 12 o'clock!", "very long " * 60)
SEED, STEPS = 0, 8
SLACK, LEAST = 4.0, 1e-4  # tolerance: SLACK × the deviation from PyTorch, at least LEAST of the largest value


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run of all prompts: arrays as golden/ stores them, every call by component, peak memory of the process."""

    arrays: dict[str, np.ndarray]
    calls: dict[str, list[Call]]
    peak_mib: float


def run(components: Mapping[str, Runtime], spec: PipelineSpec, tokenizer: Tokenizer) -> Trajectory:
    """Makes PROMPTS' pictures and closes the components."""
    recorders = {name: Recorder(runtime) for name, runtime in components.items()}
    with Pipeline(spec, tokenizer, recorders) as pipe:
        streams = [list(pipe.stream(p, seed=SEED + i, steps=steps(spec))) for i, p in enumerate(PROMPTS)]
        images = [np.asarray(frames[-1].image()) for frames in streams]
    texts, unet = recorders["text_encoder"].calls, recorders["unet"].calls
    arrays = {
        "input_ids": np.stack([call.inputs["input_ids"] for call in texts]),
        "last_hidden_state": np.stack([call.outputs["last_hidden_state"][-1] for call in texts]),
        "noise": np.stack([gaussian(SEED + i)(spec.latent) for i in range(len(PROMPTS))]),
        "timesteps": np.array([call.inputs["timestep"] for call in unet[: len(unet) // len(PROMPTS)]], np.float32),
        "sigmas": np.array([frame.sigma for frame in streams[0]], np.float32),
        "latents": np.stack([[frame.latents[0] for frame in frames] for frames in streams]).astype(np.float32),
        "images": np.stack(images),
    }
    return Trajectory(arrays, {name: recorder.calls for name, recorder in recorders.items()}, peak_mib())


def run_bundle(bundle: Bundle, runtime: str) -> Trajectory:
    """`run` on a bundle's own runtime; its calls stay behind."""
    spec = bundle.manifest.pipeline
    components = {name: open_runtime(bundle, name, runtime) for name in COMPONENTS}
    done = run(components, spec, Tokenizer.open(bundle.path / "tokenizer", spec.tokens))
    return Trajectory(done.arrays, {}, done.peak_mib)


def steps(spec: PipelineSpec) -> int:
    """Steps of a golden run: the bundle's own, STEPS at most."""
    return min(spec.steps, STEPS)


def tolerances(golden: Trajectory, reference: Trajectory) -> dict[str, float]:
    """Largest absolute difference a port may show per stage, measured between this bundle and PyTorch fp32."""
    found = {name: (golden.arrays[name], reference.arrays[name]) for name in ("last_hidden_state", "latents")}
    measured = {name: max(SLACK * max_abs(a, b), LEAST * float(np.abs(a).max())) for name, (a, b) in found.items()}
    levels = SLACK * max_abs(golden.arrays["images"], reference.arrays["images"])
    return {**measured, "images": max(levels, 2.0)}


def write(
    folder: Path, golden: Trajectory, tolerance: Mapping[str, float], spec: PipelineSpec, tokenizer: Tokenizer
) -> None:
    """golden/ of the bundle in `folder`."""
    from safetensors.numpy import save_file

    (folder / SETTINGS).parent.mkdir()
    text_ids = tokenizer(TEXTS).ids
    arrays = {name: np.ascontiguousarray(array) for name, array in golden.arrays.items()}
    save_file({"text_ids": text_ids, **arrays}, folder / VECTORS)
    told = Settings(
        FORMAT, PROMPTS, TEXTS, spec.sampler, steps(spec), spec.guidance, SEED, negative="", tolerances=dict(tolerance)
    )
    write_json(folder / SETTINGS, schema.dump(told))
