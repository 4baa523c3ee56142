"""The machine a number was taken on: a number never travels without it."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ORT = ("onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn", "onnxruntime-rocm")
OTHERS = {
    "onnxruntime": ORT,
    "cuda-python": ("cuda-bindings",),
    "pillow": ("pillow-simd",),
}  # that bring the same module


def describe() -> dict[str, Any]:
    """Processor, usable cores, memory in MiB (None where the system does not say), operating system, Python."""
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_mib": memory_mib(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, or its architecture where the system keeps the name to itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instructions() -> str:
    """The processor's instruction sets, or its architecture where the system keeps them to itself."""
    return _cpuinfo("flags") or _cpuinfo("Features") or platform.machine()


def _cpuinfo(key: str) -> str:
    """Of the first processor; empty where Linux does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mib() -> int | None:
    """Physical memory."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def fingerprint(about: dict[str, Any]) -> str:
    """What two runs must share for their times to be compared: processor, cores, memory to the GiB, operating system."""
    memory = about["memory_mib"]
    same = [about["processor"], about["cores"], None if memory is None else round(memory / 1024), about["os"]]
    return hashlib.sha256(json.dumps(same).encode()).hexdigest()[:16]


def revision() -> str | None:
    """The commit this project runs from, with "-dirty" where files were changed; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
