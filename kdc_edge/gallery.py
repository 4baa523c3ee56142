"""Captioned real pictures in the `imagefolder` convention (files beside a `metadata.jsonl`), from a folder, tar or zip.

Needs Pillow alone. Training reads more kinds of data (`train/data.py`); measuring needs these rows and pixels.
"""

import contextlib
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.images import on_white, square

METADATA = "metadata.jsonl"
Reader = Callable[[str], bytes]


@dataclass(frozen=True)
class Row:
    """One picture's file, caption, and what emoji-64 knows of it: the name without skin tones, the tones, its split."""

    file: str
    text: str
    base: str
    tone: str
    split: str


@dataclass(frozen=True)
class Gallery:
    """`pixels` (N, H, W, 3) uint8 of `rows`."""

    pixels: np.ndarray
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def open(cls, source: Path, size: int) -> "Gallery":
        """Every picture, cropped to a square and resized to `size`. Raises BundleError for one that is none."""
        with reading(source) as read:
            rows = _rows(source, read)
            return cls(np.stack([decode(read(row.file), size, f"{source}: {row.file}") for row in rows]), rows)

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows]

    def select(self, keep: np.ndarray) -> "Gallery":
        """By numbers or by a mask."""
        numbers = np.arange(len(self))[keep]
        return Gallery(self.pixels[numbers], tuple(self.rows[i] for i in numbers))

    def digest(self) -> str:
        """SHA-256 over the pixels."""
        return hashlib.sha256(np.ascontiguousarray(self.pixels).tobytes()).hexdigest()


def rows_of(source: Path) -> tuple[Row, ...]:
    """The captions alone, in the order of the file."""
    with reading(source) as read:
        return _rows(source, read)


def decode(data: bytes, size: int | None, where: str) -> np.ndarray:
    """An encoded picture → RGB on white (H, W, 3) uint8, a square of `size` if that is given. Raises BundleError."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = on_white(opened)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise BundleError(f"{where}: not a readable picture ({error}); mend or remove it") from error
    return np.asarray(picture) if size is None else square(picture, size)


@contextlib.contextmanager
def reading(source: Path) -> Iterator[Reader]:
    """`read(name)` gives one file's bytes. UsageError for a source that is not there, BundleError for a damaged one."""
    if source.is_dir():
        yield lambda name: _inside(source, name).read_bytes()
        return
    if not source.is_file():
        raise UsageError(f"{source}: no such file or folder")
    try:
        if source.suffix == ".zip":
            with zipfile.ZipFile(source) as archive:
                yield archive.read
        else:
            with tarfile.open(source) as tar:
                yield lambda name: _member(tar, name)
    except (tarfile.TarError, zipfile.BadZipFile, KeyError) as error:
        raise BundleError(f"{source}: not a readable tar or zip of pictures ({error}); fetch it again") from error


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if folder.resolve() not in path.resolve().parents or not path.is_file():
        raise BundleError(f"{folder}: has no file '{name}' in it; fetch the pictures again")
    return path


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    if member is None:
        raise KeyError(f"'{name}' is no file")
    return member.read()


def _rows(source: Path, read: Reader) -> tuple[Row, ...]:
    found = []
    for number, line in enumerate(read(METADATA).decode("utf-8").splitlines(), 1):
        try:
            data = json.loads(line)
            text = data["text"].strip()
            found.append(
                Row(data["file_name"], text, data.get("base", text), data.get("tone", ""), data.get("split", "train"))
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{source}: {METADATA}, line {number}: no file_name and text in it ({error})") from error
    if not found:
        raise UsageError(f"{source}: no pictures in it")
    return tuple(found)
