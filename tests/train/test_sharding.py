"""Weights divided among processes are trained as whole ones are."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from kdc_edge.errors import UsageError
from tests.train.test_loop import FLOAT32, LAUNCH, ROOT
from train import state as state_module
from train.loop import fit, is_main, processes
from train.sharding import outline, reunite, settle
from train.trainer import Part, Trainer, seeded

DIVIDED = [*LAUNCH, "-m", "--", "tests.train.divided"]
CONFIG = replace(FLOAT32, accumulate=2, clip=0.5, sample_every=20)


def network() -> nn.Module:
    """Of three rows for two processes, one for two, with channels last, and some that is not trained."""
    found = seeded(0, lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(27, 1)))
    found[1].requires_grad_(False)
    return found.to(memory_format=torch.channels_last)


def loss(network: nn.Module, part: Part) -> dict[str, torch.Tensor]:
    x = torch.randn(8, 2, 5, 5, generator=part.generator)[part.rows(8)]
    said = network(x)
    with torch.no_grad():
        averaged = part.averaged(x)
    return {
        "mse": (said - x.mean((1, 2, 3))[:, None]).square().mean(),
        "average": 0.1 * (said - averaged).square().mean(),
    }


def learn(folder: Path, stop: int | None = None) -> nn.Module:
    """Up to the end, or an interruption before step `stop`; a sample is the network's weights."""
    advance, found = Trainer.advance, network()

    def stopped(self: Trainer, loss: object) -> dict[str, torch.Tensor]:
        if self.step == stop:
            raise KeyboardInterrupt
        return advance(self, loss)

    def sample(network: nn.Module, step: int) -> None:
        torch.save(network.state_dict(), folder / f"sample-{step}.pt")

    Trainer.advance = stopped
    try:
        fit(
            found, loss, CONFIG, folder / "state.safetensors", key={}, label="test",
            save_every=0, log_every=10, sample=sample,
        )  # fmt: skip
    except KeyboardInterrupt:
        pass
    finally:
        Trainer.advance = advance
    return found


def test_two_processes_with_half_of_the_weights_each_learn_what_one_does_with_all(tmp_path: Path) -> None:
    """Interrupted and resumed, also by one: the loss of every interval to 1e-4, weights, averages, moments, samples."""
    one, two, handed_on = folders = [tmp_path / name for name in ("one", "two", "two/half")]
    for folder in folders:
        folder.mkdir()
    done = subprocess.run([*DIVIDED, "tests.train.test_sharding", two], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(two / f"found-{number}").read_text() for number in range(2)] == ["Sequential of Parameter"] * 2
    learn(one)
    learn(handed_on)
    (tensors, about), (expected, other) = (state_module.load(f / "state.safetensors") for f in (two, one))
    terms, wanted = (json.loads(found["history"])["terms"] for found in (about, other))
    assert all(terms[name] == pytest.approx(wanted[name], abs=1e-4) for name in ("mse", "average"))
    assert tensors.keys() == expected.keys() and {"param/0.weight", "ema/0.weight"} < tensors.keys()
    assert all(torch.allclose(tensors[name], expected[name], atol=1e-5) for name in expected)
    ends, _ = state_module.load(handed_on / "state.safetensors")
    assert all(torch.allclose(ends[name], expected[name], atol=1e-5) for name in expected)
    for step in (20, 40):
        samples, of_one = (torch.load(folder / f"sample-{step}.pt") for folder in (two, one))
        assert all(torch.allclose(samples[name], of_one[name], atol=1e-5) for name in of_one)


def test_a_module_put_together_is_what_it_was() -> None:
    """With the same modules in it, for those who hold one of them."""
    module, values = network(), network().state_dict()
    plain, held = outline(module), module[3]
    assert {p.device.type for p in plain.parameters()} == {"meta"}
    module[3].__class__ = type("Divided", (nn.Linear,), {})
    module[0].weight = nn.Parameter(torch.zeros(0))
    reunite(module, plain, values)
    assert module[3] is held and type(held) is nn.Linear
    assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in network().parameters()]


@pytest.mark.parametrize(
    ("launch", "config", "complaint"),
    [
        (
            {"distributed_type": DistributedType.DEEPSPEED, "is_fsdp2": False},
            {},
            "DEEPSPEED: launch with --use_fsdp --fsdp_version 2",
        ),
        ({"is_fsdp2": False}, {}, "FSDP: launch with --use_fsdp --fsdp_version 2"),
        ({}, {"optimizer": "muon"}, "--optimizer muon wants whole matrices"),
        ({"mixed_precision": "fp16"}, {}, "--precision fp16: not with FSDP"),
        ({"checkpoints": True}, {}, "the training's own --checkpointing"),
    ],
)
def test_a_launch_that_training_cannot_follow(launch: dict, config: dict, complaint: str) -> None:
    plugin = SimpleNamespace(activation_checkpointing=launch.pop("checkpoints", False))
    plain = {"distributed_type": DistributedType.FSDP, "is_fsdp2": True, "mixed_precision": "no"}
    with pytest.raises(UsageError, match=complaint):
        settle(SimpleNamespace(**plain | launch, state=SimpleNamespace(fsdp_plugin=plugin)), replace(CONFIG, **config))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    learn(folder, stop=25)
    if is_main():
        shutil.copy(folder / "state.safetensors", folder / "half")
    found = learn(folder)
    kinds = [type(found).__name__, type(found[0].weight).__name__]
    (folder / f"found-{processes().process_index}").write_text(" of ".join(kinds))
