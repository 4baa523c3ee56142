"""A checkpoint → an ONNX bundle in optimum's layout, checked against PyTorch fp32 while it is made.

    python -m convert.onnx --model assets/emoji-64/student -o runs/student/onnx    # half a minute on 2 cores

Each component is exported by a process of its own, then answers the very calls PyTorch answered while making pictures;
below its floor (SNR 90 dB at fp32, 50 dB at fp16) the conversion fails and leaves nothing. Golden vectors, the report
and a model card are written into the bundle.

`--precision fp16` stores weights as fp16 and computes in fp32: each weight is followed by a Cast that runtimes fold when
they load, so the file is half as large and every operator has its kernel on any CPU.
"""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from convert import golden, parity, pictures
from convert.card import card
from convert.estimate import Estimate, estimate, require
from convert.export import EXTERNAL, MODEL, Exported, export_component
from convert.layout import copy_configs, copy_tokenizer
from convert.provenance import provenance
from kdc_edge import command, machine
from kdc_edge.bundle import Bundle, seal
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import MissingBackend
from kdc_edge.files import replace_dir, replace_file, write_json
from kdc_edge.manifest import FORMAT, Component, Manifest, PipelineSpec, Requires, bundle_id
from kdc_edge.pipeline import COMPONENTS
from kdc_edge.ports import Ports
from kdc_edge.process import in_own_process
from kdc_edge.runtimes import open_runtime
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.tokenizer import Tokenizer

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
ComponentName = Literal["text_encoder", "unet", "vae_decoder"]


@dataclass(frozen=True)
class OnnxConfig:
    """What to convert, and how."""

    model: Path
    """Checkpoint: a diffusers folder."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Bundle folder to write."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Numbers the weights are stored in; the arithmetic is fp32."""
    components: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_decoder")
    """Components to convert; a bundle without all three makes no pictures."""
    sampler: Literal["euler", "ddim", "dpmpp_2m", "pndm", "lcm"] | None = None
    """Sampler the bundle suggests; the checkpoint's own if not given."""
    steps: int | None = None
    """Steps the bundle suggests; 20 if not given, 4 for a consistency model."""
    guidance: float | None = None
    """Guidance the bundle suggests; 3 if not given, 1 for a consistency model."""
    name: str | None = None
    """Name of the bundle; the checkpoint folder's if not given."""
    force: bool = False
    """Replace an existing bundle."""
    dry_run: bool = False
    """Say what it would take, and stop."""


def convert(config: OnnxConfig) -> dict[str, Any]:
    """Convert a checkpoint to an ONNX bundle, checked against PyTorch."""
    checkpoint = Checkpoint.open(config.model)
    spec = pipeline_spec(checkpoint, steps=config.steps, guidance=config.guidance, sampler=config.sampler)
    needed = estimate(checkpoint, config.components, config.precision)
    require(needed, config.output_dir)
    if config.dry_run:
        return {"output_dir": str(config.output_dir), "estimate": needed.to_json(), "written": False}
    _require_tools()
    with replace_dir(config.output_dir, config.force) as folder:
        manifest, report = _build(checkpoint, spec, config, needed, folder)
    result = {
        "output_dir": str(config.output_dir),
        "id": bundle_id(manifest),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        **report,
    }
    _say(result)
    return result


def main(argv: list[str] | None = None) -> None:
    command.run(convert, argv, prog="python -m convert.onnx", description=__doc__)


def _build(
    checkpoint: Checkpoint, spec: PipelineSpec, config: OnnxConfig, needed: Estimate, folder: Path
) -> tuple[Manifest, dict[str, Any]]:
    """Fills `folder`: what is copied, what is exported, then what checks it."""
    copy_configs(checkpoint, folder, config.components)
    copy_tokenizer(checkpoint, folder)
    exported = _export(checkpoint, config, folder)
    draft = _manifest(checkpoint, spec, config, exported, folder)
    results, peak = _check(checkpoint, Bundle(folder, draft, bundle_id(draft)), config.precision)
    requires = replace(draft.requires, memory_mib=peak)
    manifest = seal(folder, replace(draft, requires=requires))
    took = {name: {**asdict(done), "estimated_mib": needed.memory_mib[name]} for name, done in exported.items()}
    report = {"format": 1, "machine": machine.describe(), "conversion": took, **results}
    write_json(folder / "report.json", report)
    replace_file(folder / "README.md", card(manifest, bundle_id(manifest), report).encode())
    return manifest, report


