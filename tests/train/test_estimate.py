"""What a run would take: counted as it happens, and said before it does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdc_edge.errors import UsageError
from kdc_edge.files import write_json
from kdc_edge.process import in_own_process, peak_mib
from tests.train.test_student import SD1, teacher
from train import diffusion, estimate
from train.distill import distill
from train.estimate import HALVES, Hardware
from train.recipes import DistillConfig, LoopConfig, UNetConfig
from train.student import from_config, on_meta, prune_config
from train.student_spec import STUDENTS

CPU = torch.device("cpu")
HERE = Hardware(1, CPU, "no", 1e9)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_without_memory_are_those_of_a_real_call(checkpointing: bool, precision: str) -> None:
    real = diffusion.for_training(teacher(), CPU)
    foreseen = estimate.foreseen_bytes(on_meta(real.config), 3, checkpointing, CPU, precision)
    assert foreseen == pytest.approx(estimate.saved_bytes(real, 3, checkpointing, precision), rel=0.01)


def test_checkpointing_keeps_less_and_computes_more() -> None:
    loop = LoopConfig(10, 4, 1e-3)
    plain, saving = (
        estimate.estimate(on_meta(teacher().config), on_meta(teacher().config), each, HERE)
        for each in (loop, replace(loop, checkpointing=True))
    )
    assert saving.activations_bytes < 0.5 * plain.activations_bytes
    assert saving.macs_per_step == pytest.approx(plain.macs_per_step * 5 / 4)
    assert plain.hours == pytest.approx(10 * plain.macs_per_step / (0.5e9 * 3600))


def test_two_processes_halve_hours_and_activations() -> None:
    loop = LoopConfig(10, 4, 1e-3)
    one, two = (
        estimate.estimate(on_meta(teacher().config), on_meta(teacher().config), loop, replace(HERE, processes=n))
        for n in (1, 2)
    )
    assert two.hours == pytest.approx(one.hours / 2) and two.activations_bytes < 0.6 * one.activations_bytes


def test_a_process_of_fsdp_has_the_whole_teacher_and_its_share_of_the_student() -> None:
    loop, network = LoopConfig(10, 4, 1e-3, optimizer="adamw"), on_meta(teacher().config)
    found = estimate.estimate(network, network, loop, replace(HERE, processes=4, shards=4))
    assert found.weights_bytes == estimate.FLOAT * estimate.parameters(network) * 9 // 4


def test_a_plan_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_json(tmp_path / "unet" / "config.json", SD1)
    config = DistillConfig(
        str(tmp_path), dry_run=True, output_dir=tmp_path / "out", loop=LoopConfig(50_000, 4, 5e-5, precision="no")
    )
    found = distill(config)
    assert found["student"]["parameters"] == 482_346_884
    assert found["estimated"]["images"] == 200_000
    assert found["estimated"]["macs_per_step"] / 4e9 == pytest.approx(401.6 + 3 * 255.4, rel=1e-3)
    assert found["estimated"]["weights_bytes"] == 4 * (859_520_964 + 5 * 482_346_884)
    assert "estimated: 50,000 steps" in capsys.readouterr().err and not (tmp_path / "out").exists()
    halved = distill(replace(config, loop=replace(config.loop, precision="fp16")))  # which trains on no CPU
    assert halved["estimated"]["activations_bytes"] < found["estimated"]["activations_bytes"]
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
    gradients = estimate.FLOAT * estimate.parameters(network)
    expected = (estimate.foreseen_bytes(network, 64, False, CPU, "no") + gradients) / 2**20
    assert 0.5 * taken < expected < 1.1 * taken


def _taken(config: dict[str, Any], precision: str) -> float:
    """MiB that a call of two latents takes at most before its backward pass, in this process."""
    network = from_config(config).train()
    for parameter in network.parameters():
        parameter.data.normal_(std=0.02)
    before, half = peak_mib(), HALVES[precision]
    with torch.autocast("cpu", half, enabled=half is not None):
        answer = network(torch.randn(2, 4, 64, 64), torch.zeros(2), torch.randn(2, 77, 768)).sample
    assert answer.requires_grad
    return peak_mib() - before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_at_stable_diffusions_size_it_is_what_a_call_holds(precision: str) -> None:
    """Of the 482M student at 64×64: attention is fused there, and keeps no matrix of 4,096 × 4,096."""
    config = dict(prune_config(SD1, STUDENTS["kdc-small"]()))
    taken = in_own_process("training", _taken, config, precision)
    foreseen = estimate.foreseen_bytes(on_meta(config), 2, False, CPU, precision) / 2**20
    print(f"{precision}: taken {taken:,.0f} MiB, foreseen {foreseen:,.0f} MiB")
    assert 0.8 * taken < foreseen < 1.05 * taken
