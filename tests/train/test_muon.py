"""Muon's update is orthogonal, and the same for a kernel as for its matrix."""

import pytest
import torch
from torch import nn

from train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (4, 50), (50, 4)])
def test_every_singular_value_comes_near_one_and_the_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, shape[1])
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    in_its_basis = u.T @ orthogonalise(matrix) @ vh.T
    values = in_its_basis.diagonal()
    assert 0.6 < values.min() <= values.max() < 1.3
    assert torch.allclose(in_its_basis, values.diag(), atol=1e-3)


def test_orthogonalising_nothing_gives_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_a_kernel_moves_as_its_matrix_in_any_memory_format() -> None:
    start = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(1))
    gradient = torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    moved = []
    for view in (
        lambda x: x.flatten(1).clone(),
        lambda x: x.clone(),
        lambda x: x.clone().to(memory_format=torch.channels_last),
    ):
        param = nn.Parameter(view(start))
        optimizer = Muon([param], lr=0.1, weight_decay=0.5)
        for _ in range(3):
            param.grad = view(gradient)
            optimizer.step()
        moved.append(param.detach().reshape(6, 45))
    assert torch.allclose(moved[0], moved[1], atol=1e-6) and torch.allclose(moved[0], moved[2], atol=1e-6)


def test_a_step_has_the_size_of_adamws() -> None:
    param = nn.Parameter(torch.zeros(32, 64))
    param.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(3))
    Muon([param], lr=1.0).step()
    assert param.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)
