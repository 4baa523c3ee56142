"""What a conversion will take, before it starts: memory per component from the weights' size, disk from the precision.

Memory is `BASE_MIB + FACTOR × weights in fp32`, fitted to the peaks of real exports (3 U-Nets of 25 to 211 MiB: 612, 900
and 1,371 MiB; the line is within 2 % of them). Each component is exported by a process of its own, so the largest decides.
"""

import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdc_edge.checkpoint import Checkpoint, read_header, weight_files
from kdc_edge.errors import ResourceError
from kdc_edge.spec import FOLDERS

BASE_MIB, FACTOR = 520, 4.1
BYTES = {"fp32": 4, "fp16": 2}
SPARE_MIB = 64  # configs, golden vectors, the report
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Estimate:
    """Peak MiB per component's process, and the MiB the bundle takes on disk."""

    memory_mib: dict[str, int]
    disk_mib: int

    def to_json(self) -> dict[str, Any]:
        return {"memory_mib": self.memory_mib, "disk_mib": self.disk_mib, "by": "estimated"}


def estimate(checkpoint: Checkpoint, components: Iterable[str], precision: str) -> Estimate:
    """Reads headers only."""
    elements = {name: _elements(checkpoint.path / FOLDERS[name]) for name in components}
    memory = {name: math.ceil(BASE_MIB + FACTOR * n * 4 / 2**20) for name, n in elements.items()}
    disk = SPARE_MIB + math.ceil(sum(elements.values()) * BYTES[precision] / 2**20)
    return Estimate(memory, disk)


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


def _elements(folder: Path) -> int:
    return sum(math.prod(t["shape"]) for path in weight_files(folder) for t in read_header(path).values())
