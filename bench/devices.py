"""What this machine can measure with, and what it is."""

import importlib
import sys
from dataclasses import dataclass
from typing import Any

from bench import sensors
from bench.record import NOT_MEASURED
from kdc_edge import machine
from kdc_edge.errors import MissingBackend
from kdc_edge.inspection import lines
from kdc_edge.runtimes import RUNTIMES


@dataclass(frozen=True)
class DevicesConfig:
    """Nothing to set."""


def devices(config: DevicesConfig) -> dict[str, Any]:
    """This machine, the runtimes and providers it has, and the sensors that can be read."""
    described = machine.describe()
    with sensors.measure_energy() as energy:
        pass
    data = {
        "machine": {**described, "fingerprint": machine.fingerprint(described)},
        "runtimes": {name: _providers(entry.module) for name, entry in RUNTIMES.items()},
        "sensors": {
            "power mode": sensors.power_mode() or NOT_MEASURED,
            "temperature": _or_not(sensors.temperature(), "°C"),
            "clock": _or_not(sensors.clock_mhz(), "MHz"),
            "energy": energy.source or NOT_MEASURED,
        },
    }
    print(*lines(data), sep="\n", file=sys.stderr)
    return data


def _providers(module: str) -> str:
    try:
        return ", ".join(importlib.import_module(module).available())
    except MissingBackend as error:
        return f"missing: {error}"


def _or_not(value: float | None, unit: str) -> str:
    return NOT_MEASURED if value is None else f"{value:.0f} {unit}"
