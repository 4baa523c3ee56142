"""The contract a bundle carries, `manifest.json`: what it is made of, how to run it, where it came from.

Format 1, strict: unknown keys are refused with the nearest name. The bundle's id is a hash over what decides the
pictures (pipeline, components, files); names, versions and provenance may change without changing it.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from kdc_edge import schema
from kdc_edge.errors import suggest
from kdc_edge.ports import COMPONENTS, Port, Ports

FORMAT = 1
OUTSIDE = ("manifest.json", "report.json", "README.md")  # in a bundle, and not of its identity


@dataclass(frozen=True)
class Betas:
    """The noise schedule the network was trained on and the timesteps it is sampled at, in diffusers' terms."""

    schedule: Literal["linear", "scaled_linear"]
    start: float
    end: float
    train_steps: int
    spacing: Literal["leading", "trailing", "linspace"]
    steps_offset: int
    set_alpha_to_one: bool
    """Whether ddim and pndm end at sigma 0; else at the first training step's sigma."""

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.end < 1:
            raise ValueError(f"betas must rise within (0, 1), not from {self.start} to {self.end}")
        if self.train_steps < 2 or not 0 <= self.steps_offset < self.train_steps:
            raise ValueError(f"has impossible train_steps {self.train_steps} or steps_offset {self.steps_offset}")


@dataclass(frozen=True)
class PipelineSpec:
    """How the components make a picture; sampler, steps and guidance are the defaults to generate with."""

    image_size: tuple[int, int]
    """Height, width in pixels."""
    latent: tuple[int, int, int]
    """Channels, height, width."""
    latent_scaling: float
    """The decoder takes latents divided by this."""
    tokens: int
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    betas: Betas
    sampler: Literal["euler", "ddim", "dpmpp_2m", "pndm", "lcm"]
    steps: int
    guidance: float
    rng: Literal["numpy-randomstate"] = "numpy-randomstate"

    def __post_init__(self) -> None:
        if min(*self.image_size, *self.latent, self.steps) < 1 or self.tokens < 3:
            raise ValueError("has a size, a step count or a token count that is too small")
        if not self.latent_scaling > 0 or not self.guidance >= 0:
            raise ValueError(f"has latent_scaling {self.latent_scaling} or guidance {self.guidance} out of range")

    @property
    def sizes(self) -> dict[str, int]:
        """Those of the picture and its latents by axis name; a bundle may leave them open."""
        (height, width), (image_height, image_width) = self.latent[1:], self.image_size
        return {"height": height, "width": width, "image_height": image_height, "image_width": image_width}


@dataclass(frozen=True)
class Component:
    """One network: its files in the bundle, its ports with sizes, its cost."""

    files: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    macs: int | None = None
    """Multiply-accumulates of one call at batch 1, attention included; null if nobody counted."""
    bytes_moved: int | None = None
    """Bytes that its operators read and write in one call at batch 1, as the graph is written."""
    operators: dict[str, int] | None = None
    """Nodes by operator type."""
    quantization: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ports(self) -> Ports:
        return Ports(self.inputs, self.outputs)


@dataclass(frozen=True)
class FileEntry:
    """What a file must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Provenance:
    """Where a bundle came from."""

    checkpoint: str
    """Checkpoint id."""
    teacher: str | None = None
    recipe: str | None = None
    tasks: tuple[str, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    """Version by package."""
    revision: str | None = None
    """Git revision of this project, if it ran from a checkout."""


@dataclass(frozen=True)
class Requires:
    """What a device must have."""

    runtime: str
    os: str | None = None
    memory_mib: int | None = None


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`."""

    format: int
    name: str
    version: str
    runtime: Literal["onnx", "coreml", "tensorrt"]
    target: str
    precision: str
    pipeline: PipelineSpec
    components: dict[str, Component]
    files: dict[str, FileEntry]
    provenance: Provenance
    requires: Requires

    def __post_init__(self) -> None:
        for path in self.files:
            if not is_safe(path):
                raise ValueError(f"lists the file '{path}', which is not a plain path inside the bundle")
        for name, component in self.components.items():
            if name not in COMPONENTS:
                raise ValueError(f"has a component '{name}' that nobody knows{suggest(name, COMPONENTS)}")
            if not component.files:
                raise ValueError(f"component {name} lists no file")
            if self.files and (absent := [path for path in component.files if path not in self.files]):
                raise ValueError(f"component {name} needs '{absent[0]}', which files does not list")


def parse(data: object, where: object) -> Manifest:
    """The manifest in JSON data; BundleError for another format, an unknown key or an impossible value."""
    schema.check_format(data, FORMAT, where, if_older="convert the model again")
    return schema.parse(Manifest, data, where)


def bundle_id(manifest: Manifest) -> str:
    """SHA-256 of the canonical JSON of what decides the pictures: pipeline, components, files."""
    identity = {name: schema.dump(getattr(manifest, name)) for name in ("pipeline", "components", "files")}
    return hashlib.sha256(schema.canonical(identity)).hexdigest()


def is_safe(path: str) -> bool:
    """Whether a path of a manifest stays inside the bundle on every system."""
    parts = PurePosixPath(path).parts
    plain = bool(parts) and ".." not in parts and "/".join(parts) == path
    return plain and not path.startswith("/") and not any(c in path for c in "\\:\0")
