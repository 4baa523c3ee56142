"""What a conversion will take, before it starts: memory per component from the weights' size, disk from the precision.

Memory is `BASE_MIB + FACTOR × weights in fp32`, fitted to the peaks of real exports (3 U-Nets of 25 to 211 MiB: 612, 900
and 1,371 MiB; the line is within 2 % of them). Typed graphs are probed and take more (U-Nets of 36 and 1,840 MiB: 740 and
11,110 MiB at most), and so does onnxruntime's quantiser for int8 products (U-Nets of 36 and 1,840 MiB, a text encoder of
469: 832, 10,286 and 3,040). Each component is exported by a process of its own, so the largest decides.
"""

import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.schemes import Dynamic, Mixed, Scheme, Static, Typed, Weights, calibrated, stored_bits
from kdc_edge.checkpoint import Checkpoint, read_header, weight_files
from kdc_edge.errors import ResourceError
from kdc_edge.spec import FOLDERS, pipeline_spec

BASE_MIB, FACTOR = 520, 4.1
TYPED_BASE_MIB, TYPED_FACTOR = 520, 5.8
STATIC_BASE_MIB, STATIC_FACTOR = 650, 5.3
LARGEST = 4096  # columns of a layer whose correlations are measured together
HESSIANS_BYTES = 2 << 30  # of the correlations that are measured at once
MAPS = 3  # of an autoencoder's outermost level that are alive at once
SPARE_MIB = 64  # configs, golden vectors, the report
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Estimate:
    """Peak MiB per component's process, and the MiB the bundle takes on disk."""

    memory_mib: dict[str, int]
    disk_mib: int

    def to_json(self) -> dict[str, Any]:
        return {"memory_mib": self.memory_mib, "disk_mib": self.disk_mib, "by": "estimated"}


def estimate(checkpoint: Checkpoint, schemes: Mapping[str, Scheme]) -> Estimate:
    """Reads headers only."""
    shapes = {name: _shapes(checkpoint.path / FOLDERS[name]) for name in schemes}
    elements = {name: sum(map(math.prod, found)) for name, found in shapes.items()}
    memory = {
        name: math.ceil(
            _export_mib(scheme, elements[name] * 4 / 2**20)
            + _rounding_mib(shapes[name], scheme)
            + _calls_mib(checkpoint, name, scheme)
        )
        for name, scheme in schemes.items()
    }
    disk = sum(elements[name] * stored_bits(scheme) / 8 for name, scheme in schemes.items())
    return Estimate(memory, SPARE_MIB + math.ceil(disk / 2**20))


def _export_mib(scheme: Scheme, weights_mib: float) -> float:
    match scheme:
        case Typed():
            return TYPED_BASE_MIB + TYPED_FACTOR * weights_mib
        case Static() | Dynamic():
            return STATIC_BASE_MIB + STATIC_FACTOR * weights_mib
    return BASE_MIB + FACTOR * weights_mib


def _rounding_mib(shapes: Iterable[Sequence[int]], scheme: Scheme) -> float:
    """Of the correlations of inputs that rounding looks at."""
    rounded = isinstance(scheme, Weights | Mixed) or (
        isinstance(scheme, Typed) and scheme.weights == "int8" and scheme.rounding == "gptq"
    )
    if not rounded or not calibrated(scheme):
        return 0
    columns = (math.prod(shape[1:]) for shape in shapes if len(shape) > 1)
    return min(HESSIANS_BYTES, sum(4 * k * min(k, LARGEST) for k in columns)) / 2**20


def _calls_mib(checkpoint: Checkpoint, component: str, scheme: Scheme) -> float:
    """Of what a call that calibrates an autoencoder holds: maps at the size of the picture."""
    if FOLDERS[component] != "vae" or not calibrated(scheme):
        return 0
    config = checkpoint.config("vae")
    channels = config.get(f"{component.removeprefix('vae_')}_block_out_channels") or config["block_out_channels"]
    return MAPS * 4 * channels[0] * math.prod(pipeline_spec(checkpoint).image_size) / 2**20


def require(needed: Estimate, output: Path) -> None:
    """Raises ResourceError if the memory or the disk of this machine is too small."""
    available = available_mib()
    name, peak = max(needed.memory_mib.items(), key=lambda item: item[1])
    if available is not None and peak > available:
        raise ResourceError(
            f"exporting {name} takes about {peak} MiB of memory (estimated), {available} are available; close other "
            "programs, convert on a larger machine, or leave components out with --components"
        )
    folder = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free // 2**20
    if needed.disk_mib > free:
        raise ResourceError(f"the bundle takes about {needed.disk_mib} MiB (estimated), {folder} has {free} MiB free")


def available_mib() -> int | None:
    """Memory that can be had without swapping, cgroup limits included; None where the system does not say."""
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        kib = next((int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemAvailable")), None)
    except (OSError, ValueError):
        return None
    available = pages if kib is None else kib * 1024
    limit = CGROUP_LIMIT.read_text(encoding="ascii").strip() if CGROUP_LIMIT.exists() else "max"
    return (available if limit == "max" else min(available, int(limit))) // 2**20


def _shapes(folder: Path) -> list[list[int]]:
    return [tensor["shape"] for path in weight_files(folder) for tensor in read_header(path).values()]
