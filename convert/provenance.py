"""Where a bundle came from: the checkpoint, the versions of every tool that touched it, the revision of this project."""

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import kdc_edge
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.manifest import Provenance

ROOT = Path(kdc_edge.__file__).resolve().parent.parent


def provenance(checkpoint: Checkpoint, packages: Iterable[str]) -> Provenance:
    """The manifest's provenance; a checkpoint made elsewhere has neither teacher nor recipe."""
    info = checkpoint.info
    tools = {"kdc-edge": kdc_edge.__version__, "python": platform.python_version()}
    tools |= {package: found for package in packages if (found := installed(package))}
    return Provenance(
        checkpoint=checkpoint.id,
        teacher=info.teacher if info else None,
        recipe=info.recipe if info else None,
        tasks=info.tasks if info else (),
        tools=tools,
        revision=revision(),
    )


def installed(package: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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
