"""What is in a bundle, a checkpoint or a replay buffer, as JSON data; `lines` lays it out for people."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdc_edge import replay, schema
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import WEIGHTED, Checkpoint, read_header, weight_files
from kdc_edge.errors import BundleError


def look(path: Path) -> dict[str, Any]:
    """Kind and contents of whatever the folder is; of what has one, the id. Raises BundleError."""
    if replay.is_buffer(path):
        return replay.summarize(replay.read(path))
    return summarize(open_any(path))


def open_any(path: Path) -> Bundle | Checkpoint:
    """A verified bundle or a checked checkpoint, whichever the folder is. Raises BundleError."""
    if (path / "manifest.json").exists():
        return Bundle.open(path)
    if (path / "model_index.json").exists():
        return Checkpoint.open(path)
    raise BundleError(f"{path}: neither a bundle (manifest.json) nor a checkpoint (model_index.json)")


def summarize(found: Bundle | Checkpoint) -> dict[str, Any]:
    """Kind, id and contents."""
    return _bundle(found) if isinstance(found, Bundle) else _checkpoint(found)


def lines(data: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """One line per value, nested objects indented below their name."""
    width = max((len(key) for key in data), default=0)
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield f"{'':{indent}}{key}"
            yield from lines(value, indent + 2)
        else:
            yield f"{'':{indent}}{key:{width}}  {_show(value)}"


def _bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    components = {
        name: {
            "parameters": component.parameters,
            "macs": "not measured" if component.macs is None else component.macs,
            "bytes": sum(manifest.files[file].bytes for file in component.files),
            "quantization": component.quantization,
        }
        for name, component in manifest.components.items()
    }
    about = {key: getattr(manifest, key) for key in ("name", "version", "runtime", "target", "precision")}
    rest = {key: schema.dump(getattr(manifest, key)) for key in ("pipeline", "provenance", "requires")}
    size = {"files": len(manifest.files), "bytes": bundle.bytes}
    return {
        "kind": "bundle",
        "id": bundle.id,
        **about,
        **size,
        "components": components,
        **rest,
        "report": bundle.report,
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    components = {}
    for name in WEIGHTED:
        files = weight_files(checkpoint.path / name)
        tensors = [entry for file in files for entry in read_header(file).values()]
        components[name] = {
            "parameters": sum(math.prod(entry["shape"]) for entry in tensors),
            "dtypes": sorted({entry["dtype"] for entry in tensors}),
            "bytes": sum(file.stat().st_size for file in files),
        }
    pipeline, made = checkpoint.model_index["_class_name"], schema.dump(checkpoint.info)
    return {"kind": "checkpoint", "id": checkpoint.id, "pipeline": pipeline, "components": components, "made": made}


def _show(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value) if value != [] else "-"
    return f"{value:,}"
