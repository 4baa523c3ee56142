"""The replay buffer in training: it takes in a task, keeps within its bytes what a policy prefers, and is drawn from.

What a file holds stays there: training reads rows as it draws them, and only taking in a task has all in memory.
Captions cost little and are kept longer than latents: what was taught and has no latent left can still be asked of the
student itself (`train.recall`). The file is replaced whole, so that a kill or a full disk leaves the one before.
"""

# N items, M captions, C latent channels, h w latent grid

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from torch import Tensor

from kdc_edge import schema
from kdc_edge.errors import UsageError
from kdc_edge.files import replacing
from kdc_edge.replay import FILE, FORMAT, About, Contents, hexadecimal, read
from train.policies import POLICIES, Items, uniform
from train.rows import Rows

DTYPES = {"int8": np.int8, "fp16": np.float16, "captions": np.int8}
HEADER = 1536  # bytes, at most, of names and shapes
RECORD = 4 + 32 + 4 + 4 + 8  # scale, picture, caption, task, priority
CAPTIONS = 0.25  # of the bytes, at most


@dataclass(frozen=True)
class Offer:
    """What a task brings: latents (n, C, h, w), read only where they are chosen; their pictures' SHA-256 and captions."""

    task: str
    latents: Rows
    pictures: Sequence[str]
    captions: Sequence[str]


