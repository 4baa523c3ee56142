"""Captioned pictures from anywhere: as a stream, or as one array in memory.

A source is a tar or zip or folder in the `imagefolder` convention (pictures beside a `metadata.jsonl`, or one folder per
class), WebDataset shards, or a hub id; Hugging Face `datasets` streams them all, so that none has to fit into memory or on
this disk. Captions come from a column (`text`, `caption`, `prompt`) or from the class name.
"""

import contextlib
import hashlib
import json
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.gallery import decode as decode_bytes
from train.captions import captions, class_caption

if TYPE_CHECKING:
    from torch import Tensor

TEXT_COLUMNS = ("text", "caption", "prompt", "txt")
IMAGE_COLUMNS = ("image", "webp", "png", "jpg", "jpeg")
HEAD = 64  # members of a tar that say what it is


@dataclass(frozen=True)
class Pictures:
    """`pixels` (N, H, W, 3) uint8; `captions[i]` the plain one first; `rows[i]` what else is known."""

    pixels: np.ndarray
    captions: tuple[tuple[str, ...], ...]
    rows: tuple[dict[str, str], ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, mask: Sequence[bool] | np.ndarray) -> "Pictures":
        return self.select_index(np.flatnonzero(np.asarray(mask)))

    def select_index(self, keep: np.ndarray) -> "Pictures":
        return Pictures(self.pixels[keep], tuple(self.captions[i] for i in keep), tuple(self.rows[i] for i in keep))

    def split(self, name: str) -> "Pictures":
        """Rows whose `split` column is `name`; where no row has that column, everything is `train`."""
        return self.select([row.get("split", "train") == name for row in self.rows])

    def tensor(self) -> "Tensor":
        """(N, 3, H, W) uint8, as the networks take pictures."""
        import torch

        return torch.from_numpy(self.pixels).permute(0, 3, 1, 2).contiguous()

    def digest(self) -> str:
        """SHA-256 over pixels and captions."""
        text = json.dumps(self.captions, ensure_ascii=False).encode()
        return hashlib.sha256(self.pixels.tobytes() + text).hexdigest()


def shares(rows: Sequence[dict[str, str]], toned_share: float) -> "Tensor":
    """Each picture's share of the draws (N,): those with a skin tone get `toned_share` together, if there are any."""
    import torch

    toned = torch.tensor([bool(row.get("tone")) for row in rows])
    if not toned.any() or toned.all():
        return torch.ones(len(rows))
    return torch.where(toned, toned_share / toned.sum(), (1 - toned_share) / (~toned).sum())


def load(source: str, size: int, *, revision: str | None = None, split: str = "train") -> Pictures:
    """Every picture of `source`, centre-cropped to a square and resized to `size`, in memory.

    Raises UsageError for a source that is not there or has no caption column, BundleError for a file that is no picture.
    """
    with open_source(source, revision=revision, split=split) as found:
        items = [found.read(record, size) for record in found]
    pixels, texts, rows = zip(*items, strict=True)
    return Pictures(np.stack(pixels), texts, rows)


@dataclass(frozen=True)
class Record:
    """A picture, still encoded, and what the data set says of it."""

    number: int
    """Of the row, from 0."""
    columns: dict[str, Any]

    @property
    def split(self) -> str:
        return flatten(self.columns).get("split") or "train"


@dataclass(frozen=True)
class Source:
    """An opened data set, read from its beginning by each iteration, one record at a time."""

    name: str
    table: Any
    image_column: str
    text_of: Callable[[Record], str]

    def __iter__(self) -> Iterator[Record]:
        with readable(self.name):
            for number, columns in enumerate(self.table):
                yield Record(number, columns)

    def read(self, record: Record, size: int) -> tuple[np.ndarray, tuple[str, ...], dict[str, str]]:
        """Pixels (size, size, 3) uint8, captions, and what else is known of a picture, its file's SHA-256 included."""
        name, data = file_of(record.columns[self.image_column], f"{self.name}, row {record.number}")
        picture = decode_bytes(data, size, name)
        row = {k: v for k, v in flatten(record.columns).items() if isinstance(v, str)}
        row |= {"text": self.text_of(record), "sha256": hashlib.sha256(data).hexdigest()}
        return picture, tuple(captions(row, picture)), row


