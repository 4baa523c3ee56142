"""A checkpoint on disk: a diffusers pipeline folder with safetensors weights and, if this project made it, `kdc.json`.

Opening one reads no weights: it holds every safetensors header against its file's size, every index against its shards,
and refuses pickles. The tensors themselves are for those who have torch.
"""

import functools
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kdc_edge import schema
from kdc_edge.errors import BundleError
from kdc_edge.files import read_json, recover, sha256

FORMAT = 1
CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
WEIGHTED = ("unet", "vae", "text_encoder")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
OUTSIDE = ("README.md", "kdc.json")  # in a checkpoint, and not of its identity
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8, "I32": np.int32, "U8": np.uint8}
HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library has it
AGAIN = "fetch the checkpoint again"


@dataclass(frozen=True)
class Sampling:
    """How a model is meant to be run."""

    steps: int
    guidance: float


@dataclass(frozen=True)
class CheckpointInfo:
    """`kdc.json`: how a checkpoint of this project was made."""

    format: int
    recipe: str
    config: dict[str, Any]
    """The recipe's full settings."""
    teacher: str | None = None
    """Id of the checkpoint it was distilled from."""
    data: str | None = None
    """SHA-256 of the training data."""
    sampling: Sampling | None = None
    """Where None, as is usual for its scheduler."""
    losses: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checked diffusers folder."""

    path: Path
    model_index: dict[str, Any]
    info: CheckpointInfo | None

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """Check a folder without reading weights. Raises BundleError naming the file."""
        path = Path(path)
        recover(path)
        if not path.is_dir():
            raise BundleError(f"{path}: no such folder; a checkpoint is a folder with a model_index.json")
        index = read_json(path / "model_index.json")
        if not isinstance(index, dict) or "_class_name" not in index:
            raise BundleError(f"{path / 'model_index.json'}: names no pipeline class; {AGAIN}")
        checkpoint = cls(path, index, _read_info(path / "kdc.json"))
        for component in CONFIGS:
            checkpoint.config(component)
        for component in WEIGHTED:
            _check_weights(path / component)
        return checkpoint

    @functools.cached_property
    def id(self) -> str:
        """SHA-256 over the sorted relative paths and hashes of its files; README.md and kdc.json stand outside."""
        names = sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())
        files = {n: sha256(self.path / n) for n in names if n not in OUTSIDE and not _hidden(n)}
        return hashlib.sha256(schema.canonical(files)).hexdigest()

    @property
    def sampling(self) -> Sampling | None:
        """Its own; None where its recipe says nothing of it."""
        return None if self.info is None else self.info.sampling

    def config(self, component: str) -> dict[str, Any]:
        """The parsed config of `unet`, `vae`, `text_encoder`, `tokenizer` or `scheduler`."""
        path = self.path / component / CONFIGS[component]
        config = read_json(path, infinities=True)
        if not isinstance(config, dict):
            raise BundleError(f"{path}: must be a JSON object; {AGAIN}")
        return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, in order: the shards its index names, or every one there is.

    Raises BundleError for a missing shard, a pickle where weights should be, or no weights at all.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = _shards(indexes[0]) if indexes else sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = [path for path in sorted(folder.glob("*")) if path.suffix in PICKLES]
    if pickles:
        raise BundleError(f"{pickles[0]}: a pickle, which can run any code when loaded; save it as safetensors")
    raise BundleError(f"{folder}: no .safetensors weights in it; {AGAIN}")


def read_header(path: Path) -> dict[str, Any]:
    """The tensors a safetensors file declares, after holding them against its size; BundleError if it is damaged."""
    with path.open("rb") as file:
        header, _ = _header(file, path)
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    """Of a safetensors file that was just opened: its whole header, and where tensors start."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, HEADER_LIMIT):
        raise BundleError(f"{path}: {size} bytes, too short for a safetensors header of {length}; {AGAIN}")
    try:
        header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise BundleError(f"{path}: not a safetensors file: {error}; {AGAIN}") from None
    if size != 8 + length + end:
        raise BundleError(f"{path}: {size} bytes, its header says {8 + length + end}; {AGAIN}")
    return header, 8 + length


@dataclass(frozen=True)
class Opened:
    """A safetensors file that was opened once: a writer that replaces it afterwards changes nothing here."""

    header: dict[str, Any]
    metadata: dict[str, str]
    start: int
    data: NDArray[np.uint8]
    """The file's bytes, memory-mapped."""

    @classmethod
    def of(cls, path: Path) -> "Opened":
        """Raises BundleError for a damaged one."""
        with path.open("rb") as file:
            header, start = _header(file, path)
            metadata = header.pop("__metadata__", {})
            return cls(header, metadata, start, np.memmap(file, np.uint8, "r"))

    def tensor(self, name: str) -> NDArray[Any]:
        """Memory-mapped: reading some of its rows touches no others. Raises KeyError, and ValueError for another size."""
        entry = self.header[name]
        first, last = (self.start + offset for offset in entry["data_offsets"])
        return self.data[first:last].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])


def mapped(path: Path, name: str) -> NDArray[Any]:
    """One tensor of a safetensors file, memory-mapped."""
    return Opened.of(path).tensor(name)


def _check_weights(folder: Path) -> None:
    headers = {path.name: read_header(path) for path in weight_files(folder)}
    for index in sorted(folder.glob("*.safetensors.index.json"))[:1]:
        for tensor, shard in read_json(index)["weight_map"].items():
            if tensor not in headers[shard]:
                raise BundleError(f"{folder / shard}: lacks the tensor {tensor} that {index.name} puts there; {AGAIN}")


def _shards(index: Path) -> list[Path]:
    data = read_json(index)
    names = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise BundleError(f"{index}: has no weight_map of tensors to files; {AGAIN}")
    for name in sorted(set(names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BundleError(f"{index}: points at '{name}', which is not a safetensors file beside it; {AGAIN}")
        if not (index.parent / name).is_file():
            raise BundleError(f"{index.parent / name}: missing, {index.name} lists it; {AGAIN}")
    return [index.parent / name for name in sorted(set(names.values()))]


def _read_info(path: Path) -> CheckpointInfo | None:
    if not path.exists():
        return None
    data = read_json(path)
    schema.check_format(data, FORMAT, path, if_older="train it again")
    return schema.parse(CheckpointInfo, data, path)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
