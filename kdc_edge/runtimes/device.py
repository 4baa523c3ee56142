"""The CUDA device, by cuda-python: what it is, its memory, streams and graphs. Raises MissingBackend where there is none."""

import platform
from dataclasses import asdict, dataclass
from typing import Any

from kdc_edge.errors import MissingBackend, ResourceError


@dataclass(frozen=True)
class Device:
    """What an engine is bound to."""

    name: str
    sm: int
    """Compute capability, 87 on an Orin."""
    memory_mib: int
    driver: int
    cuda: int
    os: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def runtime() -> Any:
    """cuda-python's module of the CUDA runtime, by its new name or its old one."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        try:
            from cuda import cudart
        except ImportError:
            raise MissingBackend("cuda-python is not installed; pip install 'kdc-edge[tensorrt]'") from None
    return cudart


def call(result: tuple[Any, ...]) -> Any:
    """What a CUDA call returned beside its code. Raises ResourceError for want of memory, MissingBackend else."""
    error, *values = result
    if int(error) != 0:
        name = getattr(error, "name", str(error))
        if "MemoryAllocation" in name:
            raise ResourceError(f"CUDA: {name}; close other programs, or use a smaller batch or precision")
        raise MissingBackend(f"CUDA: {name}; it wants an NVIDIA GPU and its driver")
    return values[0] if len(values) == 1 else tuple(values) or None


def device(cudart: Any) -> Device:
    """The first one."""
    seen = call(cudart.cudaGetDeviceProperties(0))
    name = seen.name.decode() if isinstance(seen.name, bytes) else seen.name
    versions = call(cudart.cudaDriverGetVersion()), call(cudart.cudaRuntimeGetVersion())
    return Device(
        name, seen.major * 10 + seen.minor, seen.totalGlobalMem >> 20, *versions, platform.platform(terse=True)
    )
