"""What the machine tells of itself while it works: temperature, clocks, energy, power mode. What it does not tell is None.

Linux tells through /sys: thermal zones, cpufreq, RAPL (Intel and AMD; readable by root alone on most systems) and the INA3221
monitors of a Jetson, which is where tegrastats takes its figures from. macOS tells root, through powermetrics. A GPU's own
counters are not read.
"""

import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

SYS = Path("/sys")
RAPL = "class/powercap/*-rapl:[0-9]"  # packages; their parts have a second number
THERMAL = "class/thermal/thermal_zone*/temp"
CLOCKS = "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
GOVERNOR = "devices/system/cpu/cpu0/cpufreq/scaling_governor"
INA3221 = "bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"
INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")  # the whole board, by Jetson model
POWERMETRICS = ("powermetrics", "--samplers", "cpu_power,gpu_power,ane_power", "-n", "1", "-i", "1000")


def power_mode(root: Path = SYS) -> str | None:
    """The Jetson's power model, else the cpufreq governor."""
    model = _run("nvpmodel", "-q")
    if model and (found := re.search(r"NV Power Mode: *(\S+)", model)):
        return found.group(1)
    governor = root / GOVERNOR
    return governor.read_text(encoding="ascii").strip() if governor.exists() else None


def temperature(root: Path = SYS) -> float | None:
    """Degrees Celsius of the hottest zone."""
    found = [int(text) / 1000 for text in _texts(root, THERMAL)]
    return max(found) if found else None


def clock_mhz(root: Path = SYS) -> float | None:
    """Mean over the cores, as they run now."""
    found = [int(text) / 1000 for text in _texts(root, CLOCKS)]
    return fmean(found) if found else None


def device_mib(pid: int) -> float | None:
    """Memory that a process holds on NVIDIA devices, by nvidia-smi."""
    text = _run("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    return parse_device_memory(text or "", pid)


def parse_device_memory(text: str, pid: int) -> float | None:
    """MiB, from lines of `pid, MiB`; a process may hold some on several devices."""
    found = [line.split(",") for line in text.splitlines() if line.count(",") == 1]
    held = [float(mib) for owner, mib in found if owner.strip() == str(pid) and mib.strip().isdigit()]
    return sum(held) if held else None


@dataclass
class Energy:
    """Joules used in the block that `measure_energy` watches; None where no counter can be read."""

    joules: float | None = None
    source: str | None = None
    _start: dict[Path, int] = field(default_factory=dict, repr=False)


@contextmanager
def measure_energy(root: Path = SYS, clock: Callable[[], float] = time.perf_counter) -> Iterator[Energy]:
    """RAPL's counters where they can be read, else the board's power before and after, times the time taken."""
    energy = Energy()
    before, power, start = rapl(root), board_watts(root), clock()
    yield energy
    after, power_after, seconds = rapl(root), board_watts(root), clock() - start
    if before:
        energy.joules = sum(_difference(package, before[package], after[package]) for package in before) / 1e6
        energy.source = "RAPL, processor packages"
    elif power is not None and power_after is not None:
        energy.joules, energy.source = (power + power_after) / 2 * seconds, "INA3221, whole board"


def rapl(root: Path = SYS) -> dict[Path, int]:
    """Microjoules by package; empty where there are none or they may not be read."""
    found = {}
    for package in root.glob(RAPL):
        try:
            found[package] = int((package / "energy_uj").read_text(encoding="ascii"))
        except OSError:
            return {}
    return found


def _difference(package: Path, before: int, after: int) -> int:
    """The counter starts again at 0 when it is full."""
    return after - before if after >= before else after - before + int((package / "max_energy_range_uj").read_text())


def board_watts(root: Path = SYS) -> float | None:
    """Power of a Jetson's input rail now; on macOS, as root, of the processor package."""
    for label in root.glob(INA3221):
        if label.read_text(encoding="ascii").strip() in INPUT_RAILS:
            number = re.sub(r"\D", "", label.name)
            volts, amperes = (int((label.parent / f"{kind}{number}_input").read_text()) for kind in ("in", "curr"))
            return volts * amperes / 1e6  # mV · mA
    return parse_powermetrics(_run(*POWERMETRICS) or "") if platform.system() == "Darwin" else None


def parse_powermetrics(text: str) -> float | None:
    """Watts, from `Combined Power (CPU + GPU + ANE): 1234 mW`."""
    found = re.search(r"^Combined Power[^:]*: *(\d+) *mW", text, re.MULTILINE)
    return int(found.group(1)) / 1000 if found else None


def _texts(root: Path, pattern: str) -> list[str]:
    found = []
    for path in sorted(root.glob(pattern)):
        try:
            found.append(path.read_text(encoding="ascii"))
        except OSError:  # a zone that is switched off
            continue
    return found


def _run(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
