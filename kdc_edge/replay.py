"""A replay buffer on disk: one safetensors file of latents, the captions they are drawn from, and where they came from.

    latents (N, C, h, w) int8 or fp16 · scales (N,) · pictures (N, 32) SHA-256 · caption, task (N,) · priority (N,)
    caption_task (M,)        and in the header's metadata, as JSON: everything in `About`

There are no pixels in it. Training writes it (`train.replay`); this module reads it without torch.
"""

# N items, M captions, C latent channels, h w latent grid

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdc_edge import schema
from kdc_edge.checkpoint import Opened
from kdc_edge.errors import BundleError

FORMAT = 1
FILE = "replay.safetensors"
COLUMNS = ("latents", "scales", "pictures", "caption", "task", "priority", "caption_task")
AGAIN = "merge or train a new buffer"

Store = Literal["int8", "fp16", "captions"]


@dataclass(frozen=True)
class About:
    """What its items have in common, and the captions."""

    format: int
    vae: str
    """SHA-256 of the autoencoder whose latents these are."""
    vocabulary: str
    """SHA-256 of the tokenizer's vocabulary."""
    latent: tuple[int, ...]
    store: Store
    limit: int
    """Bytes that the file may have."""
    policy: str
    seed: int
    tasks: tuple[str, ...]
    """All that its student has learned, in order; also those of which nothing is kept."""
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Contents:
    """A buffer's columns; those of a file with its size, the latents memory-mapped."""

    about: About
    columns: dict[str, NDArray[Any]]
    bytes: int = 0

    def __len__(self) -> int:
        return len(self.columns["pictures"])


def is_buffer(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read(folder: Path) -> Contents:
    """What is in it, from one opening. Raises BundleError for a file that is missing, damaged or of another format."""
    path = folder / FILE
    if not path.is_file():
        raise BundleError(f"{path}: no such file; a replay buffer is a folder that train.continual wrote")
    try:
        file = Opened.of(path)
        columns = {name: np.array(file.tensor(name)) for name in file.header if name != "latents"}
        columns["latents"] = file.tensor("latents")
        data = json.loads(file.metadata.get("about", ""))
    except (BundleError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path}: damaged, not a replay buffer ({error}); {AGAIN}") from error
    schema.check_format(data, FORMAT, path, if_older=AGAIN)
    about = schema.parse(About, data, path)
    _check(path, about, columns)
    return Contents(about, columns, file.data.size)


def _check(path: Path, about: About, columns: dict[str, NDArray[Any]]) -> None:
    if missing := sorted(set(COLUMNS) - set(columns)):
        raise BundleError(f"{path}: lacks {', '.join(missing)}; {AGAIN}")
    count = len(columns["pictures"])
    per_item = [name for name in COLUMNS if name != "caption_task"]
    if columns["latents"].shape[1:] != about.latent:
        raise BundleError(f"{path}: its latents are {columns['latents'].shape[1:]}, not {about.latent}; {AGAIN}")
    if any(len(columns[name]) != count for name in per_item) or len(columns["caption_task"]) != len(about.captions):
        raise BundleError(f"{path}: its columns are of different lengths; {AGAIN}")
    for name, limit in (
        ("caption", len(about.captions)),
        ("task", len(about.tasks)),
        ("caption_task", len(about.tasks)),
    ):
        if len(columns[name]) and not 0 <= columns[name].min() <= columns[name].max() < limit:
            raise BundleError(f"{path}: {name} points beyond the {limit} there are; {AGAIN}")


def hexadecimal(pictures: NDArray[np.uint8]) -> list[str]:
    """(N, 32) → N hex SHA-256."""
    return [row.tobytes().hex() for row in pictures]


def summarize(found: Contents) -> dict[str, Any]:
    """Kind, sizes, what of each task, and the pictures with their captions: the audit."""
    about, columns = found.about, found.columns
    kept = Counter(columns["task"].tolist())
    remembered = Counter(columns["caption_task"].tolist())
    return {
        "kind": "replay buffer",
        "items": len(found),
        "captions": len(about.captions),
        "bytes": found.bytes,
        **{name: getattr(about, name) for name in ("limit", "store", "policy", "seed", "vae", "vocabulary")},
        "latent": "×".join(map(str, about.latent)),
        "tasks": {name: f"{kept[i]} latents, {remembered[i]} captions" for i, name in enumerate(about.tasks)},
        "pictures": {
            digits: about.captions[number]
            for digits, number in zip(hexadecimal(columns["pictures"]), columns["caption"].tolist(), strict=True)
        },
    }
