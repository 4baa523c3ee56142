"""The model card of a bundle: what it is, what it needs, how good it is, every file with its hash."""

from typing import Any

from convert.parity import shown
from kdc_edge.manifest import Manifest

TEMPLATE = """\
# {name}

A text-to-image model as a kdc-edge bundle: {runtime}, {precision}, for {target}. {width}×{height} pixels, {steps} steps
of {sampler}, guidance {guidance:g}.

    kdc-edge generate "red apple" --bundle <this folder>{runtime_flag} -o apple.png

Needs {needs}. Bundle id `{id}`.

| component | parameters | MACs, batch 1 | MiB | SNR to PyTorch fp32, floor |
|---|---|---|---|---|
{components}

Final pictures against PyTorch fp32: {psnr}. Measured on {machine}.

Made from checkpoint `{checkpoint}`{recipe}; the licence is the checkpoint's. Tools: {tools}.

| file | bytes | SHA-256 |
|---|---|---|
{files}
"""


def card(manifest: Manifest, bundle_id: str, report: dict[str, Any]) -> str:
    """README.md of a bundle, Markdown."""
    pipeline, provenance = manifest.pipeline, manifest.provenance
    height, width = pipeline.image_size
    return TEMPLATE.format(
        name=manifest.name,
        runtime=manifest.runtime,
        runtime_flag="" if manifest.runtime == "onnx" else f" --runtime {manifest.runtime}",
        precision=manifest.precision,
        target=manifest.target,
        width=width,
        height=height,
        steps=pipeline.steps,
        sampler=pipeline.sampler,
        guidance=pipeline.guidance,
        needs=_needs(manifest),
        id=bundle_id,
        components="\n".join(_component(name, manifest, report) for name in manifest.components),
        psnr=_psnr(report),
        machine=f"{report['machine']['processor']}, {report['machine']['os']}",
        checkpoint=provenance.checkpoint,
        recipe=f", recipe `{provenance.recipe}`" if provenance.recipe else "",
        tools=", ".join(f"{name} {version}" for name, version in provenance.tools.items()),
        files="\n".join(f"| {name} | {entry.bytes:,} | `{entry.sha256}` |" for name, entry in manifest.files.items()),
    )


def _component(name: str, manifest: Manifest, report: dict[str, Any]) -> str:
    component, parity = manifest.components[name], report["parity"][name]
    size = sum(manifest.files[path].bytes for path in component.files) / 2**20
    macs = f"{component.macs:,}" if component.macs is not None else "not measured"
    return (
        f"| {name} | {component.parameters:,} | {macs} | {size:.1f} | "
        f"{shown(parity['snr_db'])} dB, {parity['floor_db']:.0f} dB |"
    )


def _needs(manifest: Manifest) -> str:
    memory = manifest.requires.memory_mib
    return manifest.requires.runtime + (f" and {memory} MiB of memory" if memory is not None else "")


def _psnr(report: dict[str, Any]) -> str:
    picture = report["picture"]
    return picture if isinstance(picture, str) else ", ".join(f"{db:.1f} dB" for db in picture["psnr_db"])