def _export(checkpoint: Checkpoint, config: OnnxConfig, folder: Path) -> dict[str, Exported]:
    from tqdm import tqdm

    half = config.precision == "fp16"
    done = {}
    for name in tqdm(config.components, desc="exporting", unit="component", disable=None):
        done[name] = in_own_process(name, export_component, checkpoint.path, name, folder / name, half)
    return done


def _manifest(
    checkpoint: Checkpoint, spec: PipelineSpec, config: OnnxConfig, exported: Mapping[str, Exported], folder: Path
) -> Manifest:
    """The manifest before anything is hashed."""
    ports = component_ports(checkpoint, spec)
    components = {name: _component(name, ports[name], done, config, folder) for name, done in exported.items()}
    return Manifest(
        format=FORMAT,
        name=config.model.resolve().name if config.name is None else config.name,
        version="1",
        runtime="onnx",
        target="cpu",
        precision=config.precision,
        pipeline=spec,
        components=components,
        files={},
        provenance=provenance(checkpoint, TOOLS),
        requires=Requires(runtime="onnxruntime >= 1.18"),
    )


def _component(name: str, ports: Ports, done: Exported, config: OnnxConfig, folder: Path) -> Component:
    files = tuple(f"{name}/{file}" for file in (MODEL, EXTERNAL) if (folder / name / file).exists())
    half = {"weights": "float16", "compute": "float32", "method": "cast on load", "calibration": None}
    quantization = half if config.precision == "fp16" else None
    return Component(
        files, ports.inputs, ports.outputs, done.parameters, quantization=quantization, **asdict(done.counters)
    )


def _check(checkpoint: Checkpoint, bundle: Bundle, precision: str) -> tuple[dict[str, Any], int | None]:
    """Parity of every component, then the pictures and golden vectors; the report's part and the memory a run took.

    Raises GateError.
    """
    from kdc_edge.torch_ref.runtime import open_runtime as open_reference

    spec, tokenizer = (
        bundle.manifest.pipeline,
        Tokenizer.open(bundle.path / "tokenizer", bundle.manifest.pipeline.tokens),
    )
    reference = golden.run({name: open_reference(checkpoint, name) for name in COMPONENTS}, spec, tokenizer)
    results = []
    for name in bundle.manifest.components:
        runtime = open_runtime(bundle, name, "ort")
        results.append(parity.check(name, reference.calls[name], runtime, parity.FLOORS[precision]))
        runtime.close()
    parity.gate(results)
    found: dict[str, Any] = {"parity": {result.component: result.to_json() for result in results}}
    if set(bundle.manifest.components) != set(COMPONENTS):
        return {**found, "picture": "not measured"}, None
    converted = in_own_process("making the golden pictures", golden.run_bundle, bundle, "ort")
    pictures.gate(golden.PROMPTS, reference.arrays["images"], converted.arrays["images"])
    golden.write(bundle.path, converted, golden.tolerances(converted, reference), spec, tokenizer)
    return {**found, "picture": pictures.compare(reference.arrays, converted.arrays)}, round(converted.peak_mib)


def _say(result: dict[str, Any]) -> None:
    """What people want to know, on stderr."""
    for name, found in result["parity"].items():
        took = result["conversion"][name]
        print(
            f"{name:13} {found['snr_db']:6.1f} dB (floor {found['floor_db']:.0f}), exported in {took['seconds']:.0f} s "
            f"and {took['peak_mib']:.0f} MiB",
            file=sys.stderr,
        )
    print(f"{result['output_dir']}: {result['bytes'] / 2**20:.1f} MiB, bundle {result['id'][:12]}", file=sys.stderr)


def _require_tools() -> None:
    for package in TOOLS:
        if importlib.util.find_spec(package) is None:
            raise MissingBackend(f"{package} is not installed; pip install 'kdc-edge[onnx]'")


if __name__ == "__main__":
    main()
