"""Block removal: published sizes, and a map of weights that a forward pass can vouch for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.files import write_json
from train import diffusion
from train.folders import load_pipeline, save_pipeline
from train.pruning import prune
from train.recipes import PicturesConfig, StudentConfig, UNetConfig
from train.student import build_student, copy_map, cost, describe, pairs, prune_config, student
from train.student_spec import STUDENTS, StudentSpec

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
PUBLISHED = {  # parameters; GMACs of one call
    "kdc-base": (579_384_964, 261.5),
    "kdc-small": (482_346_884, 255.4),
    "kdc-tiny": (323_384_964, 242.8),
    "kdc-3stage": (420_423_044, 266.6),
}


@pytest.fixture
def sd1(tmp_path: Path) -> Path:
    """A teacher's folder of which only the U-Net's config is there."""
    write_json(tmp_path / "sd1" / "unet" / "config.json", SD1)
    return tmp_path / "sd1"


@pytest.mark.parametrize("name", STUDENTS)
def test_published_sizes(name: str, sd1: Path) -> None:
    found = student(StudentConfig(str(sd1), student=name, dry_run=True))
    assert found["teacher"]["parameters"] == 859_520_964
    assert found["student"]["parameters"] == PUBLISHED[name][0]
    assert found["student"]["macs"] / 1e9 == pytest.approx(PUBLISHED[name][1], abs=0.1)
    assert found["anew"] == []


def test_stable_diffusion_2_keeps_a_number_of_heads_for_each_stage(sd1: Path) -> None:
    heads = {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
    write_json(sd1 / "unet" / "config.json", SD1 | heads)
    found = student(StudentConfig(str(sd1), student="kdc-3stage", dry_run=True))
    assert found["teacher"]["parameters"] == 865_910_724
    assert found["removed"][-2:] == ["down_blocks.3", "up_blocks.0"]
    assert found["anew"] == []


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


def test_stages_may_keep_pairs_of_their_own() -> None:
    source = teacher(layers_per_block=3)
    student = build_student(source, StudentSpec(pairs_per_stage=(2, 3, 1)))
    assert pairs(student.config) == (2, 3, 1)
    weights, own = source.state_dict(), student.state_dict()
    sources = copy_map(list(own), student.config, source.config)
    assert all(torch.equal(own[name], weights[origin]) for name, origin in sources.items())
    assert sources["up_blocks.2.resnets.2.conv1.weight"].startswith("up_blocks.2.resnets.3.")
    assert torch.isfinite(student(torch.randn(1, 4, 8, 8), torch.tensor(5), torch.zeros(1, 3, 32)).sample).all()


def test_a_layer_that_loses_its_neighbour_starts_anew() -> None:
    source = teacher(channels=(32, 64, 96))
    student = build_student(source, STUDENTS["kdc-tiny"]())
    assert describe(source.config, STUDENTS["kdc-tiny"]())["anew"][0] == "up_blocks.0.resnets.0.norm1.weight"
    out = student(torch.randn(1, 4, 8, 8), torch.tensor(5), torch.zeros(1, 3, 32)).sample
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [(0, "ask for 1 to 2"), (3, "ask for 1 to 2"), ((1, 1), "4 stages, pairs were given for 2")],
)
def test_impossible_students_are_refused(wanted: int | tuple[int, ...], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        prune_config(SD1, StudentSpec(pairs_per_stage=wanted))


def test_the_default_student_is_as_small_as_promised() -> None:
    found = describe(diffusion.build(UNetConfig(), 16, 8, 256).config, STUDENTS["kdc-small"]())
    assert found["student"]["parameters"] <= 0.60 * found["teacher"]["parameters"]
    assert found["student"]["macs"] <= 0.65 * found["teacher"]["macs"]


@pytest.fixture
def draw() -> diffusion.Draw:
    torch.manual_seed(1)
    latents = torch.randn(12, 4, 8, 8)
    return diffusion.Draw(latents, torch.randint(1000, (12,)), torch.randn(12, 3, 32), latents)


def test_what_changes_nothing_is_removed_first(draw: diffusion.Draw, capsys: pytest.CaptureFixture) -> None:
    source = teacher()
    with torch.no_grad():
        for resnet in source.mid_block.resnets:
            resnet.conv2.weight.zero_()
            resnet.conv2.bias.zero_()
        source.mid_block.attentions[0].proj_out.weight.zero_()
        source.mid_block.attentions[0].proj_out.bias.zero_()
    assert prune(source, draw, {"macs": 0.99}) == StudentSpec((2, 2, 2), keep_mid=False)
    assert "the mid block removed: output error 0.00%" in capsys.readouterr().err


@pytest.mark.parametrize("budgets", [{"macs": 0.6}, {"parameters": 0.5}, {"macs": 0.6, "parameters": 0.5}])
def test_budgets_are_kept(draw: diffusion.Draw, budgets: dict[str, float]) -> None:
    source = teacher()
    found, full = cost(build_student(source, prune(source, draw, budgets))), cost(source)
    assert all(getattr(found, name) <= share * getattr(full, name) for name, share in budgets.items())


def test_a_budget_below_the_smallest_student(draw: diffusion.Draw) -> None:
    with pytest.raises(UsageError, match=r"the smallest student keeps .*% of the macs"):
        prune(teacher(), draw, {"macs": 0.01})


def test_a_pruned_teacher_is_a_checkpoint(tiny_checkpoint: Path, few: Path, tmp_path: Path) -> None:
    config = StudentConfig(
        str(tiny_checkpoint),
        pictures=PicturesConfig(str(few), cache_dir=tmp_path / "cache"),
        budget_parameters=0.9,
        output_dir=tmp_path / "out",
    )
    found = student(config)
    saved = Checkpoint.open(tmp_path / "out")
    assert saved.id == found["checkpoint"] and saved.info.teacher == Checkpoint.open(tiny_checkpoint).id
    unet = load_pipeline(str(tmp_path / "out")).unet
    assert sum(p.numel() for p in unet.parameters()) == found["student"]["parameters"]
    with pytest.raises(UsageError, match="exists"):
        student(config)


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"budget_macs": 1.5}, UsageError, "above 0 and below 1"),
        ({"calibration": 0}, UsageError, "at least one picture"),
        ({"teacher": "nobody/nothing"}, UsageError, "pin it with --revision"),
        ({"teacher": "nobody/nothing", "revision": "main"}, UsageError, "pin it with --revision COMMIT .40 hex"),
        ({"teacher": "no/such/folder", "revision": "0" * 40}, UsageError, "is no hub id"),
        ({"teacher": "no/such/folder"}, BundleError, "no such file"),
    ],
)
def test_bad_input(changes: dict, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        student(replace(StudentConfig(dry_run=True), **changes))


def test_a_config_that_is_no_unet(sd1: Path) -> None:
    write_json(sd1 / "unet" / "config.json", SD1 | {"up_block_types": ["UpBlock2D"]})
    with pytest.raises(BundleError, match="describes no UNet2DConditionModel"):
        student(StudentConfig(str(sd1), dry_run=True))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sample_size": [64, 96]}, r"its sample_size is \[64, 96\]; one number is wanted"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
            "reads more than text",
        ),
    ],
)
def test_a_unet_of_another_kind(sd1: Path, changes: dict, complaint: str) -> None:
    write_json(sd1 / "unet" / "config.json", SD1 | changes)
    with pytest.raises(UsageError, match=complaint):
        student(StudentConfig(str(sd1), dry_run=True))


def test_nothing_is_copied_to_a_random_start(capsys: pytest.CaptureFixture) -> None:
    found = describe(teacher().config, STUDENTS["kdc-small"](), random=True)
    assert found["copied"] == 0 and "copied 0 of " in capsys.readouterr().err


def test_a_checkpoint_does_not_depend_on_how_its_tokenizer_was_called(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pipeline, info = load_pipeline(str(tiny_checkpoint)), CheckpointInfo(1, "test", {})
    fresh = save_pipeline(tmp_path / "fresh", pipeline, info)
    pipeline.tokenizer("red apple", padding="max_length", truncation=True)
    assert save_pipeline(tmp_path / "used", pipeline, info).id == fresh.id
