"""The training loop survives a kill and goes on bit for bit."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdc_edge.errors import BundleError, GateError, MissingBackend, ResourceError, UsageError
from kdc_edge.files import locked
from train import loop
from train import state as state_module
from train.loop import fit
from train.recipes import LoopConfig
from train.trainer import Part, Trainer, generator_at, seeded, share_of_rate

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]  # gloo on a CPU
CONFIG = LoopConfig(steps=40, batch_size=8, learning_rate=1e-2, warmup=5, ema=0.9)
FLOAT32 = replace(CONFIG, precision="no")  # in bfloat16 a batch is not the sum of its parts


def regression(network: nn.Module, part: Part) -> dict[str, torch.Tensor]:
    x = torch.randn(8, 4, generator=part.generator)[part.rows(8)]
    return {"mse": (network(x) - x.sum(1, keepdim=True)).square().mean()}


def train(state: Path, config: LoopConfig = CONFIG, key: str = "a", log_every: int = 25) -> nn.Module:
    network = seeded(0, lambda: nn.Linear(4, 1))
    fit(network, regression, config, state, key={"run": key}, label="test", save_every=0, log_every=log_every)
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
        def slowly(network, part, plain=t.regression):
            time.sleep(0.02)
            return plain(network, part)
        t.regression = slowly
        from torch import nn
        network = t.seeded(0, lambda: nn.Linear(4, 1))
        config = t.replace(t.CONFIG, optimizer={optimizer!r})
        loop.fit(network, t.regression, config, Path({str(tmp_path / "killed.safetensors")!r}),
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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_go_on_in_the_memory_format_of_their_weights(
    tmp_path: Path, optimizer: Literal["adamw", "muon"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution with channels last, stopped half way."""
    config = replace(CONFIG, optimizer=optimizer)

    def smooth(network: nn.Module, part: Part) -> dict[str, torch.Tensor]:
        x = torch.randn(8, 3, 5, 5, generator=part.generator)[part.rows(8)]
        return {"mse": (network(x) - x.mean((2, 3), keepdim=True).mean(1, keepdim=True)).square().mean()}

    def convolution(name: str) -> torch.Tensor:
        network = seeded(0, lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
        fit(network, smooth, config, tmp_path / name, key={}, label="test", save_every=0, log_every=1)
        return network.weight

    advance = Trainer.advance

    def stopped(self: Trainer, loss: object) -> dict[str, torch.Tensor]:
        if self.step == 20:
            raise KeyboardInterrupt
        return advance(self, loss)

    monkeypatch.setattr(Trainer, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        convolution("stopped.safetensors")
    monkeypatch.undo()
    assert torch.equal(convolution("stopped.safetensors"), convolution("whole.safetensors"))


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "state.safetensors")
    with pytest.raises(UsageError, match="other settings or data"):
        train(tmp_path / "state.safetensors", key="b")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)
    with pytest.raises(GateError, match="lower --learning-rate"):
        fit(
            network,
            lambda network, part: {"bad": network.weight.sum() * torch.nan},
            CONFIG,
            tmp_path / "s",
            key={},
            label="test",
        )
    assert not (tmp_path / "s").exists()


def test_the_randomness_of_a_step_is_its_own() -> None:
    a, b = (torch.randn(3, generator=generator_at(1, step)) for step in (5, 6))
    assert torch.equal(a, torch.randn(3, generator=generator_at(1, 5))) and not torch.equal(a, b)


def test_the_learning_rate_rises_then_falls_or_stays() -> None:
    config = LoopConfig(100, 8, 1.0, warmup=10)
    assert [share_of_rate(step, config) for step in (0, 9, 10, 55, 100)] == pytest.approx([0.1, 1, 1, 0.5, 0])
    assert share_of_rate(100, replace(config, schedule="constant")) == 1


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state.safetensors"
    saved: list[int] = []

    def save(tensors: object, path: Path, about: dict[str, str]) -> None:
        if len(saved) == 1:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved.append(int(about["step"]))
        save_file(tensors, path, about)

    monkeypatch.setattr(state_module, "save_file", save)
    with pytest.raises(ResourceError, match="disk is full"):
        train(state)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]  # the first, not yet one before it
    assert torch.equal(train(state).weight, train(tmp_path / "whole.safetensors").weight)


def test_a_loss_that_is_not_finite_goes_back_to_the_last_state_with_other_draws(tmp_path: Path, capsys) -> None:
    network, met = seeded(0, lambda: nn.Linear(4, 1)), []

    def risky(network: nn.Module, part: Part) -> dict[str, torch.Tensor]:
        terms = regression(network, part)
        met.append(part.step == 20 and not any(met))
        return {"mse": terms["mse"] * (torch.nan if met[-1] else 1)}

    history = fit(network, risky, CONFIG, tmp_path / "s.safetensors", key={}, label="test", save_every=0, log_every=5)
    assert sum(met) == 1 and history.steps == list(range(5, 41, 5))
    assert torch.isfinite(network.weight).all()
    assert "at step 25 not finite" in (said := capsys.readouterr().err) and "back to step 20" in said


def test_a_run_that_keeps_failing_gives_up_and_keeps_its_state(tmp_path: Path) -> None:
    def cursed(network: nn.Module, part: Part) -> dict[str, torch.Tensor]:
        return {"mse": regression(network, part)["mse"] * (torch.nan if part.step >= 20 else 1)}

    path = tmp_path / "s.safetensors"
    with pytest.raises(GateError, match="lower --learning-rate"):
        fit(nn.Linear(4, 1), cursed, CONFIG, path, key={}, label="test", save_every=0, log_every=5)
    _, about = state_module.load(path)
    assert about["step"] == "20"


