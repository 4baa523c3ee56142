"""Block removal by measurement: what changes the teacher's output least goes first, until a budget is met.

Each round builds every student that lacks one block more than the last, with the teacher's weights, and takes the one whose
output error grows least for what it saves. A block goes from both sides of the U-Net, so that the skips still meet.
"""

# B batch, C latent channels, h w latent grid

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdc_edge.errors import UsageError
from train import diffusion
from train.cache import cached
from train.recipes import PicturesConfig
from train.student import Config, build_student, cost, pairs
from train.student_spec import StudentSpec
from train.trainer import Part, generator_at, seeded

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

BATCH = 8  # samples of one call


@dataclass(frozen=True)
class Candidate:
    """A student, its squared output error over the teacher's squared output, and the shares of costs it keeps."""

    removed: str
    spec: StudentSpec
    error: float
    left: Mapping[str, float]


def calibration(pipeline: "StableDiffusionPipeline", pictures: PicturesConfig, count: int, seed: int) -> diffusion.Draw:
    """`count` drawn training pictures, each noised to a timestep of its own."""
    source, _ = cached(pictures, pipeline, toned_share=0.2)
    return source.draw(count, Part(0, 0, 1, generator_at(seed, 0), pipeline.unet.device))


def prune(teacher: "UNet2DConditionModel", draw: diffusion.Draw, budgets: Mapping[str, float]) -> StudentSpec:
    """The first student of the greedy removal within `budgets`, shares left of `macs`, `parameters` or both.

    Raises UsageError where the smallest student is still too large.
    """
    wanted = _answer(teacher, draw)
    full = cost(teacher)

    def measured(removed: str, spec: StudentSpec) -> Candidate:
        network = seeded(0, lambda: build_student(teacher, spec))  # for layers that start anew
        error = (_answer(network, draw) - wanted).square().mean() / wanted.square().mean()
        found = cost(network)
        left = {name: getattr(found, name) / getattr(full, name) for name in budgets}
        return Candidate(removed, spec, error.item(), left)

    best = Candidate("nothing", StudentSpec(pairs(teacher.config)), 0.0, dict.fromkeys(budgets, 1.0))
    while any(best.left[name] > share for name, share in budgets.items()):
        tried = [measured(removed, spec) for removed, spec in smaller(best.spec, teacher.config)]
        if not tried:
            kept = ", ".join(f"{share:.1%} of the {name}" for name, share in best.left.items())
            raise UsageError(f"the smallest student keeps {kept}; ask for no less")
        best = min(tried, key=lambda one: _price(best, one))
        shares = ", ".join(f"{share:.1%} of the {name} left" for name, share in best.left.items())
        print(f"{best.removed} removed: output error {best.error:.2%}, {shares}", file=sys.stderr)
    return best.spec


def smaller(spec: StudentSpec, teacher: Config) -> Iterator[tuple[str, StudentSpec]]:
    """Every spec with one block less, and the block's name."""
    stages = len(pairs(teacher)) - spec.drop_innermost
    left = spec.pairs_per_stage
    assert not isinstance(left, int)
    for stage in range(stages):
        if left[stage] > 1:
            fewer = (*left[:stage], left[stage] - 1, *left[stage + 1 :])
            yield f"a pair of stage {stage}", replace(spec, pairs_per_stage=fewer)
    if spec.keep_mid and teacher["mid_block_type"] is not None:
        yield "the mid block", replace(spec, keep_mid=False)
    if not spec.drop_innermost and stages > 1:
        yield "the innermost stage", replace(spec, drop_innermost=True)


def _price(before: Candidate, after: Candidate) -> float:
    """Error added for the shares saved."""
    saved = sum(before.left[name] - after.left[name] for name in before.left)
    return (after.error - before.error) / saved if saved > 0 else float("inf")


@torch.no_grad()
def _answer(network: "UNet2DConditionModel", draw: diffusion.Draw) -> Tensor:
    """(B, C, h, w)"""
    parts = zip(draw.noisy.split(BATCH), draw.timesteps.split(BATCH), draw.text.split(BATCH), strict=True)
    return torch.cat([network.eval()(*part).sample.float() for part in parts])
