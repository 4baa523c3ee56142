"""Feature networks by name, and the features of thousands of pictures: in bounded memory, resumable, read ahead.

Pictures are read and resized by threads while the network works on the batch before. Features are kept in parts on disk,
keyed by the pictures, the network and the resize rule, so that a run that was killed goes on.
"""

# N pictures, D feature dimensions, H W pixels

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from kdc_edge import schema
from kdc_edge.checkpoint import weight_files
from kdc_edge.drawing import ALONE, Part
from kdc_edge.errors import GateError
from kdc_edge.files import replacing, sha256
from kdc_edge.pictures import Reading
from kdc_edge.torch_ref import inception, weights
from kdc_edge.torch_ref.judge import Judge, clip_folder

BATCH, SAVED = 32, 512  # pictures of a call, and of a part on disk
AHEAD = 2  # batches
Pixels = Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Extractor:
    """`prepare` takes N pictures (H, W, 3) uint8 of any sizes, `network` what that returns → (N, D)."""

    name: str
    hash: str
    resize: str
    dimensions: int
    prepare: Callable[[Pixels], Tensor]
    network: Callable[[Tensor], Tensor]

    def __call__(self, pictures: Pixels) -> NDArray[np.float32]:
        """(N, D), a batch at a time."""
        parts = (self.prepare(pictures[i : i + BATCH]) for i in range(0, len(pictures), BATCH))
        with torch.inference_mode():
            return np.concatenate([self.network(part).float().cpu().numpy() for part in parts])


def judge_images(source: str, device: str = "cpu") -> tuple[Judge, Extractor]:
    """A CLIP, and its image tower's projections as features."""
    judge, folder = Judge.open(source, device), clip_folder(source)
    files = [sha256(path) for path in weight_files(folder)]
    digest = files[0] if len(files) == 1 else hashlib.sha256(schema.canonical(files)).hexdigest()
    rule = judge.preprocess.rule
    name = f"{Path(source).name} image tower"
    return judge, Extractor(name, digest, rule, judge.dimensions, judge.preprocess, judge.forward)


def inception_v3(source: str, digits: str | None = None, device: str = "cpu") -> Extractor:
    """FID's InceptionV3 with weights from a file or the hub. Raises BundleError for another SHA-256 than `digits`."""
    path, seen = weights.checked(source, inception.SHA256 if digits is None else digits)
    network = weights.load(inception.InceptionV3(), weights.read(path), path).to(device)
    network.to(memory_format=torch.channels_last)

    def forward(x: Tensor) -> Tensor:
        return network(x.to(device).to(memory_format=torch.channels_last))

    return Extractor(
        "InceptionV3 (2015-12-05) pool3", seen, inception.RESIZE, inception.DIMENSIONS, inception.prepare, forward
    )


@dataclass(frozen=True)
class Found:
    """`features` (n, D) of the pictures `numbers` (n,) of those asked for; fewer where some could not be read."""

    numbers: NDArray[np.int64]
    features: NDArray[np.float32]


def stream(
    extractor: Extractor, paths: Sequence[Path], reading: Reading, folder: Path, part: Part = ALONE
) -> Iterator[Found]:
    """Features in parts, in order. Raises BundleError for pictures that cannot be read, unless they are to be skipped.

    Every process computes its share of the parts; all of them see all parts. A part with a bad picture is not kept.
    """
    reading.expect(paths)
    spans = [range(i, min(i + SAVED, len(paths))) for i in range(0, len(paths), SAVED)]
    missing = [span for span in spans if not _file(folder, span).exists()]
    part.wait()
    fresh: dict[int, Found] = {}
    done = len(paths) - sum(map(len, missing))
    with tqdm(
        total=len(paths), initial=done, desc="features", unit="picture", disable=None if part.first else True
    ) as bar:
        for span in part.of(missing):
            bad = len(reading.bad)
            found = _extract(extractor, paths, span, reading, bar)
            if len(reading.bad) == bad:
                _save(_file(folder, span), found)
            else:
                fresh[span.start] = found
    part.wait()
    for span in missing:  # bad pictures in another process's share
        if span.start not in fresh and not _file(folder, span).exists():
            fresh[span.start] = _extract(extractor, paths, span, reading, None)
    reading.finish(len(paths))
    for span in spans:
        if span.start in fresh:
            yield fresh[span.start]
        else:
            with np.load(_file(folder, span), allow_pickle=False) as data:
                yield Found(data["numbers"], data["features"])


def gather(parts: Iterator[Found]) -> Found:
    """All parts as one."""
    found = list(parts)
    return Found(np.concatenate([f.numbers for f in found]), np.concatenate([f.features for f in found]))


def key(extractor: Extractor, of: object) -> str:
    """A folder's name for the features of pictures that `of` identifies."""
    rules = [extractor.hash, extractor.resize, of]
    return hashlib.sha256(schema.canonical(rules)).hexdigest()[:16]


def _extract(extractor: Extractor, paths: Sequence[Path], span: range, reading: Reading, bar: tqdm | None) -> Found:
    numbers, features = [], []

    def load(batch: range) -> tuple[list[int], Tensor | None]:
        kept, pictures = reading.batch([paths[i] for i in batch])
        return [batch[i] for i in kept], extractor.prepare(pictures) if pictures else None

    batches = [span[i : i + BATCH] for i in range(0, len(span), BATCH)]
    with ThreadPoolExecutor(AHEAD) as pool, torch.inference_mode():
        waiting = [pool.submit(load, batch) for batch in batches[:AHEAD]]
        for number, batch in enumerate(batches):
            kept, prepared = waiting.pop(0).result()
            if number + AHEAD < len(batches):
                waiting.append(pool.submit(load, batches[number + AHEAD]))
            if prepared is not None:
                features.append(extractor.network(prepared).float().cpu().numpy())
                _require_finite(features[-1], [paths[i] for i in kept], extractor.name)
                numbers += kept
            if bar is not None:
                bar.update(len(batch))
    empty = np.zeros((0, extractor.dimensions), np.float32)
    return Found(np.array(numbers, np.int64), np.concatenate([empty, *features]))


def _require_finite(features: NDArray[np.float32], paths: Sequence[Path], name: str) -> None:
    bad = [path for path, row in zip(paths, features, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise GateError(
            f"{name}: features of {len(bad)} pictures are not finite, the first {bad[0]}; the weights are broken"
        )


def _file(folder: Path, span: range) -> Path:
    return folder / f"{span.start:06}.npz"


def _save(path: Path, found: Found) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, numbers=found.numbers, features=found.features)
