"""The training loop survives a kill and goes on bit for bit."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdc_edge.errors import GateError, ResourceError, UsageError
from train import loop
from train.loop import fit, generator_at, seeded
from train.recipes import LoopConfig

CONFIG = LoopConfig(steps=40, batch_size=8, learning_rate=1e-2, warmup=5, ema=0.9)


def regression(step: int, generator: torch.Generator, network: nn.Module) -> dict[str, torch.Tensor]:
    x = torch.randn(8, 4, generator=generator)
    return {"mse": (network(x) - x.sum(1, keepdim=True)).square().mean()}


def train(state: Path, config: LoopConfig = CONFIG, key: str = "a") -> nn.Module:
    network = seeded(0, lambda: nn.Linear(4, 1))
    fit(network, lambda s, g: regression(s, g, network), config, state, key={"run": key}, label="test", save_every=0)
    return network


def test_it_learns_and_leaves_the_averaged_weights(tmp_path: Path) -> None:
    network = train(tmp_path / "state.safetensors", LoopConfig(300, 8, 5e-2, warmup=5, ema=0.9))
    assert torch.allclose(network.weight, torch.ones(1, 4), atol=0.05)
    assert not any(p.requires_grad for p in network.parameters())
    assert torch.equal(load_file(tmp_path / "state.safetensors")["ema/weight"], network.weight)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_continues_bit_for_bit(tmp_path: Path, optimizer: Literal["adamw", "muon"]) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    script = f"""
        import time, torch
        from pathlib import Path
        from tests.train import test_loop as t
        from train import loop
        def slowly(step, generator, network, plain=t.regression):
            time.sleep(0.02)
            return plain(step, generator, network)
        t.regression = slowly
        from torch import nn
        network = loop.seeded(0, lambda: nn.Linear(4, 1))
        config = t.replace(t.CONFIG, optimizer={optimizer!r})
        loop.fit(network, lambda s, g: t.regression(s, g, network), config, Path({str(tmp_path / "killed.safetensors")!r}),
                 key={{"run": "a"}}, label="test", save_every=0, log_every=1)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[2])
    state = tmp_path / "killed.safetensors"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed, whole = train(state, config), train(tmp_path / "whole.safetensors", config)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    assert not list(tmp_path.glob(".*.partial"))


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "state.safetensors")
    with pytest.raises(UsageError, match="other settings or data"):
        train(tmp_path / "state.safetensors", key="b")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(GateError, match="lower --learning-rate"):
        fit(
            network,
            lambda s, g: {"bad": network.weight.sum() * torch.nan},
            CONFIG,
            tmp_path / "s",
            key={},
            label="test",
        )
    assert not (tmp_path / "s").exists()


def test_the_randomness_of_a_step_is_its_own() -> None:
    a, b = (torch.randn(3, generator=generator_at(1, step)) for step in (5, 6))
    assert torch.equal(a, torch.randn(3, generator=generator_at(1, 5))) and not torch.equal(a, b)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.safetensors"
    saved: list[int] = []

    def save(tensors: object, path: Path, about: dict[str, str]) -> None:
        if len(saved) == 1:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(int(about["step"]))
        save_file(tensors, path, about)

    monkeypatch.setattr(loop, "save_file", save)
    with pytest.raises(ResourceError, match="disk is full"):
        train(state)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
    assert torch.equal(train(state).weight, train(tmp_path / "whole.safetensors").weight)
