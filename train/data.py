"""Captioned pictures from anywhere, as one array in memory.

`load` takes a tar or zip or folder in the `imagefolder` convention (pictures beside a `metadata.jsonl`, or one folder per
class), WebDataset shards, or a hub id; Hugging Face `datasets` reads them all. Captions come from a column (`text`,
`caption`, `prompt`) or from the class name.
"""

import contextlib
import hashlib
import json
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
        items = [found.read(number, size) for number in range(len(found))]
    pixels, texts, rows = zip(*items, strict=True)
    return Pictures(np.stack(pixels), texts, rows)


@dataclass(frozen=True)
class Source:
    """An opened data set; pictures stay on disk until they are read."""

    name: str
    table: Any
    image_column: str
    text_of: Callable[[dict[str, Any], int], str]

    def __len__(self) -> int:
        return len(self.table)

    def read(self, number: int, size: int) -> tuple[np.ndarray, tuple[str, ...], dict[str, str]]:
        """Pixels (size, size, 3) uint8, captions, and what else is known of a picture, its file's SHA-256 included."""
        record = self.table[number]
        name, data = file_of(record[self.image_column], f"{self.name}, row {number}")
        picture = decode_bytes(data, size, name)
        row = {k: v for k, v in flatten(record).items() if isinstance(v, str)}
        row |= {"text": self.text_of(record, number), "sha256": hashlib.sha256(data).hexdigest()}
        return picture, tuple(captions(row, picture)), row

    def split(self, name: str) -> list[int]:
        """Numbers of the rows whose `split` column is `name`; where there is no such column, all are `train`."""
        names = self.table.column_names
        if "split" in names:
            found = list(self.table["split"])
        elif "json" in names:
            found = [(inner or {}).get("split", "train") for inner in self.table["json"]]
        else:
            found = ["train"] * len(self)
        return [number for number, split in enumerate(found) if split == name]


@contextlib.contextmanager
def open_source(source: str, *, revision: str | None = None, split: str = "train") -> Iterator[Source]:
    with open_table(source, revision, split) as table:
        if not len(table):
            raise UsageError(f"{source}: no pictures in it")
        image_column = column(table.column_names, IMAGE_COLUMNS, source, "pictures")
        yield Source(source, table, image_column, text_reader(table, source))


@contextlib.contextmanager
def open_table(source: str, revision: str | None, split: str) -> Iterator[Any]:
    """A `datasets` table with undecoded pictures; local files are read from and cached in a temporary folder."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="kdc-data-") as temporary:
        try:
            table = datasets.load_dataset(**where(source, Path(temporary), revision), split=split)
        except datasets.data_files.EmptyDatasetError as error:
            raise UsageError(f"{source}: no pictures in it") from error
        except (
            datasets.exceptions.DatasetGenerationError,
            datasets.exceptions.DatasetsError,
            ValueError,
            OSError,
        ) as error:
            cause = error.__cause__ or error
            raise BundleError(f"{source}: not readable as pictures with captions ({cause})") from error
        for name, feature in table.features.items():
            if isinstance(feature, datasets.Image):
                table = table.cast_column(name, datasets.Image(decode=False))
        yield table


def where(source: str, temporary: Path, revision: str | None) -> dict[str, Any]:
    """`load_dataset`'s arguments for a folder, an archive, shards or a hub id."""
    path, cache = Path(source), str(temporary / "cache")
    if path.is_file():
        folder = temporary / "files"
        unpack(path, folder)
        if is_shard(path, folder):
            return {"path": "webdataset", "data_files": [source], "cache_dir": cache}
        return {"path": "imagefolder", "data_dir": str(folder), "cache_dir": cache}
    if path.is_dir():
        if shards := sorted(str(shard) for shard in path.glob("*.tar")):
            return {"path": "webdataset", "data_files": shards, "cache_dir": cache}
        return {"path": "imagefolder", "data_dir": source, "cache_dir": cache}
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise UsageError(f"{source}: no such file or folder")
    if revision is None or not re.fullmatch("[0-9a-f]{40}", revision):
        raise UsageError(
            f"{source}: no such file or folder; if it is meant as a data set on the hub, pin it with --data-revision "
            "COMMIT (40 hexadecimal digits), so that a run can be repeated"
        )
    return {"path": source, "revision": revision}


def is_shard(archive: Path, folder: Path) -> bool:
    """Whether what a tar was unpacked to is WebDataset's: captions in files named as their pictures are."""
    if archive.suffix == ".zip" or (folder / "metadata.jsonl").exists():
        return False
    texts = {file.with_suffix("") for kind in ("json", "txt") for file in folder.rglob(f"*.{kind}")}
    return any(file.with_suffix("") in texts for kind in IMAGE_COLUMNS[1:] for file in folder.rglob(f"*.{kind}"))


def unpack(archive: Path, folder: Path) -> None:
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise BundleError(f"{archive}: not a readable tar or zip ({error})") from error


def column(names: Sequence[str], wanted: Sequence[str], source: str, what: str) -> str:
    for name in wanted:
        if name in names:
            return name
    raise UsageError(f"{source}: no column for {what}; wanted one of {', '.join(wanted)}, there are {', '.join(names)}")


def text_reader(table: Any, source: str) -> Callable[[dict[str, Any], int], str]:
    """How to read one record's caption: a text column, a WebDataset `json` with one, or the class name of its label."""
    names = table.column_names
    label = table.features.get("label") or table.features.get("labels")
    if not any(name in names for name in (*TEXT_COLUMNS, "json")) and hasattr(label, "int2str"):
        key = "label" if "label" in names else "labels"
        return lambda record, number: class_caption(label.int2str(record[key]))
    sample = flatten(table[0]) if len(table) else {}
    key = column([*names, *sample], TEXT_COLUMNS, source, "captions")

    def read(record: dict[str, Any], number: int) -> str:
        text = flatten(record).get(key)
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{source}, row {number}: column '{key}' holds no caption")
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
