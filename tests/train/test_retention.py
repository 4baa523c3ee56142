"""Terms against their closed forms, and what a batch is made of."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from kdc_edge.errors import UsageError
from tests import tiny
from train.captions import CaptionChoice
from train.diffusion import Cache, Latents, build_scheduler
from train.retention import TERMS, Replayed, Retention, continual_loss, replayed_rows
from train.sequences import RetentionWeights
from train.trainer import Part, generator_at


def part(index: int = 0, count: int = 1) -> Part:
    return Part(0, index, count, generator_at(0, 0), torch.device("cpu"))


def source(seed: int, count: int = 5) -> Cache:
    generator = torch.Generator().manual_seed(seed)
    return Cache(
        Latents(torch.randn(count, 16, 8, 8, generator=generator)),
        torch.randn(count + 1, 77, tiny.WIDTH, generator=generator),
        CaptionChoice([("a",)] * count),
        torch.arange(count) + 1,
        torch.ones(count),
        build_scheduler(),
    )


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny._unet(16, (16, 32))


def test_terms_in_closed_form() -> None:
    shape = (4, 1, 2, 2)
    answers = Replayed(1, torch.zeros(shape), torch.full(shape, 3.0), torch.full(shape, 1.0), torch.full(shape, 5.0))
    answers.target[1:] = 100.0  # of pooled samples there is no target
    assert {name: term(answers).item() for name, term in TERMS.items()} == {
        "replay": 9.0 / 4,
        "previous": 4.0,
        "teacher": 4.0,
    }
    half = replace(answers, student=answers.student.half(), previous=answers.previous.half())
    assert TERMS["previous"](half).dtype == torch.float32


def test_only_terms_with_weight_are_computed_and_the_student_alone_learns(network: UNet2DConditionModel) -> None:
    frozen = tiny._unet(16, (16, 32)).requires_grad_(False)
    weights = RetentionWeights(0.5, 2.0, 0.0)
    retention = Retention(source(1), source(2), weights, frozen)
    found = continual_loss(source(0), retention, 8, 4)(network, part())
    assert set(found) == {"new", "replay", "previous"}
    sum(found.values()).backward()
    assert network.conv_in.weight.grad is not None and frozen.conv_in.weight.grad is None
    halved = replace(retention, weights=RetentionWeights(0.25, 1.0, 0.0))
    with torch.no_grad():
        other = continual_loss(source(0), halved, 8, 4)(network, part())
    assert other["replay"].item() == pytest.approx(found["replay"].item() / 2)
    assert other["previous"].item() == pytest.approx(found["previous"].item() / 2)
    assert other["new"].item() == pytest.approx(found["new"].item())


def test_a_student_agrees_with_itself(network: UNet2DConditionModel) -> None:
    retention = Retention(source(1), None, RetentionWeights(0.0, 1.0, 1.0), network, network)
    with torch.no_grad():
        found = continual_loss(source(0), retention, 8, 4)(network, part())
    assert found["previous"].item() < 1e-10 and found["teacher"].item() < 1e-10 and "replay" not in found


def test_samples_alone_have_no_target_of_their_own(network: UNet2DConditionModel) -> None:
    retention = Retention(None, source(2), RetentionWeights(), network)
    with torch.no_grad():
        assert set(continual_loss(source(0), retention, 8, 4)(network, part())) == {"new", "previous"}
    with pytest.raises(UsageError, match="nothing to replay"):
        Retention(None, None, RetentionWeights())


def test_parts_of_a_batch_add_up_to_it(network: UNet2DConditionModel) -> None:
    retention = Retention(source(1), source(2), RetentionWeights(0.5, 1.0, 0.0), tiny._unet(16, (16, 32)))
    loss = continual_loss(source(0), retention, 8, 4)
    with torch.no_grad():
        whole, parts = loss(network, part()), [loss(network, part(index, 2)) for index in range(2)]
    for name, value in whole.items():
        assert value.item() == pytest.approx(sum(found[name].item() for found in parts) / 2, rel=1e-4)


def test_without_retention_it_is_the_task_alone(network: UNet2DConditionModel) -> None:
    with torch.no_grad():
        found = continual_loss(source(0), None, 8, 4)(network, part())
    assert set(found) == {"new"}


def test_pictures_and_samples_are_drawn_alike() -> None:
    def rows(stored: int, pooled: int, size: int = 32, parts: int = 1) -> list[int]:
        retention = Retention(source(1, stored), source(2, pooled), RetentionWeights())
        return [len(draw.target) for draw in retention.draws(size, part(0, parts))]

    assert rows(30, 10) == [24, 8] and rows(10, 30) == [8, 24]
    assert rows(1, 99) == [1, 31] and rows(99, 1) == [31, 1], "both are there"
    assert rows(30, 10, parts=4) == [6, 2] and rows(1, 99, parts=4) == [1, 7]


@pytest.mark.parametrize(("share", "divided"), [(0.0, 1), (1.0, 1), (0.5, 3), (0.125, 1), (0.5, 4)])
def test_shares_that_do_not_come_out_are_refused(share: float, divided: int) -> None:
    assert replayed_rows(64, 0.5, 1) == 32 and replayed_rows(64, 0.5, 4) == 32
    with pytest.raises(UsageError, match="--replay-share"):
        replayed_rows(8, share, divided)
