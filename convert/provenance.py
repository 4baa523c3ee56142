"""Where a bundle came from: the checkpoint, the versions of every tool that touched it, the revision of this project."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import kdc_edge
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.machine import revision
from kdc_edge.manifest import Provenance


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
