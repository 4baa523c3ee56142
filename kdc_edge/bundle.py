"""A bundle on disk: sealed once by a converter, verified at every opening."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdc_edge import manifest as contract
from kdc_edge import schema
from kdc_edge.errors import BundleError, UsageError, suggest
from kdc_edge.files import read_json, recover, sha256, write_json
from kdc_edge.manifest import OUTSIDE, Component, FileEntry, Manifest

AGAIN = "fetch the bundle again"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle folder."""

    path: Path
    manifest: Manifest
    id: str

    @classmethod
    def open(cls, path: Path | str) -> "Bundle":
        """Read the manifest and hold every file against it: sizes first, then SHA-256. Raises BundleError."""
        path = Path(path)
        recover(path)
        if not path.is_dir():
            raise BundleError(f"{path}: no such folder; a bundle is a folder with a manifest.json")
        manifest = contract.parse(read_json(path / "manifest.json"), path / "manifest.json")
        _verify(path, manifest)
        return cls(path, manifest, contract.bundle_id(manifest))

    @property
    def report(self) -> dict[str, Any]:
        """What was measured since the conversion; empty if nothing was."""
        path = self.path / "report.json"
        return read_json(path) if path.exists() else {}

    @property
    def bytes(self) -> int:
        """Size of the files the manifest lists."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def component(self, name: str) -> Component:
        """The manifest's entry of a component; UsageError if there is none of that name."""
        components = self.manifest.components
        if name not in components:
            raise UsageError(f"{self.path} has no {name}; it has {', '.join(components)}{suggest(name, components)}")
        return components[name]


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Hash the folder's files into `manifest` and write it; the bundle is complete after this."""
    files = {
        name: FileEntry(sha256(folder / name), (folder / name).stat().st_size) for name in sorted(_listing(folder))
    }
    sealed = replace(manifest, files=files)
    write_json(folder / "manifest.json", schema.dump(sealed))
    return sealed


def _listing(folder: Path) -> Iterator[str]:
    """Relative paths of all files except hidden ones and those outside the identity."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in OUTSIDE and not any(part.startswith(".") for part in name.split("/")):
            yield name


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, entry in manifest.files.items():
        _verify_size(folder, name, entry)
    for name in _listing(folder):
        if name not in manifest.files:
            raise BundleError(f"{folder / name}: not in the manifest, so nobody vouches for it; remove it, or {AGAIN}")
    for name, entry in manifest.files.items():
        if (seen := sha256(folder / name)) != entry.sha256:
            raise BundleError(f"{folder / name}: sha256 is {seen[:12]}…, manifest says {entry.sha256[:12]}…; {AGAIN}")


def _verify_size(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{path}: missing, the manifest lists it with {entry.bytes} bytes; {AGAIN}")
    if (seen := path.stat().st_size) != entry.bytes:
        raise BundleError(f"{path}: {seen} bytes, manifest says {entry.bytes}; {AGAIN}")
