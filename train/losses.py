"""Dual-layer distillation (KDC-Diff, arXiv 2505.06995): one pure function per term, and what they read.

L = w_task·L_task + w_out·L_out + w_feat·L_feat + w_soft·L_soft
"""

# B batch, C latent channels, h w latent grid

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from kdc_edge.errors import UsageError

TEMPERATURE = 2.0


@dataclass(frozen=True)
class Answers:
    """What both networks said to the same draw: predictions (B, C, h, w) and block outputs, in step with each other."""

    target: Tensor
    student: Tensor
    teacher: Tensor
    student_features: Sequence[Tensor] = ()
    teacher_features: Sequence[Tensor] = ()


def task(a: Answers) -> Tensor:
    """Mean squared error against the data's own target."""
    return F.mse_loss(a.student.float(), a.target.float())


def out(a: Answers) -> Tensor:
    """Mean squared error against the teacher's prediction."""
    return F.mse_loss(a.student.float(), a.teacher.float())


def feat(a: Answers) -> Tensor:
    """Sum over block outputs of the mean squared error, in fp32."""
    pairs = zip(a.student_features, a.teacher_features, strict=True)
    return torch.stack([F.mse_loss(s.float(), t.float()) for s, t in pairs]).sum()


def soft(a: Answers) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)) over latent channels; summed over the grid, averaged over the batch."""
    log_s = F.log_softmax(a.student.float() / TEMPERATURE, dim=1)
    log_t = F.log_softmax(a.teacher.float() / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(log_s, log_t, reduction="sum", log_target=True) / len(a.student)


def soft_normalised(a: Answers) -> Tensor:
    """L_soft over half the grid: where the distributions are flat, the mean squared error less its mean over channels."""
    return soft(a) * 2 / math.prod(a.student.shape[2:])


TERMS: dict[str, Callable[[Answers], Tensor]] = {
    "task": task,
    "out": out,
    "feat": feat,
    "soft": soft,
    "soft_normalised": soft_normalised,
}


def weighted(answers: Answers, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """Each term times its weight; terms of weight 0 are left out."""
    return {name: weights[name] * term(answers) for name, term in TERMS.items() if weights[name]}


def matched_blocks(student: UNet2DConditionModel, teacher: UNet2DConditionModel) -> list[tuple[nn.Module, nn.Module]]:
    """Blocks whose outputs correspond: down stages from the outside in, the mid block if both have one, up stages.

    Raises UsageError where the stages are of other widths.
    """
    widths, wanted = (list(network.config.block_out_channels) for network in (student, teacher))
    if widths != wanted[: len(widths)]:
        raise UsageError(
            f"the student's stages are {widths} wide, the teacher's {wanted}: their outputs cannot be matched"
        )
    dropped = len(teacher.up_blocks) - len(student.up_blocks)
    down = list(zip(student.down_blocks, teacher.down_blocks, strict=False))
    # without its innermost stage the last down block no longer halves the grid: its output, and the mid block's, have no
    # counterpart
    down = down[:-1] if dropped else down
    both = student.mid_block is not None and teacher.mid_block is not None and not dropped
    mid = [(student.mid_block, teacher.mid_block)] if both else []
    return [*down, *mid, *zip(student.up_blocks, list(teacher.up_blocks)[dropped:], strict=True)]


@contextmanager
def recorded(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of `blocks` in calling order, as long as the block lasts; cleared by the reader."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor | tuple) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
