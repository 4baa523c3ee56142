"""Where a runtime keeps what it compiles for this device: made when a component is first opened, read every time after.

A folder belongs to one component of one bundle, on one kind of processor, by one version of the toolchain: whatever changes,
another folder is used. It can be deleted at any time.
"""

import hashlib
from pathlib import Path

from kdc_edge import machine, schema
from kdc_edge.bundle import Bundle


def folder(cache: Path, bundle: Bundle, component: str, *toolchain: str) -> Path:
    """In `cache`, for these; `toolchain` is its name, version and whatever else of it decides what is compiled."""
    made = [bundle.id, component, machine.processor(), machine.instructions(), *toolchain]
    digest = hashlib.sha256(schema.canonical(made)).hexdigest()
    return cache / f"{bundle.manifest.name}-{component}-{digest[:16]}"
