"""What a run would take: counted as it happens, and said before it does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdc_edge.errors import UsageError
from kdc_edge.files import write_json
from kdc_edge.process import in_own_process, peak_mib
from tests.train.test_student import SD1, teacher
from train import diffusion, estimate
from train.distill import distill
from train.recipes import DistillConfig, LoopConfig, UNetConfig
from train.student import on_meta


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_without_memory_are_those_of_a_real_call(checkpointing: bool) -> None:
    real = teacher()
    counted = estimate.saved_bytes(on_meta(real.config), 3, checkpointing)
    # fused attention keeps its row sums there
    assert counted == pytest.approx(estimate.saved_bytes(real, 3, checkpointing), rel=0.03)


def test_checkpointing_keeps_less_and_computes_more() -> None:
    loop = LoopConfig(10, 4, 1e-3)
    plain, saving = (
        estimate.estimate(on_meta(teacher().config), on_meta(teacher().config), each, 1, 1e9)
        for each in (loop, replace(loop, checkpointing=True))
    )
    assert saving.activations_bytes < 0.5 * plain.activations_bytes
    assert saving.macs_per_step == pytest.approx(plain.macs_per_step * 5 / 4)
    assert plain.hours == pytest.approx(10 * plain.macs_per_step / (0.5e9 * 3600))


def test_two_processes_halve_hours_and_activations() -> None:
    loop = LoopConfig(10, 4, 1e-3)
    one, two = (estimate.estimate(on_meta(teacher().config), on_meta(teacher().config), loop, n, 1e9) for n in (1, 2))
    assert two.hours == pytest.approx(one.hours / 2) and two.activations_bytes < 0.6 * one.activations_bytes


def test_a_plan_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_json(tmp_path / "unet" / "config.json", SD1)
    config = DistillConfig(str(tmp_path), dry_run=True, output_dir=tmp_path / "out", loop=LoopConfig(50_000, 4, 5e-5))
    found = distill(config)
    assert found["student"]["parameters"] == 482_346_884
    assert found["estimated"]["images"] == 200_000
    assert found["estimated"]["macs_per_step"] / 4e9 == pytest.approx(401.6 + 3 * 255.4, rel=1e-3)
    assert found["estimated"]["weights_bytes"] == 4 * (859_520_964 + 5 * 482_346_884)
    assert "estimated: 50,000 steps" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="--learning-rate is 0"):
        distill(replace(config, loop=LoopConfig(10, 4, 0.0)))


def _peak(steps: int) -> float:
    """MiB of a process that trained the emoji student's U-Net."""
    network = diffusion.for_training(diffusion.build(UNetConfig(layers_per_block=1), 16, 8, 256), torch.device("cpu"))
    for _ in range(steps):
        inputs = torch.randn(64, 16, 8, 8), torch.zeros(64), torch.randn(64, 77, 256)
        network(*inputs).sample.square().mean().backward()
    return peak_mib()


@pytest.mark.slow
def test_the_estimate_is_most_of_what_a_process_takes() -> None:
    """The rest is the kernels' own: workspace, and gradients that live for one layer."""
    taken = in_own_process("training", _peak, 3) - in_own_process("nothing", _peak, 0)
    network = on_meta(diffusion.build(UNetConfig(layers_per_block=1), 16, 8, 256).config)
    network.set_attn_processor(diffusion.AttnProcessor())
    gradients = estimate.FLOAT * estimate.parameters(network)
    expected = (estimate.saved_bytes(network, 64) + gradients) / 2**20
    assert 0.5 * taken < expected < 1.1 * taken
