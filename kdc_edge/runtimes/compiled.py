"""Where a runtime keeps what it compiles for this device: made when a component is first opened, read every time after.

A folder belongs to one component of one bundle, on one kind of processor, by one version of the toolchain: whatever changes,
another folder is used. It can be deleted at any time.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from kdc_edge import machine, schema
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError
from kdc_edge.files import replace_dir


def home() -> Path:
    """Where it is kept unless a folder is named: the user's cache, by the system's custom."""
    custom = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(custom).expanduser() / "kdc-edge"


def usual() -> Path | None:
    """Home, or None where it cannot be written."""
    with contextlib.suppress(OSError):
        home().mkdir(parents=True, exist_ok=True)
    return home() if home().is_dir() and os.access(home(), os.W_OK) else None


def folder(cache: Path, bundle: Bundle, component: str, *toolchain: str) -> Path:
    """In `cache`, for these; `toolchain` is its name, version and whatever else of it decides what is compiled.

    Raises UsageError where `cache` is no folder that can be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--cache-dir {cache}: {error.strerror}; name a folder that can be written") from None
    made = [bundle.id, component, machine.processor(), machine.instructions(), *toolchain]
    digest = hashlib.sha256(schema.canonical(made)).hexdigest()
    return cache / f"{bundle.manifest.name}-{component}-{digest[:16]}"


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """An empty folder that becomes `folder` when it is complete, unless another process was faster.

    What a killed writer of `folder` left beside it is removed first.
    """
    begun = False
    try:
        with replace_dir(folder, force=False) as made:
            begun = True
            yield made
    except UsageError:  # it is there by now
        if not begun:
            raise