def test_a_damaged_state_costs_the_steps_since_the_one_before(tmp_path: Path, capsys) -> None:
    path = tmp_path / "state.safetensors"
    whole = train(path, log_every=10)
    path.write_bytes(path.read_bytes()[:-50])
    assert torch.equal(train(path, log_every=10).weight, whole.weight)
    assert "damaged" in capsys.readouterr().err
    for file in (path, state_module.before(path)):
        file.write_bytes(b"nothing")
    with pytest.raises(BundleError, match="no other state is left"):
        train(path)


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UsageError, match="in use by another process"):
        train(tmp_path / "state.safetensors")


def test_room_for_the_checkpoints_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(ResourceError, match="make room"):
        train(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"learning_rate": 0.0}, "--learning-rate is 0.0"),
        ({"steps": 0}, "--steps is 0"),
        ({"learning_rate": math.nan}, "--learning-rate is nan; it must be finite"),
        ({"weight_decay": -1.0}, "--weight-decay is -1.0; it must be 0 or more"),
        ({"clip": -1.0}, "--clip is -1.0; it must be 0 or more"),
        ({"ema": 1.5}, "--ema is 1.5; it must be 0 or more and below 1"),
        ({"ema": -2.0}, "--ema is -2.0"),
        ({"accumulate": 3}, "does not divide into 3 parts"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, changes: dict, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        train(tmp_path / "state.safetensors", replace(CONFIG, **changes))


def test_accumulated_calls_learn_what_one_call_does(tmp_path: Path) -> None:
    one, four = (train(tmp_path / f"{n}.safetensors", replace(FLOAT32, accumulate=n)) for n in (1, 4))
    assert torch.allclose(one.weight, four.weight, atol=1e-6)


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """`accelerate launch` with gloo; the loss of every interval to 1e-4, and the weights."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom tests.train import test_loop as t\n"
        f"t.train(Path({str(tmp_path / 'two.safetensors')!r}), t.FLOAT32, log_every=10)\n"
    )
    command = [*LAUNCH, str(script)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train(tmp_path / "one.safetensors", FLOAT32, log_every=10)
    (two, about), (one, expected) = (state_module.load(tmp_path / f"{n}.safetensors") for n in ("two", "one"))
    losses, wanted = (json.loads(found["history"])["terms"]["mse"] for found in (about, expected))
    assert losses == pytest.approx(wanted, abs=1e-4)
    assert all(torch.allclose(two[name], one[name], atol=1e-5) for name in one)


def test_two_processes_train_one_network_after_the_other(tmp_path: Path) -> None:
    """The processes' group outlives a run, as training a teacher or an ablation wants."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom tests.train import test_loop as t\n"
        f"for name in ('first', 'second'):\n    t.train(Path({str(tmp_path)!r}) / f'{{name}}.safetensors')\n"
        "t.loop.is_main() and print(*[t.loop.processes().num_processes] * 2)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*LAUNCH, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_a_run_would_refuse_is_known_before_its_data(tmp_path: Path) -> None:
    state, key = tmp_path / "state.safetensors", {"run": "a"}
    train(state)
    loop.ready(CONFIG, state, key)
    loop.ready(CONFIG, tmp_path / "new.safetensors", {"run": "b"})
    with pytest.raises(UsageError, match="other settings or data"):
        loop.ready(CONFIG, state, {"run": "b"})
    with pytest.raises(UsageError, match="other settings or data"):
        loop.ready(replace(CONFIG, steps=41), state, key)
    with locked(tmp_path), pytest.raises(UsageError, match="in use by another process"):
        loop.ready(CONFIG, state, key)
    with pytest.raises(UsageError, match="--precision fp16"):
        loop.ready(replace(CONFIG, precision="fp16"), state, key)
    with pytest.raises(UsageError, match="does not divide"):
        loop.ready(replace(CONFIG, accumulate=3), state, key)


def test_a_resumed_run_asks_for_no_room_that_its_own_files_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.safetensors"
    train(path, log_every=10)
    sizes = sum(file.stat().st_size for file in (path, state_module.before(path)))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert sizes > 3 * 20 * 4  # headers and history come on top of so small a network
    train(path, log_every=10)
    with pytest.raises(ResourceError, match="make room"):
        train(tmp_path / "other" / "state.safetensors")


def test_pictures_are_drawn_with_the_averaged_weights(tmp_path: Path) -> None:
    seen = {}
    network = seeded(0, lambda: nn.Linear(4, 1))
    config = replace(CONFIG, sample_every=20)
    keep = lambda module, step: seen.update({step: module.weight.detach().clone()})  # noqa: E731
    path = tmp_path / "s.safetensors"
    fit(network, regression, config, path, key={}, label="t", log_every=5, sample=keep)
    assert sorted(seen) == [20, 40] and torch.equal(seen[40], network.weight)
    plain = train(tmp_path / "plain.safetensors", log_every=5)
    assert torch.equal(network.weight, plain.weight)


def test_tensorboard_gets_every_term(tmp_path: Path) -> None:
    train(tmp_path / "state.safetensors", replace(CONFIG, tensorboard=True), log_every=10)
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    assert b"mse" in events.read_bytes() and b"images_per_s" in events.read_bytes()


def test_tensorboard_is_asked_for_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "is_tensorboard_available", lambda: False)
    with pytest.raises(MissingBackend, match=r"pip install 'kdc-edge\[train\]'"):
        train(tmp_path / "state.safetensors", replace(CONFIG, tensorboard=True))
