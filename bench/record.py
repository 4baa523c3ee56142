"""The record of a run, one JSON file per bundle: what was measured, on what, and how; format 1, strict.

What was not measured says so: `"not measured"` is a value of its own, never a blank and never a guess.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kdc_edge import schema
from kdc_edge.errors import BundleError
from kdc_edge.files import read_json, write_json
from kdc_edge.timing import Samples

FORMAT = 1
NOT_MEASURED: Literal["not measured"] = "not measured"
Measured = float | Literal["not measured"]


@dataclass(frozen=True)
class Settings:
    """How it was run."""

    runtime: str
    provider: str | None
    threads: int | None
    """None is the runtime's own choice."""
    steps: int
    guidance: float
    sampler: str
    samples: int
    seed: int
    power_mode: str | None

    @property
    def how(self) -> str:
        """Runtime, provider and threads in words: times that differ in them are not of one series."""
        threads = {None: "its own threads", 1: "1 thread"}.get(self.threads, f"{self.threads} threads")
        return ", ".join(filter(None, (self.runtime, self.provider, threads)))


@dataclass(frozen=True)
class Latency:
    """Seconds of one component or of the whole picture; `prepare_s` and `first_s` in a process of its own."""

    batch: int
    prepare_s: Measured
    """Reading, building and optimising the session."""
    first_s: Measured
    warm_wall_s: tuple[float, ...]
    warm_cpu_s: tuple[float, ...]
    """All threads added up."""

    @property
    def samples(self) -> Samples:
        return Samples(self.warm_wall_s, self.warm_cpu_s, 0)


@dataclass(frozen=True)
class Ratio:
    """How long this bundle takes over another, interleaved: median ratio and its 95 % interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Against:
    """The bundle it took turns with, and the ratios by what was timed."""

    id: str
    name: str
    precision: str
    wall: dict[str, Ratio]
    cpu: dict[str, Ratio]


@dataclass(frozen=True)
class Minute:
    """One minute of a soak."""

    pictures: int
    p50_s: float
    p90_s: float
    temperature_c: Measured
    clock_mhz: Measured


@dataclass(frozen=True)
class Layer:
    """One layer of an engine: the types it makes, and its median milliseconds over so many calls."""

    name: str
    kind: str
    precision: str
    ms: float
    calls: int


@dataclass(frozen=True)
class Record:
    """`bench run`'s result for one bundle."""

    format: int
    created: str
    """UTC, ISO 8601."""
    complete: bool
    """False: the run was cut short, and what is here was finished before."""
    command: str
    machine: dict[str, Any]
    fingerprint: str
    """Runs with the same one can be compared by time."""
    versions: dict[str, str]
    settings: Settings
    bundle: dict[str, Any]
    """Identity, size, and counters that do not depend on the machine."""
    placement: dict[str, dict[str, int]] | Literal["not measured"] = NOT_MEASURED
    """By component, operators by the provider that ran them."""
    latency: dict[str, Latency] = field(default_factory=dict)
    open_s: Measured = NOT_MEASURED
    """Verifying and loading everything, in a fresh process."""
    peak_rss_mib: Measured = NOT_MEASURED
    """Of a fresh process that opened the bundle and made a picture."""
    device_mib: Measured = NOT_MEASURED
    joules_per_picture: Measured = NOT_MEASURED
    energy_source: str | None = None
    layers: dict[str, tuple[Layer, ...]] | Literal["not measured"] = NOT_MEASURED
    """By component, where the runtime tells."""
    roof: dict[str, Any] | Literal["not measured"] = NOT_MEASURED
    """The machine's peaks, and the share of the fp32 one that each component reached."""
    soak: tuple[Minute, ...] | Literal["not measured"] = NOT_MEASURED
    against: Against | None = None
    parity: Any = NOT_MEASURED
    quality: Any = NOT_MEASURED
    revision: str | None = None
    """Git revision of the code that measured; None outside a checkout."""

    @property
    def place(self) -> str:
        """Machine and way of running: what times must share to be lined up."""
        return f"{self.fingerprint} {self.settings.how}"

    @property
    def label(self) -> str:
        return f"{self.bundle['name']} {self.bundle['precision']}"


def write(path: Path, record: Record) -> None:
    write_json(path, schema.dump(record))


def path(folder: Path, record: Record, index: int) -> Path:
    """Where a run keeps the record of its bundle number `index`: by when, and of what."""
    when, about = record.created.replace("-", "").replace(":", "")[:15], record.bundle
    return folder / f"{when}Z-{index}-{about['name']}-{about['precision']}-{about['id'][:8]}.json"


def looks_like(data: object) -> bool:
    """Whether JSON data is a record, of this format or another."""
    return isinstance(data, dict) and "latency" in data


def read(path: Path) -> Record:
    """Raises BundleError for a file that is no record, or of another format."""
    data = read_json(path)
    if not looks_like(data):
        raise BundleError(f"{path}: not a record of `bench run`")
    schema.check_format(data, FORMAT, path, if_older="measure again")
    return schema.parse(Record, data, path)
