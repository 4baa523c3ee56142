"""What real pictures look like to a feature network: statistics, cached with where they come from."""

# N pictures, D feature dimensions

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdc_edge import schema
from kdc_edge.drawing import ALONE, Part
from kdc_edge.errors import BundleError
from kdc_edge.files import replacing, sha256
from kdc_edge.gallery import Gallery
from kdc_edge.pictures import Reading, listing
from kdc_edge.torch_ref.distances import Moments
from kdc_edge.torch_ref.extractors import Extractor, Found, key, stream

SAMPLE = 10_000  # features kept for the kernel distance
CHOICE = 20_261


@dataclass(frozen=True)
class Reference:
    """Moments of all real pictures, and the features (n, D) of a fixed choice of at most SAMPLE of them."""

    name: str
    hash: str
    moments: Moments
    sample: NDArray[np.float32]


def of_features(name: str, digest: str, features: NDArray[np.float32]) -> Reference:
    """Of features (N, D) that are at hand."""
    return Reference(name, digest, Moments.of(features), features[_choice(len(features))])


def of_gallery(extractor: Extractor, gallery: Gallery, cache: Path) -> NDArray[np.float32]:
    """Features (N, D) of all its pictures, from the cache if they are there."""
    path = cache / "features" / f"gallery-{key(extractor, gallery.digest())}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as data:
            return data["features"]
    features = extractor(list(gallery.pixels))
    _write(path, features=features)
    return features


def of_folder(extractor: Extractor, folder: Path, reading: Reading, cache: Path, part: Part = ALONE) -> Reference:
    """Of every picture in a folder. The cache's key is all files' content, the network and the resize rule."""
    paths = listing(folder, at_least=2)
    digest = digest_of(paths)
    name = key(extractor, [digest, reading.size])
    path = cache / "statistics" / f"{name}.npz"
    if not path.exists():
        found = _gathered(stream(extractor, paths, reading, cache / "features" / name, part), extractor, len(paths))
        if reading.bad:  # skipped: nothing that others should find under this key
            return Reference(folder.name, digest, *found)
        provenance = {"folder": str(folder), "pictures": len(paths), "files": digest, "size": reading.size}
        provenance |= {"extractor": extractor.name, "extractor_hash": extractor.hash, "resize": extractor.resize}
        if part.first:
            moments, sample = found
            _write(
                path,
                count=np.array(moments.count),
                total=moments.total,
                products=moments.products,
                sample=sample,
                provenance=np.array(json.dumps(provenance)),
            )
        part.wait()
    return _read(path, folder.name, digest)


def digest_of(paths: list[Path]) -> str:
    """SHA-256 over names and contents."""
    files = {path.name: sha256(path) for path in paths}
    return hashlib.sha256(schema.canonical(files)).hexdigest()


def _gathered(parts: Iterator[Found], extractor: Extractor, count: int) -> tuple[Moments, NDArray[np.float32]]:
    moments, kept = Moments.empty(extractor.dimensions), set(_choice(count).tolist())
    sample = []
    for found in parts:
        moments.add(found.features)
        sample.append(found.features[[number in kept for number in found.numbers.tolist()]])
    return moments, np.concatenate(sample)


def _choice(count: int) -> NDArray[np.int64]:
    return np.sort(np.random.RandomState(CHOICE).choice(count, min(SAMPLE, count), replace=False))


def _read(path: Path, name: str, digest: str) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as data:
            moments = Moments(int(data["count"]), data["total"], data["products"])
            return Reference(name, digest, moments, data["sample"])
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path}: not readable as statistics ({error}); remove it, it is made anew") from error


def _write(path: Path, **arrays: Any) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
