"""What keeps a student from forgetting: one pure function per term, over replayed draws, and the loss they make up.

    L = L_new + w_replay·L_replay + w_previous·L_previous + w_teacher·L_teacher

Replay of less weight is the strong baseline for diffusion (arXiv 2303.15342); without the previous student's answers, samples
of its own bring collapse (2311.14028), so only they are what pooled samples are held against.
"""

# B batch, C latent channels, h w latent grid

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdc_edge.errors import UsageError
from train.diffusion import Cache, Draw, layout
from train.sequences import RetentionWeights
from train.trainer import Loss, Part


@dataclass(frozen=True)
class Replayed:
    """What was said to replayed draws; the first `stored` rows are pictures, the others the previous student's samples."""

    stored: int
    target: Tensor  # (B, C, h, w)
    student: Tensor
    previous: Tensor | None = None
    teacher: Tensor | None = None


def replay(r: Replayed) -> Tensor:
    """Squared error against the stored pictures' own target: its mean over all replayed rows, the others counting as 0."""
    errors = F.mse_loss(r.student[: r.stored].float(), r.target[: r.stored].float(), reduction="sum")
    return errors / r.student.numel()


def previous(r: Replayed) -> Tensor:
    """Mean squared error against the frozen student of before this task."""
    return F.mse_loss(r.student.float(), r.previous.float())


def teacher(r: Replayed) -> Tensor:
    """Mean squared error against the teacher."""
    return F.mse_loss(r.student.float(), r.teacher.float())


TERMS: dict[str, Callable[[Replayed], Tensor]] = {"replay": replay, "previous": previous, "teacher": teacher}


@dataclass(frozen=True)
class Retention:
    """Where replayed draws come from, and who is asked about them."""

    stored: Cache | None
    pooled: Cache | None
    weights: RetentionWeights
    previous: nn.Module | None = None
    teacher: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.stored is None and self.pooled is None:
            raise UsageError("nothing to replay: no stored latents and no pool; give --replay-memory or --pool")

    def draws(self, size: int, part: Part) -> list[Draw]:
        """The part's rows of a batch of `size`, stored ones first; pictures and samples are drawn alike."""
        sources = [source for source in (self.stored, self.pooled) if source is not None]
        if len(sources) == 1:
            return [sources[0].draw(size, part)]
        counts = [len(source.weights) for source in sources]
        parts = round(size * counts[0] / sum(counts) / part.count)
        first = part.count * min(max(parts, 1), size // part.count - 1)
        return [source.draw(rows, part) for source, rows in zip(sources, (first, size - first), strict=True)]

    def terms(self, said: Tensor, draws: list[Draw]) -> dict[str, Tensor]:
        """Weighted, of the student's answers to all draws; a term of weight 0, or without anyone to ask, is left out."""
        noisy, timesteps, text, target = stacked(draws)
        others = {}
        with torch.no_grad():
            for name in ("previous", "teacher"):
                network = getattr(self, name)
                if network is not None and getattr(self.weights, f"{name}_weight"):
                    others[name] = network(noisy, timesteps, text).sample
        answers = Replayed(0 if self.stored is None else len(draws[0].target), target, said, **others)
        asked = [*(["replay"] if self.stored is not None else []), *others]
        weights = {name: getattr(self.weights, f"{name}_weight") for name in asked}
        return {name: weight * TERMS[name](answers) for name, weight in weights.items() if weight}


def stacked(draws: list[Draw]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As one batch: noisy latents, timesteps, text states, targets."""
    names = ("noisy", "timesteps", "text", "target")
    noisy, timesteps, text, target = (torch.cat([getattr(draw, name) for draw in draws]) for name in names)
    return noisy.contiguous(memory_format=layout(noisy.device)), timesteps, text, target


def continual_loss(new: Cache, retention: Retention | None, batch_size: int, replayed: int) -> Loss:
    """The task's loss on `batch_size - replayed` new rows, and retention's terms on the others: one call of the network."""
    fresh = batch_size if retention is None else batch_size - replayed

    def loss(network: nn.Module, part: Part) -> Mapping[str, Tensor]:
        draw = new.draw(fresh, part)
        old = [] if retention is None else retention.draws(replayed, part)
        noisy, timesteps, text, _ = stacked([draw, *old])
        said = network(noisy, timesteps, text).sample
        count = len(draw.target)
        terms = {"new": F.mse_loss(said[:count].float(), draw.target)}
        return terms if retention is None else terms | retention.terms(said[count:], old)

    return loss


def replayed_rows(batch_size: int, share: float, divided: int) -> int:
    """Of a batch that is taken in `divided` parts. Raises UsageError where new and replayed rows do not come out even."""
    replayed = round(batch_size * share)
    if replayed % divided or not 2 * divided <= replayed < batch_size:
        raise UsageError(
            f"--replay-share {share:g} of a batch of {batch_size} is {replayed} rows; it takes {2 * divided} or more, a "
            f"multiple of {divided}, and some must be left for the task"
        )
    return replayed
