"""Which items a full replay buffer keeps: each policy gives every item a priority, and the lowest ones stay.

Chance is a hash of the seed and the picture, so a choice is the same wherever and in whatever order it is made, and two
buffers merge into what one would have chosen from both: bottom-k sampling (Cohen & Kaplan 2007).
"""

# N items, D numbers of a latent, C latent channels, h w latent grid

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """What a policy may look at."""

    pictures: NDArray[np.uint8]  # (N, 32)
    caption: NDArray[np.int32]  # (N,)
    task: NDArray[np.int32]  # (N,)
    priority: Floats  # (N,), of those that were there before
    fresh: NDArray[np.bool_]  # (N,)
    latents: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    """Of fresh rows (n,): (n, C, h, w), herding's embedding."""
    room: int
    """About how many can stay."""


Policy = Callable[[Items, int], Floats]


def uniform(seed: object, names: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Floats:
    """N names in bytes → (N,) in [0, 1): chance as a function of these alone."""
    start = hashlib.blake2b(f"{seed}/".encode(), digest_size=8)
    values = np.empty(len(names), np.uint64)
    for i, name in enumerate(names):
        digest = start.copy()
        digest.update(bytes(name))
        values[i] = int.from_bytes(digest.digest(), "big")
    return values / 2.0**64


def reservoir(items: Items, seed: int) -> Floats:
    """Every picture ever seen stays with the same chance (Vitter 1985)."""
    return uniform(seed, items.pictures)


def random(items: Items, seed: int) -> Floats:
    """A fresh draw from what is there and what is new: the older a task, the less is left of it."""
    return uniform(f"{seed}/{items.task.max(initial=0)}", items.pictures)


def class_balanced(items: Items, seed: int) -> Floats:
    """As many of each caption as of any other, by chance within it (Chrysakis & Moens 2020)."""
    chance = uniform(seed, items.pictures)
    return _rank_within(items.caption, chance) + chance


def herding(items: Items, seed: int) -> Floats:
    """As many of each task, those first whose mean latent stays nearest the task's (iCaRL, arXiv 1611.07725)."""
    found = np.floor(items.priority)
    for task in np.unique(items.task[items.fresh]):
        rows = np.flatnonzero(items.fresh & (items.task == task))
        found[rows] = _herded(items.latents(rows).reshape(len(rows), -1), min(items.room, len(rows)))
    return found + uniform(seed, items.pictures) / 2  # which task yields first, where ranks are equal


POLICIES: dict[str, Policy] = {
    "reservoir": reservoir,
    "class-balanced": class_balanced,
    "herding": herding,
    "random": random,
}


def _rank_within(groups: NDArray[np.int32], values: Floats) -> Floats:
    """For each item, how many of its group have a smaller value."""
    order = np.lexsort((values, groups))
    sorted_groups = groups[order]
    first = np.searchsorted(sorted_groups, sorted_groups)
    ranks = np.empty(len(groups))
    ranks[order] = np.arange(len(groups)) - first
    return ranks


def _herded(embedding: NDArray[np.float32], count: int) -> Floats:
    """Places (N,) in greedy order; all after the first `count` share the next one."""
    x = embedding.astype(np.float64)
    squares, mean, total = (x**2).sum(1), x.mean(0), np.zeros(x.shape[1])
    places = np.full(len(x), float(count))
    for place in range(count):
        # the least |(place + 1)·mean - (total + x)|², less what is the same for all
        gap = squares - 2 * x @ ((place + 1) * mean - total)
        gap[places < count] = np.inf
        chosen = int(gap.argmin())
        places[chosen] = place
        total += x[chosen]
    return places
