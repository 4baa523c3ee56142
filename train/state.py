"""A training run on disk: one safetensors file with everything, the one before it, and a lock on their folder.

Written atomically; a kill, a full disk or a damaged file costs at most the steps since the file before.
"""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdc_edge.errors import BundleError, ResourceError
from kdc_edge.files import locked, replacing

Tensors = dict[str, Tensor]
COPIES = 3  # the newest, the one before, and one that is being written


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write `path`; the file that was there becomes the one before."""
    with replacing(path) as temporary:
        save_file({name: t.detach().contiguous() for name, t in tensors.items()}, temporary, dict(about))
        if path.exists():
            path.replace(before(path))


def load(path: Path) -> tuple[Tensors, dict[str, str]] | None:
    """The newest readable file, on the CPU; None if there is none. Raises BundleError if all are damaged."""
    damaged = None
    for candidate in (path, before(path)):
        if not candidate.exists():
            continue
        try:
            with safe_open(candidate, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            print(f"{candidate}: damaged ({error}); trying the one before", file=sys.stderr)
            damaged = candidate
    if damaged is not None:
        raise BundleError(f"{damaged}: damaged, and no other state is left; delete it to start anew")
    return None


def before(path: Path) -> Path:
    return path.with_name(f"{path.stem}.before{path.suffix}")


def about(path: Path) -> dict[str, str]:
    """What the newest readable file says of itself; nothing where there is none. No tensors are read."""
    for candidate in (path, before(path)):
        with contextlib.suppress(SafetensorError, OSError), safe_open(candidate, "pt") as file:
            return file.metadata()
    return {}


def room(path: Path, size: int) -> int:
    """Bytes that states of `size` at `path` will yet take, beside the files that are there."""
    there = [file.stat().st_size for file in (path, before(path)) if file.exists()]
    return max(0, COPIES * size - sum(there))


@contextlib.contextmanager
def reserved(folder: Path, need: int) -> Iterator[None]:
    """The run folder, for this process alone, with room for `need` bytes. Raises UsageError, ResourceError."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        free = shutil.disk_usage(folder).free
        if free < need:
            raise ResourceError(
                f"{folder}: its checkpoints take {need / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free; make room, or choose "
                "another --run-dir"
            )
        yield