@contextlib.contextmanager
def open_source(source: str, *, revision: str | None = None, split: str = "train") -> Iterator[Source]:
    """A data set that streams from where it is: nothing is copied but an archive of a folder, which is unpacked."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="kdc-data-") as temporary:
        with readable(source):
            table = datasets.load_dataset(**where(source, Path(temporary), revision), split=split, streaming=True)
            features = table.features or {}
            for name, feature in features.items():
                if isinstance(feature, datasets.Image):
                    table = table.cast_column(name, datasets.Image(decode=False))
            first = next(iter(table), None)
        if first is None:
            raise UsageError(f"{source}: no pictures in it")
        image_column = column(list(first), IMAGE_COLUMNS, source, "pictures")
        yield Source(source, table, image_column, text_reader(first, features, source))


@contextlib.contextmanager
def readable(source: str) -> Iterator[None]:
    """What `datasets` fails with, as our errors."""
    import datasets

    try:
        yield
    except datasets.data_files.EmptyDatasetError as error:
        raise UsageError(f"{source}: no pictures in it") from error
    except (datasets.exceptions.DatasetsError, tarfile.TarError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise BundleError(f"{source}: not readable as pictures with captions ({cause})") from error


def where(source: str, temporary: Path, revision: str | None) -> dict[str, Any]:
    """`load_dataset`'s arguments for a folder, an archive, shards or a hub id."""
    path = Path(source)
    if path.is_file():
        if path.suffix != ".zip" and is_shard(path):
            return {"path": "webdataset", "data_files": [source]}
        unpack(path, temporary)
        return {"path": "imagefolder", "data_dir": str(temporary)}
    if path.is_dir():
        if shards := sorted(str(shard) for shard in path.glob("*.tar")):
            return {"path": "webdataset", "data_files": shards}
        return {"path": "imagefolder", "data_dir": source}
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise UsageError(f"{source}: no such file or folder")
    if not is_commit(revision):
        raise UsageError(
            f"{source}: no such file or folder; if it is meant as a data set on the hub, pin it with --data-revision "
            "COMMIT (40 hexadecimal digits), so that a run can be repeated"
        )
    return {"path": source, "revision": revision}


def is_commit(revision: str | None) -> bool:
    return revision is not None and re.fullmatch("[0-9a-f]{40}", revision) is not None


def is_shard(archive: Path) -> bool:
    """Whether a tar is WebDataset's: captions in files named as their pictures are, and those begin it."""
    with opened(archive), tarfile.open(archive) as file:
        members = list(islice((Path(member.name) for member in file if member.isfile()), HEAD))
    texts = {name.with_suffix("") for name in members if name.suffix in (".json", ".txt")}
    return any(name.suffix[1:] in IMAGE_COLUMNS and name.with_suffix("") in texts for name in members)


def unpack(archive: Path, folder: Path) -> None:
    with opened(archive):
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[None]:
    """BundleError for an archive that is none."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise BundleError(f"{archive}: not a readable tar or zip ({error})") from error


def column(names: Sequence[str], wanted: Sequence[str], source: str, what: str) -> str:
    for name in wanted:
        if name in names:
            return name
    raise UsageError(f"{source}: no column for {what}; wanted one of {', '.join(wanted)}, there are {', '.join(names)}")


def text_reader(first: dict[str, Any], features: Mapping[str, Any], source: str) -> Callable[[Record], str]:
    """How to read a record's caption: a text column, a WebDataset `json` with one, or the class name of its label."""
    label = next((name for name in ("label", "labels") if hasattr(features.get(name), "int2str")), None)
    if label is not None and not any(name in first for name in (*TEXT_COLUMNS, "json")):
        return lambda record: class_caption(features[label].int2str(record.columns[label]))
    key = column(list(flatten(first)), TEXT_COLUMNS, source, "captions")

    def read(record: Record) -> str:
        text = flatten(record.columns).get(key)
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{source}, row {record.number}: column '{key}' holds no caption")
        return text

    return read


def flatten(record: dict[str, Any]) -> dict[str, Any]:
    """A WebDataset record keeps its caption inside `json`."""
    inner = record.get("json")
    return {**inner, **record} if isinstance(inner, dict) else record


def file_of(image: dict[str, Any], where: str) -> tuple[str, bytes]:
    """`{"bytes", "path"}` → the name to complain about, and the encoded picture."""
    name = image.get("path") or where
    try:
        return name, image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    except OSError as error:
        raise BundleError(f"{name}: not a readable picture ({error}); mend or remove it") from error
