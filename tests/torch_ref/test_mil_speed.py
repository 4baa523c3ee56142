"""One call of a U-Net of Stable Diffusion's proportions (37.5M parameters), against eager PyTorch in the same run."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from kdc_edge.differences import snr_db
from kdc_edge.runtimes.apple import PACKAGES
from kdc_edge.torch_ref.mil.program import Program
from kdc_edge.torch_ref.quiet import silent

pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")

from convert.apple.networks import trace, wrap
from convert.apple.package import About, Settings
from convert.apple.program import convert

SIZES = {"batch": 1, "channels": 4, "height": 32, "width": 32, "tokens": 77, "text_width": 768}
SLOWER = 2.5


@pytest.mark.slow
@pytest.mark.parametrize(("target", "half", "floor"), [("ios17", False, 100), ("ios17", True, 50), ("ios18", True, 50)])
def test_a_call_is_not_much_slower_than_eager_pytorch(target, half: bool, floor: float, tmp_path: Path):
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128, 256, 256), cross_attention_dim=768, attention_head_dim=8
    )
    wrapped = wrap(network.requires_grad_(False), "unet")
    ports = PACKAGES["unet"].ports.bind(SIZES)
    inputs = [torch.full(p.shape, 981.0) if p.name == "timestep" else torch.randn(p.shape) for p in ports.inputs]
    with silent():
        model = convert(trace(wrapped, inputs), ports, Settings(target, half, About("someone", "Apache-2.0", "1")))
        model.save(str(tmp_path / "x.mlpackage"))
    program = Program.open(tmp_path / "x.mlpackage")
    arrays = {port.name: tensor.numpy() for port, tensor in zip(ports.inputs, inputs, strict=True)}
    with torch.inference_mode():
        assert snr_db(wrapped(*inputs).numpy(), program(**arrays)["noise_pred"]) >= floor
        ratio = statistics.median(
            _seconds(lambda: program(**arrays)) / _seconds(lambda: wrapped(*inputs)) for _ in range(7)
        )
    print(f"{target} {'fp16' if half else 'fp32'}: {ratio:.2f} times eager PyTorch")
    assert ratio <= SLOWER


def _seconds(work: Callable[[], object]) -> float:
    """Of this process alone, so that others on the machine do not count."""
    start = time.process_time()
    work()
    return time.process_time() - start
