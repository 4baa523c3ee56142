"""Tasks of a continual student: data sets, or some pictures of one, read from `tasks.toml`.

[[task]]
name = "animals"
data = "assets/emoji-64.tar"                  # what --data takes; the command's own --data if left out
where = { group = "Animals & Nature" }        # of any column: groups, classes (text), styles; a value or a list
"""

# N pictures of the data set

import hashlib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from kdc_edge import schema
from kdc_edge.errors import BundleError, UsageError, suggest
from train.cache import Table, cached
from train.captions import CaptionChoice
from train.diffusion import Cache, Latents
from train.recipes import PicturesConfig
from train.replay import Offer
from train.rows import Rows, Stored


@dataclass(frozen=True)
class Task:
    """A name, and which pictures it stands for."""

    name: str
    data: str | None = None
    where: dict[str, str | tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or any(c in "/\\\0" for c in self.name) or self.name.startswith("."):
            raise ValueError(f"'{self.name}' is no name: it becomes a folder's")


@dataclass(frozen=True)
class TaskFile:
    """`tasks.toml`."""

    task: tuple[Task, ...]


def read(path: Path) -> tuple[Task, ...]:
    """Raises UsageError for a file that is no list of distinct tasks."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        tasks = schema.parse(TaskFile, data, path).task
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; it lists the tasks as [[task]] tables") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, BundleError) as error:
        raise UsageError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    distinct(tasks)
    return tasks


def distinct(tasks: Sequence[Task], learned: Sequence[str] = ()) -> None:
    """UsageError for a task twice, by name or by pictures, for one that was learned before, and for none at all."""
    if not tasks:
        raise UsageError("no tasks; list them as [[task]] tables")
    seen: dict[str, str] = {}
    for task in tasks:
        what = f"{task.data}, {sorted(task.where.items())}"
        if task.name in learned:
            raise UsageError(f"'{task.name}' was learned before: {', '.join(learned)}; name another task")
        for name, other in seen.items():
            if task.name == name or what == other:
                raise UsageError(
                    f"the task '{task.name}' is there twice ('{name}'): the same name or the same pictures"
                )
        seen[task.name] = what


@dataclass(frozen=True)
class Lesson:
    """A task's draws, and what is known of its pictures."""

    task: Task
    source: Cache
    table: Table
    rows: Tensor
    """Numbers (n,) of its pictures."""

    @classmethod
    def of(
        cls, task: Task, pictures: PicturesConfig, pipeline: StableDiffusionPipeline, toned_share: float
    ) -> "Lesson":
        """Latents and text states from the cache or made now. Raises UsageError for a task without pictures."""
        config = pictures if task.data is None else replace(pictures, data=task.data)
        source, table = cached(config, pipeline, toned_share)
        mask = matching(table.rows, task)
        weights = source.weights * mask
        # a task counts as Kish's effective number of pictures: as all of them, where each is drawn alike
        weights = weights * (weights.sum() / weights.square().sum())
        return cls(task, replace(source, weights=weights), table, torch.nonzero(mask).flatten())

    def offer(self) -> Offer:
        """For a buffer: of a KL autoencoder the means."""
        return Offer(self.task.name, Part(self.source.latents.mean, self.rows), self.pictures, self.captions)

    @property
    def pictures(self) -> list[str]:
        """SHA-256 of each."""
        return [self.table.rows[i]["sha256"] for i in self.rows.tolist()]

    @property
    def digest(self) -> str:
        """SHA-256 over its pictures and their captions."""
        known = [(self.table.rows[i]["sha256"], *self.table.captions[i]) for i in self.rows.tolist()]
        return hashlib.sha256(schema.canonical(known)).hexdigest()

    @property
    def captions(self) -> list[str]:
        """The plain ones, of its pictures."""
        return [self.table.captions[i][0] for i in self.rows.tolist()]


def different(lessons: Sequence[Lesson], held: Mapping[str, Collection[str]], learned: Mapping[str, str]) -> None:
    """UsageError for the pictures of another lesson, or of a task learned before, under another name.

    `held` is what a buffer has of each task, all of it or not; `learned` has names by `Lesson.digest`.
    """
    seen = {frozenset(pictures): name for name, pictures in held.items()}
    for lesson in lessons:
        name, pictures = lesson.task.name, frozenset(lesson.pictures)
        other = learned.get(lesson.digest) or seen.setdefault(pictures, name)
        if other != name:
            raise UsageError(
                f"the task '{name}' is '{other}' in other words, the same {len(pictures)} pictures; leave one of them out"
            )


@dataclass(frozen=True)
class Part:
    """Some rows of others."""

    rows: Rows
    numbers: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.numbers), *self.rows.shape[1:])

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.rows[self.numbers[index]]


def matching(rows: Sequence[Mapping[str, str]], task: Task) -> Tensor:
    """Which pictures (N,) are the task's. Raises UsageError where a column or every picture is missing."""
    mask = torch.ones(len(rows), dtype=torch.bool)
    for column, wanted in task.where.items():
        values = (wanted,) if isinstance(wanted, str) else wanted
        seen = {row[column] for row in rows if column in row}
        if not seen:
            columns = sorted({name for row in rows for name in row})
            raise UsageError(
                f"task '{task.name}': no column '{column}' in the data; there are {', '.join(columns)}"
                f"{suggest(column, columns)}"
            )
        for value in values:
            if value not in seen:
                raise UsageError(f"task '{task.name}': no picture with {column} '{value}'{suggest(value, seen)}")
        mask &= torch.tensor([row.get(column) in values for row in rows])
    if not mask.any():
        raise UsageError(f"task '{task.name}': none of {len(rows)} pictures is {dict(task.where)}")
    return mask


def joined(lessons: Sequence[Lesson]) -> Cache:
    """The draws of several tasks at once, every picture alike."""
    sources = [lesson.source for lesson in lessons]
    starts = torch.tensor([0, *(len(source.text) for source in sources)]).cumsum(0)
    kinds = ("mean", "std", "flipped_mean", "flipped_std")
    latents = {kind: [getattr(source.latents, kind) for source in sources] for kind in kinds}
    return replace(
        sources[0],
        latents=Latents(**{kind: _stacked(rows) for kind, rows in latents.items() if rows[0] is not None}),
        text=_stacked([source.text for source in sources]),
        choice=CaptionChoice([group for lesson in lessons for group in lesson.table.captions]),
        numbers=torch.cat([s.numbers + start for s, start in zip(sources, starts[:-1], strict=True)]),
        weights=torch.cat([source.weights for source in sources]),
    )


def _stacked(rows: Sequence[Stored]) -> Stored:
    return Stored(tuple(part for each in rows for part in each.parts))
