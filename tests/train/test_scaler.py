"""A scaled loss, as fp16 has it on a GPU, on a CPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import nn

from tests.train.test_loop import FLOAT32, regression, train
from train import loop
from train import state as state_module
from train.loop import launch
from train.recipes import LoopConfig
from train.trainer import Trainer, seeded


def scaled(config: LoopConfig, folder: Path) -> Accelerator:
    """fp16's GradScaler on a CPU, the arithmetic still float32."""
    accelerator = launch(config, folder)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10)
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    accelerator.autocast_handler = AutocastKwargs(enabled=False)
    return accelerator


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_scaled_loss_learns_the_same_and_resumes_with_its_scale(
    tmp_path: Path, optimizer: Literal["adamw", "muon"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Powers of two change no digit."""
    config = replace(FLOAT32, optimizer=optimizer)
    plain = train(tmp_path / "plain.safetensors", config)

    monkeypatch.setattr(loop, "launch", scaled)
    found = train(tmp_path / "scaled.safetensors", config)
    assert torch.equal(found.weight, plain.weight) and torch.equal(found.bias, plain.bias)
    _, about = state_module.load(tmp_path / "scaled.safetensors")
    assert json.loads(about["scaler"])["scale"] == 2.0**14
    key = loop.digest({"run": "a"}, config)
    again = Trainer(nn.Linear(4, 1), config, key, scaled(config, tmp_path))
    assert again.load(tmp_path / "scaled.safetensors") and again.accelerator.scaler.get_scale() == 2.0**14


def test_an_overflow_is_skipped_by_every_optimizer_and_halves_the_scale_once(tmp_path: Path) -> None:
    config = replace(FLOAT32, optimizer="muon", clip=0.0, ema=0.0)
    accelerator = scaled(config, tmp_path)
    network = seeded(0, lambda: nn.Linear(4, 1))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = Trainer(network, config, "", accelerator)
    trainer.advance(lambda network, part: {"bad": network.weight.sum() * torch.inf + network.bias.sum()})
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert accelerator.scaler.get_scale() == 2.0**9
    trainer.advance(regression)
    assert not any(torch.equal(before[name], value) for name, value in network.state_dict().items())
