"""Pictures in a folder, read one batch at a time: what is no picture is named and counted, sizes must agree."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.gallery import decode

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
NAMED = 3  # of the bad ones


def listing(folder: Path, at_least: int = 1) -> list[Path]:
    """The pictures of a folder, by name. Raises UsageError where there are fewer than asked."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UsageError(f"{folder}: no pictures in it; they end in {', '.join(SUFFIXES)}")
    if len(found) < at_least:
        raise UsageError(f"{folder}: has {len(found)} pictures, {at_least} were asked for; draw or fetch the others")
    return found


@dataclass
class Reading:
    """How pictures are read, and what went wrong so far."""

    size: int | None = None
    """Crop each to a square and resize it; else all must be of one size."""
    skip_bad: bool = False
    bad: list[str] = field(default_factory=list)
    _first: tuple[str, tuple[int, ...]] | None = None

    def expect(self, paths: Sequence[Path]) -> None:
        """All are to be of the size of the first that can be opened."""
        for path in paths if self.size is None else ():
            with contextlib.suppress(OSError, SyntaxError), Image.open(path) as opened:
                self._first = (str(path), (opened.height, opened.width, 3))
                return

    def batch(self, paths: Sequence[Path]) -> tuple[list[int], list[np.ndarray]]:
        """Numbers within `paths`, and pixels (H, W, 3) uint8, of those that are pictures."""
        numbers, pictures = [], []
        for number, path in enumerate(paths):
            with self._noting():
                pictures.append(self._one(path))
                numbers.append(number)
        return numbers, pictures

    def finish(self, total: int) -> None:
        """Raises BundleError where some could not be read and they are not to be skipped."""
        if self.bad and not self.skip_bad:
            shown = "; ".join(self.bad[:NAMED]) + ("; …" if len(self.bad) > NAMED else "")
            raise BundleError(
                f"{len(self.bad)} of {total} pictures cannot be read, --skip-bad measures the others: {shown}"
            )

    def _one(self, path: Path) -> np.ndarray:
        picture = decode(path.read_bytes(), self.size, str(path))
        if self._first is not None and picture.shape != self._first[1]:
            (name, first), seen = self._first, picture.shape
            raise UsageError(
                f"pictures of mixed sizes: {name} is {first[1]}×{first[0]}, {path} {seen[1]}×{seen[0]}; --size crops and "
                "resizes all to one"
            )
        return picture

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except BundleError as error:
            self.bad.append(str(error))
        except FileNotFoundError as error:
            self.bad.append(f"{error.filename}: not there")
