"""What a conversion will take, before it starts: memory per component from the weights' size, disk from the precision.

Memory is `BASE_MIB + FACTOR × weights in fp32`, fitted to the peaks of real exports (3 U-Nets of 25 to 211 MiB: 612, 900
and 1,371 MiB; the line is within 2 % of them). Typed graphs are probed and take more (U-Nets of 36 and 1,840 MiB: 740 and
11,110 MiB at most), and so does onnxruntime's quantiser for int8 products (U-Nets of 36 and 1,840 MiB, a text encoder of
469: 832, 10,286 and 3,040). Each component is exported by a process of its own, so the largest decides; or what checks them,
which holds PyTorch's whole model and, in a process of its own, the bundle's: two of 0.6 and 48 MiB took 584 and 726.
"""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.calibration import TIMESTEPS
from convert.schemes import Dynamic, Mixed, Scheme, Static, Typed, Weights, calibrated, stored_bits
from kdc_edge.checkpoint import WEIGHTED, Checkpoint, read_header, weight_files
from kdc_edge.errors import ResourceError
from kdc_edge.ports import resolve
from kdc_edge.spec import FOLDERS, component_ports, pipeline_spec

BASE_MIB, FACTOR = 520, 4.1
TYPED_BASE_MIB, TYPED_FACTOR = 520, 5.8
STATIC_BASE_MIB, STATIC_FACTOR = 650, 5.3
LARGEST = 4096  # columns of a layer whose correlations are measured together
HESSIANS_BYTES = 2 << 30  # of the correlations that are measured at once
MAPS = 3  # of an autoencoder's outermost level that are alive at once
SPARE_MIB = 64  # configs, golden vectors, the report
CHECKING_BASE_MIB, CHECKING_FACTOR = 590, 3.0
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Estimate:
    """Peak MiB per component's process, of what checks them, and the MiB the bundle takes on disk."""

    memory_mib: dict[str, int]
    disk_mib: int
    checking_mib: int = 0
    beside_mib: int = 0
    """On the bundle's disk while it is made."""
    temporary_mib: int = 0
    """On that of temporary files."""

    def __str__(self) -> str:
        memory = ", ".join(f"{name} {peak}" for name, peak in self.peaks.items())
        disk = f"{self.disk_mib} MiB of disk, {self.beside_mib + self.temporary_mib} more for a while"
        return f"estimated: MiB of memory at most, one after the other: {memory}; {disk}"

    @property
    def peaks(self) -> dict[str, int]:
        """MiB of memory, of one after the other."""
        return {**self.memory_mib, "checking": self.checking_mib}

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "by": "estimated"}


def estimate(checkpoint: Checkpoint, schemes: Mapping[str, Scheme], prompts: int = 0) -> Estimate:
    """Reads headers only; `prompts` are drawn to calibrate on."""
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
    wide = {name: math.ceil(elements[name] * 4 / 2**20) for name in schemes}
    beside = [size for name, size in wide.items() if isinstance(schemes[name], Static | Dynamic)]
    temporary = [size for name, size in wide.items() if isinstance(schemes[name], Static | Dynamic | Typed)]
    return Estimate(
        memory,
        SPARE_MIB + math.ceil(disk / 2**20),
        checking_mib(checkpoint),
        max(beside, default=0),
        max(temporary, default=0) + math.ceil(prompts * _recorded_mib(checkpoint)),
    )


def checking_mib(checkpoint: Checkpoint) -> int:
    """Of PyTorch's whole model in this process, and the bundle's in one of its own."""
    elements = sum(math.prod(shape) for folder in WEIGHTED for shape in _shapes(checkpoint.path / folder))
    return math.ceil(CHECKING_BASE_MIB + CHECKING_FACTOR * elements * 4 / 2**20)


def _recorded_mib(checkpoint: Checkpoint) -> float:
    """Of the calls that calibration keeps of one drawing, and the picture."""
    spec = pipeline_spec(checkpoint)
    calls = {"text_encoder": 1, "unet": TIMESTEPS, "vae_decoder": 1}
    numbers = 3 * math.prod(spec.image_size)
    for name, ports in component_ports(checkpoint, spec).items():
        shapes = [resolve(port, {"batch": 2, **spec.sizes}) for port in ports.inputs]
        numbers += calls.get(name, 0) * sum(map(math.prod, shapes))
    return numbers * 4 / 2**20


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
    name, peak = max(needed.peaks.items(), key=lambda item: item[1])
    if available is not None and peak > available:
        what = "checking the bundle" if name == "checking" else f"exporting {name}"
        raise ResourceError(
            f"{what} takes about {peak} MiB of memory (estimated), {available} are available; close other "
            "programs, convert on a larger machine, or leave components out with --components"
        )
    folder = next(parent for parent in (output.absolute(), *output.absolute().parents) if parent.exists())
    temporary = Path(tempfile.gettempdir())
    shared = folder.stat().st_dev == temporary.stat().st_dev
    here = needed.disk_mib + needed.beside_mib + (needed.temporary_mib if shared else 0)
    _require_disk("the bundle and what it is made of take", here, folder)
    _require_disk("temporary files take", needed.temporary_mib, temporary)


def _require_disk(what: str, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free // 2**20
    if needed > free:
        raise ResourceError(
            f"{what} about {needed} MiB of disk (estimated), {folder} has {free} MiB free; free some space, or choose "
            "another folder (TMPDIR for temporary files)"
        )


def available_mib() -> int | None:
    """Memory that can be had without swapping, within what this process's control groups have left; None where the system
    does not say. What this process has itself is not among it."""
    try:
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        kib = next((int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemAvailable")), None)
    except (OSError, ValueError):
        return None
    available = pages if kib is None else kib * 1024
    return min([available, *_cgroups_left()]) // 2**20


def _cgroups_left() -> Iterator[int]:
    """Bytes that each group around this process may still have; pages of files that nobody uses make room."""
    lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines() if OWN_CGROUP.exists() else []
    own = CGROUPS / next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    for folder in (own, *own.parents):
        if not folder.is_relative_to(CGROUPS):
            return
        with contextlib.suppress(OSError, ValueError):  # the outermost has no limit; "max" is none
            limit, used = (int((folder / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
            yield max(0, limit - used + _unused_pages(folder / "memory.stat"))


def _unused_pages(stat: Path) -> int:
    lines = stat.read_text(encoding="ascii").splitlines() if stat.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def _shapes(folder: Path) -> list[list[int]]:
    return [tensor["shape"] for path in weight_files(folder) for tensor in read_header(path).values()]
