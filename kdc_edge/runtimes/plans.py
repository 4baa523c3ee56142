"""Where engines are kept, and which one fits: SHA-256 of the ONNX, SM, TensorRT, driver, CUDA, system and flags in the file's
name and in a sidecar. An engine of another machine or version is never loaded: the difference is named, and one is built.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kdc_edge import schema
from kdc_edge.errors import BundleError
from kdc_edge.files import read_json, replace_file, sha256, write_json
from kdc_edge.runtimes.device import Device
from kdc_edge.runtimes.engines import BuildOptions

FORMAT = 1
ENGINE, SIDECAR, TIMING = ".engine", ".json", "timing.cache"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """All that decides whether an engine is this one."""

    onnx: str
    profile: dict[str, Any]
    tensorrt: str
    device: str
    sm: int
    driver: int
    cuda: int
    os: str
    flags: dict[str, Any]

    @classmethod
    def of(
        cls, files: list[Path], profile: dict[str, Any], tensorrt: str, device: Device, options: BuildOptions
    ) -> "Identity":
        model = hashlib.sha256("".join(sha256(path) for path in files).encode()).hexdigest()
        place = (device.name, device.sm, device.driver, device.cuda, device.os)
        return cls(model, dict(profile), tensorrt, *place, asdict(options))

    def file(self, component: str) -> str:
        """A name that says the most, and ends in a hash of all."""
        digest = hashlib.sha256(schema.canonical(asdict(self))).hexdigest()
        return f"{component}-{self.onnx[:12]}-sm{self.sm}-trt{self.tensorrt}-{digest[:12]}{ENGINE}"


def differences(seen: dict[str, Any], wanted: Identity) -> list[str]:
    """`key: seen, wanted here` for everything that is not the same."""
    here = asdict(wanted)
    return [f"{key} is {seen.get(key)}, here {value}" for key, value in here.items() if seen.get(key) != value]


def sidecar(path: Path) -> dict[str, Any]:
    """What stands beside an engine. Raises BundleError where nothing readable does."""
    about = read_json(path.with_suffix(SIDECAR))
    if not isinstance(about, dict) or about.get("format") != FORMAT or not isinstance(about.get("identity"), dict):
        raise BundleError(f"{path.with_suffix(SIDECAR)}: no sidecar of format {FORMAT}; build the engine again")
    return about


def load(path: Path, wanted: Identity) -> bytes:
    """An engine that is `wanted` and whole. Raises BundleError naming what differs."""
    about = sidecar(path)
    if differ := differences(about["identity"], wanted):
        raise BundleError(f"{path}: built elsewhere: {'; '.join(differ)}; build it here: kdc-edge build")
    if (found := sha256(path)) != about.get("sha256"):
        raise BundleError(
            f"{path}: sha256 is {found[:12]}…, its sidecar says {str(about.get('sha256'))[:12]}…; build it again"
        )
    return path.read_bytes()


def save(path: Path, engine: bytes, identity: Identity, about: Mapping[str, Any]) -> None:
    """`about` is what a refit wants to know of it: the component, and its weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, engine)
    told = {"format": FORMAT, "identity": asdict(identity), "sha256": hashlib.sha256(engine).hexdigest(), **about}
    write_json(path.with_suffix(SIDECAR), told)


def fitting(folder: Path, component: str, wanted: Identity) -> Path | None:
    """The newest whole engine that is `wanted` but for its flags: those change how it computes, not what."""
    found = folder.glob(f"{component}-{wanted.onnx[:12]}-*{ENGINE}")
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            load(path, replace(wanted, flags=sidecar(path)["identity"].get("flags", {})))
        except BundleError as error:
            log.info("%s", error)
            continue
        return path
    return None


def obtain(
    folder: Path,
    component: str,
    wanted: Identity,
    make: Callable[[bytes], tuple[bytes, bytes]],
    about: Mapping[str, Any],
) -> tuple[Path, bool]:
    """The engine's path, and whether it was built now; `make` takes a timing cache and returns the engine and a cache."""
    path = folder / wanted.file(component)
    if path.exists():
        try:
            load(path, wanted)
            return path, False
        except BundleError as error:
            log.warning("%s; it is built again", error)
    timing = folder / f"sm{wanted.sm}-trt{wanted.tensorrt}-{TIMING}"
    engine, cache = make(timing.read_bytes() if timing.exists() else b"")
    save(path, engine, wanted, about)
    replace_file(timing, cache)
    return path, True