@dataclass(frozen=True)
class Buffer:
    """Immutable; every change is a new one, and `save` puts it on disk."""

    contents: Contents

    @classmethod
    def empty(cls, about: About) -> "Buffer":
        """Raises UsageError for a limit that holds nothing."""
        columns = {
            "latents": np.zeros((0, *about.latent), DTYPES[about.store]),
            "scales": np.zeros(0, np.float32),
            "pictures": np.zeros((0, 32), np.uint8),
            "caption": np.zeros(0, np.int32),
            "task": np.zeros(0, np.int32),
            "priority": np.zeros(0, np.float64),
            "caption_task": np.zeros(0, np.int32),
        }
        _require_room(about)
        return cls(Contents(about, columns))

    @classmethod
    def open(cls, folder: Path) -> "Buffer":
        return cls(read(folder))

    @property
    def about(self) -> About:
        return self.contents.about

    def __len__(self) -> int:
        return len(self.contents)

    def digest(self) -> str:
        """SHA-256 over everything in it."""
        found = hashlib.sha256(schema.canonical(asdict(self.about)))
        for name in sorted(self.contents.columns):
            found.update(np.ascontiguousarray(self.contents.columns[name]).reshape(-1).view(np.uint8))  # no copy
        return found.hexdigest()

    @property
    def pictures(self) -> dict[str, list[str]]:
        """SHA-256 of what is kept of each task."""
        found: dict[str, list[str]] = {name: [] for name in self.about.tasks}
        columns = self.contents.columns
        for picture, task in zip(hexadecimal(columns["pictures"]), columns["task"].tolist(), strict=True):
            found[self.about.tasks[task]].append(picture)
        return found

    def require(self, vae: str, vocabulary: str) -> None:
        """UsageError where a student has another autoencoder or tokenizer."""
        for what, seen, wanted in (
            ("autoencoder", vae, self.about.vae),
            ("tokenizer", vocabulary, self.about.vocabulary),
        ):
            if seen != wanted:
                raise UsageError(
                    f"the buffer was built with the {what} {wanted[:12]}…, the student has {seen[:12]}…: its items would "
                    "mean something else; use the buffer's own student, or another --buffer"
                )

    def take(self, offer: Offer) -> "Buffer":
        """With a task more, within the limit. Pictures that are there already are left as they are."""
        about, columns, count = self.about, self.contents.columns, len(self)
        known = set(hexadecimal(columns["pictures"]))
        first = {picture: i for i, picture in reversed(list(enumerate(offer.pictures)))}
        offered = [] if about.store == "captions" else sorted(i for name, i in first.items() if name not in known)
        tasks = (*about.tasks, offer.task)
        captions = tuple(dict.fromkeys([*about.captions, *offer.captions]))
        place = {text: i for i, text in enumerate(captions)}
        number = len(tasks) - 1
        added = {
            "pictures": np.array([list(bytes.fromhex(offer.pictures[i])) for i in offered], np.uint8).reshape(
                len(offered), 32
            ),
            "caption": np.array([place[offer.captions[i]] for i in offered], np.int32),
            "task": np.full(len(offered), number, np.int32),
            "priority": np.zeros(len(offered)),
            "caption_task": np.full(len(captions) - len(about.captions), number, np.int32),
        }
        meta = {name: np.concatenate([columns[name], value]) for name, value in added.items()}
        about = replace(about, tasks=tasks, captions=captions)

        def latents(rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return offer.latents[torch.tensor([offered[i - count] for i in rows], dtype=torch.int64)].float().numpy()

        fresh = np.arange(count + len(offered)) >= count
        rows, kept, meta["priority"] = _choice(about, meta, fresh, latents)
        old = rows[rows < count]
        values, scales = encode(latents(rows[rows >= count]), about.store)
        stored = {"latents": np.concatenate([columns["latents"][old], values])}
        stored["scales"] = np.concatenate([columns["scales"][old], scales])
        chosen = _selected(about, meta, rows, kept).contents
        return Buffer(replace(chosen, columns=chosen.columns | stored))

    def remove(self, pictures: Collection[str] = (), captions: Collection[str] = ()) -> "Buffer":
        """Without these pictures (hex SHA-256, or its first eight digits or more) and captions, and what hangs on them.

        A caption goes with the last of its pictures. Raises UsageError for one that is not there.
        """
        columns, texts = self.contents.columns, self.about.captions
        names = hexadecimal(columns["pictures"])
        gone = np.zeros(len(self), bool)
        for wanted in pictures:
            hit = np.array([len(wanted) >= 8 and name.startswith(wanted.lower()) for name in names], bool)
            if not hit.any():
                raise UsageError(f"no picture {wanted} in the buffer; kdc-edge inspect lists those that are there")
            gone |= hit
        if absent := sorted(set(captions) - set(texts)):
            raise UsageError(f"no caption '{absent[0]}' in the buffer; it holds {len(texts)} others")
        gone |= np.array([texts[number] in captions for number in columns["caption"]], bool)
        orphans = set(columns["caption"][gone].tolist()) - set(columns["caption"][~gone].tolist())
        kept = [i for i, text in enumerate(texts) if i not in orphans and text not in captions]
        return _selected(self.about, columns, np.flatnonzero(~gone), np.array(kept, np.int64))

    def merge(self, other: "Buffer") -> "Buffer":
        """What is in either, by this one's limit and policy. Raises UsageError where their networks or stores differ."""
        mine, theirs = self.about, other.about
        self.require(theirs.vae, theirs.vocabulary)
        if (mine.latent, mine.store) != (theirs.latent, theirs.store):
            raise UsageError(f"one buffer holds {mine.store} {mine.latent}, the other {theirs.store} {theirs.latent}")
        tasks = tuple(dict.fromkeys([*mine.tasks, *theirs.tasks]))
        captions = tuple(dict.fromkeys([*mine.captions, *theirs.captions]))
        texts, names = ({name: i for i, name in enumerate(known)} for known in (captions, tasks))
        columns = dict(other.contents.columns)
        columns["caption"] = _renumbered(columns["caption"], theirs.captions, texts)
        columns["task"] = _renumbered(columns["task"], theirs.tasks, names)
        columns["caption_task"] = _renumbered(columns["caption_task"], theirs.tasks, names)
        known = set(hexadecimal(self.contents.columns["pictures"]))
        rows = [i for i, name in enumerate(hexadecimal(columns["pictures"])) if name not in known]
        new = [i for i, text in enumerate(theirs.captions) if text not in set(mine.captions)]
        keep = {name: new if name == "caption_task" else rows for name in columns}
        joined = {n: np.concatenate([self.contents.columns[n], columns[n][keep[n]]]) for n in columns}
        return _trimmed(replace(mine, tasks=tasks, captions=captions), joined)

    def under(self, limit: int) -> "Buffer":
        """What stays of it in other bytes. Raises UsageError for a limit that holds nothing."""
        about = replace(self.about, limit=limit)
        _require_room(about)
        return _trimmed(about, self.contents.columns)

    def save(self, folder: Path) -> "Buffer":
        """Atomic; on a full disk ResourceError, and the old file stays."""
        folder.mkdir(parents=True, exist_ok=True)
        about = schema.canonical(asdict(self.about)).decode()
        with replacing(folder / FILE) as temporary:
            columns = {name: np.ascontiguousarray(value) for name, value in self.contents.columns.items()}
            save_file(columns, temporary, {"about": about})
        return Buffer.open(folder)


def new_about(vae: str, vocabulary: str, latent: Sequence[int], learned: Sequence[str], **settings: object) -> About:
    """Of an empty buffer for a student that has already `learned` some tasks; `settings` as in `About`."""
    return About(FORMAT, vae, vocabulary, tuple(latent), tasks=tuple(learned), captions=(), **settings)


def encode(latents: NDArray[np.float32], store: str) -> tuple[NDArray, NDArray[np.float32]]:
    """(N, C, h, w) → stored values and scales (N,): value times scale is the latent."""
    if store == "fp16":
        return latents.astype(np.float16), np.ones(len(latents), np.float32)
    peak = np.abs(latents).max((1, 2, 3), initial=1e-12)
    scales = (peak / 127).astype(np.float32)
    return np.round(latents / scales[:, None, None, None]).astype(np.int8), scales


@dataclass(frozen=True)
class Scaled:
    """Rows of stored latents, as float32."""

    values: NDArray
    scales: NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def __getitem__(self, index: Tensor) -> Tensor:
        rows = index.numpy()
        return torch.from_numpy(self.values[rows].astype(np.float32) * self.scales[rows, None, None, None])


def item_bytes(about: About) -> int:
    return int(np.prod(about.latent)) * np.dtype(DTYPES[about.store]).itemsize + RECORD


def caption_bytes(text: str) -> int:
    """In a JSON string inside the header, with the number of its task."""
    return len(schema.canonical(schema.canonical(text).decode())) + 1 + 4


def fixed_bytes(about: About) -> int:
    return HEADER + sum(caption_bytes(name) for name in about.tasks)


def _renumbered(column: NDArray, names: Sequence[str], places: dict[str, int]) -> NDArray:
    return np.array([places[name] for name in names], np.int32)[column] if len(column) else column


def _require_room(about: About) -> None:
    least = fixed_bytes(about) + (64 if about.store == "captions" else item_bytes(about) + 64)
    if about.limit < least:
        raise UsageError(f"--replay-memory is {about.limit:,} bytes, with one item it takes {least:,}; give more")


def _trimmed(about: About, columns: dict[str, NDArray]) -> Buffer:
    """What fits, of items that were all chosen before."""
    none = np.zeros(len(columns["task"]), bool)
    rows, kept, priority = _choice(about, columns, none, lambda rows: np.zeros((0, *about.latent), np.float32))
    return _selected(about, columns | {"priority": priority}, rows, kept)


def _choice(
    about: About,
    meta: dict[str, NDArray],
    fresh: NDArray[np.bool_],
    latents: Callable[[NDArray[np.int64]], NDArray[np.float32]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Rows and captions that stay, and all priorities.

    Items by priority, with their captions, as long as either fits; then other captions by chance, up to their share.
    """
    room = about.limit - fixed_bytes(about)
    costs = np.array([caption_bytes(text) for text in about.captions], np.int64)
    share = min(room if about.store == "captions" else int(CAPTIONS * room), int(costs.sum()))
    places = (room - share) // item_bytes(about)
    items = Items(*(meta[n] for n in ("pictures", "caption", "task", "priority")), fresh, latents, places)
    priority = POLICIES[about.policy](items, about.seed)
    order = np.argsort(priority, kind="stable")
    captions, first = np.unique(meta["caption"][order], return_index=True)
    new = np.zeros(len(order), np.int64)
    new[first] = costs[captions]  # of captions that come in with an item
    rows = order[:places][np.cumsum(new[:places]) <= share]
    own = np.unique(meta["caption"][rows])
    names = [np.frombuffer(text.encode(), np.uint8) for text in about.captions]
    others = np.argsort(uniform(about.seed, names), kind="stable")
    others = others[~np.isin(others, own)]
    left = share - costs[own].sum()
    kept = np.concatenate([own, others[np.cumsum(costs[others]) <= left]]).astype(np.int64)
    return np.sort(rows), np.sort(kept), priority


def _selected(
    about: About, columns: dict[str, NDArray], rows: NDArray[np.int64], captions: NDArray[np.int64]
) -> Buffer:
    """Those items and captions alone, renumbered."""
    place = np.full(len(about.captions), -1, np.int32)
    place[captions] = np.arange(len(captions))
    found = {name: value[rows] for name, value in columns.items() if name != "caption_task"}
    found["caption"] = place[found["caption"]]
    found["caption_task"] = columns["caption_task"][captions]
    return Buffer(Contents(replace(about, captions=tuple(about.captions[i] for i in captions)), found))
