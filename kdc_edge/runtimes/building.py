"""`kdc-edge build`: every component's engine, for this device, by its own builder."""

import sys
from pathlib import Path
from typing import Any

from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError
from kdc_edge.runtimes import device, engines, tensorrt


def build_bundle(
    path: Path, cache: Path | None, options: engines.BuildOptions, dry_run: bool = False
) -> dict[str, Any]:
    """Raises UsageError for a bundle of another runtime, MissingBackend without TensorRT or a GPU."""
    bundle = Bundle.open(path)
    if bundle.manifest.runtime != "tensorrt":
        raise UsageError(
            f"{path} is a bundle for {bundle.manifest.runtime}; python -m convert.tensorrt makes one to build"
        )
    lines = {}
    for name, entry in bundle.manifest.components.items():
        profile = entry.options.get("profile", {})
        lines[name] = engines.trtexec(bundle.path / entry.files[0], entry.inputs, profile, options)
        print(lines[name], file=sys.stderr)
    if dry_run:
        return {"bundle": bundle.id, "trtexec": lines, "built": {}}
    trt, cudart = engines.toolchain(), device.runtime()
    built = {}
    for name in bundle.manifest.components:
        engine, new = tensorrt.engine(bundle, name, trt, cudart, cache, options)
        built[name] = {"engine": str(engine), "built": new}
        print(f"{engine}  {engine.stat().st_size / 2**20:.1f} MiB, {'built' if new else 'was there'}", file=sys.stderr)
    return {"bundle": bundle.id, "trtexec": lines, "built": built}
