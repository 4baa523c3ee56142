"""What others measured on devices that are not at hand: `published.json`, format 1, strict, every row with its source.

Rates of a device are in the unit that its family is compared by; a family's `rates` says which. Models are the ones the rows
were measured with: MACs by this project's rule (`kdc_edge.torch_ref.macs`), parameters as they are.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from bench.side import PICTURE
from kdc_edge import schema
from kdc_edge.files import read_json

FORMAT = 1
DATA = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Cost:
    """Of one call at batch 1."""

    macs: int
    parameters: int


@dataclass(frozen=True)
class Family:
    """Devices that run the same kind of engine."""

    engine: str
    bits: int
    """Of a weight, as it is read from memory."""
    rates: str


@dataclass(frozen=True)
class Device:
    """What is known of a device; those of one chip count as one where an error is measured."""

    name: str
    chip: str
    family: str
    macs_per_s: float
    bytes_per_s: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class PublishedRow:
    """One published latency."""

    device: str
    model: str
    what: Literal["text_encoder", "unet", "vae_decoder", "picture"]
    batch: int
    steps: int
    """Of a picture; 1 for a call of a component."""
    seconds: float
    conditions: str
    source: str


@dataclass(frozen=True)
class Published:
    """`published.json`."""

    format: int
    models: dict[str, dict[str, Cost]]
    families: dict[str, Family]
    devices: dict[str, Device]
    rows: tuple[PublishedRow, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.device not in self.devices or row.model not in self.models or not row.seconds > 0:
                raise ValueError(f"has a row of an unknown device or model, or without a time: {row}")
            if row.what != PICTURE and row.steps != 1:
                raise ValueError(f"has a call of {row.steps} steps: {row}")
        for name, device in self.devices.items():
            if device.family not in self.families or not min(device.macs_per_s, device.bytes_per_s) > 0:
                raise ValueError(f"has a device of an unknown family or without a rate: {name}")

    def rows_of(self, family: str) -> list[PublishedRow]:
        return [row for row in self.rows if self.devices[row.device].family == family]

    def chip(self, row: PublishedRow) -> str:
        return self.devices[row.device].chip


@cache
def published() -> Published:
    """The file that comes with this package."""
    data = read_json(DATA)
    schema.check_format(data, FORMAT, DATA, if_older="update kdc-edge")
    return schema.parse(Published, data, DATA)
