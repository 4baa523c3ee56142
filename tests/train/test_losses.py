"""Distillation terms against closed forms."""

import math

import pytest
import torch

from train import diffusion, losses
from train.losses import TERMS, Answers, matched_blocks, recorded, weighted
from train.recipes import UNetConfig
from train.student import build_student
from train.student_spec import STUDENTS


def constant(target: float, student: float, teacher: float) -> Answers:
    shape = (2, 4, 3, 3)
    return Answers(
        torch.full(shape, target),
        torch.full(shape, student),
        torch.full(shape, teacher),
        [torch.full((2, 1), student), torch.full((5,), student)],
        [torch.full((2, 1), teacher), torch.full((5,), teacher)],
    )


def test_squared_errors() -> None:
    answers = constant(1.0, 3.0, 6.0)
    assert losses.task(answers) == 4 and losses.out(answers) == 9 and losses.feat(answers) == 18


def test_soft_is_the_divergence_of_two_distributions() -> None:
    student, teacher = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    teacher[0, 0] = 2 * math.log(3)  # softmax over channels at T = 2: 3/4, 1/4 against 1/2, 1/2
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert losses.soft(Answers(student, student, teacher)).item() == pytest.approx(expected, rel=1e-5)


def test_soft_grows_with_the_grid_and_is_blind_to_the_channel_mean() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    once = losses.soft(Answers(student, student, teacher))
    twice = losses.soft(Answers(student, student.repeat(1, 1, 2, 1), teacher.repeat(1, 1, 2, 1)))
    shifted = losses.soft(Answers(student, student + 5, teacher))
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-5)
    assert shifted.item() == pytest.approx(once.item(), rel=1e-4)


def test_normalised_soft_is_an_output_error_without_the_channel_mean() -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 4, 5, 5) / 20
    student = teacher + torch.randn(2, 4, 5, 5) / 20
    difference = student - teacher
    expected = (difference - difference.mean(1, keepdim=True)).square().mean()
    found = losses.soft_normalised(Answers(student, student, teacher))
    assert found.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("name", TERMS)
def test_each_term_vanishes_where_the_student_is_right(name: str) -> None:
    assert TERMS[name](constant(2.0, 2.0, 2.0)).item() == pytest.approx(0, abs=1e-6)


def test_weights_scale_and_zero_leaves_out() -> None:
    found = weighted(constant(1.0, 3.0, 6.0), {"task": 0.5, "out": 0, "feat": 2.0, "soft": 0, "soft_normalised": 0})
    assert {name: value.item() for name, value in found.items()} == {"task": 2, "feat": 36}


@pytest.mark.parametrize("name", STUDENTS)
def test_matched_blocks_answer_in_the_same_shapes(name: str) -> None:
    teacher = diffusion.build(UNetConfig((32, 64, 64)), 4, 8, 32)
    student = build_student(teacher, STUDENTS[name]())
    pairs = matched_blocks(student, teacher)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(9), torch.randn(1, 3, 32)
    with recorded([s for s, _ in pairs]) as ours, recorded([t for _, t in pairs]) as theirs:
        student(*inputs)
        teacher(*inputs)
    assert [a.shape for a in ours] == [b.shape for b in theirs] and len(ours) == len(pairs) >= 3
