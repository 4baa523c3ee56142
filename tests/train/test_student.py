"""Block removal: published sizes, and a map of weights that a forward pass can vouch for."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from kdc_edge.errors import UsageError
from train import diffusion
from train.recipes import STUDENTS, StudentSpec, UNetConfig
from train.student import build_student, copy_map, count, prune_config

SD1 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
PUBLISHED = {"kdc-base": 579_384_964, "kdc-small": 482_346_884, "kdc-tiny": 323_384_964}


@pytest.mark.parametrize("name", STUDENTS)
def test_published_parameter_counts(name: str) -> None:
    assert count(SD1) == 859_520_964
    assert count(prune_config(SD1, STUDENTS[name]())) == PUBLISHED[name]


def teacher(**changes: object) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return diffusion.build(replace(UNetConfig((32, 64, 64), head_dim=32), **changes), 4, 8, 32)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_weight_comes_from_the_teacher(name: str) -> None:
    source = teacher()
    student = build_student(source, STUDENTS[name]())
    weights = source.state_dict()
    sources = copy_map(list(student.state_dict()), student.config, source.config)
    for own, theirs in sources.items():
        assert torch.equal(student.state_dict()[own], weights[theirs])
    assert sources["up_blocks.1.resnets.1.conv1.weight"].endswith("resnets.2.conv1.weight")
    out = student(torch.zeros(1, 4, 8, 8), torch.tensor(5), torch.zeros(1, 3, 32)).sample
    assert out.shape == (1, 4, 8, 8)


def test_removing_nothing_gives_the_teacher() -> None:
    source = teacher()
    student = build_student(source, StudentSpec(pairs_per_stage=2))
    inputs = torch.randn(1, 4, 8, 8), torch.tensor(400), torch.randn(1, 3, 32)
    assert torch.allclose(student(*inputs).sample, source(*inputs).sample, atol=1e-6)


def test_a_layer_that_loses_its_neighbour_starts_anew_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    student = build_student(teacher(channels=(32, 64, 96)), STUDENTS["kdc-tiny"]())
    assert "4 tensors fit no tensor of the teacher's and start anew, up_blocks.0.resnets.0.norm1.weight" in caplog.text
    out = student(torch.randn(1, 4, 8, 8), torch.tensor(5), torch.zeros(1, 3, 32)).sample
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("pairs", [0, 3])
def test_impossible_students_are_refused(pairs: int) -> None:
    with pytest.raises(UsageError, match="ask for 1 to 2"):
        prune_config(SD1, StudentSpec(pairs_per_stage=pairs))


def test_the_default_student_is_as_small_as_promised() -> None:
    from kdc_edge.torch_ref.macs import count as cost

    source = diffusion.build(UNetConfig(), 16, 8, 256)
    inputs = {
        "sample": torch.zeros(1, 16, 8, 8),
        "timestep": torch.tensor(0),
        "encoder_hidden_states": torch.zeros(1, 77, 256),
    }
    full, small = cost(source, inputs), cost(build_student(source, STUDENTS["kdc-small"]()), inputs)
    assert small.parameters <= 0.60 * full.parameters
    assert small.macs <= 0.65 * full.macs
