"""The 482M student's U-Net at 64×64 latents as typed ONNX, and NVIDIA's builder on it: memory and seconds, on a CPU.

    pytest bench/test_full_tensorrt.py -m slow -s        # twenty minutes on 2 cores, 12 GB of memory

Weights are random: decibels of int8 then say nothing of pictures. int8 is rounded to the nearest, and nothing is spared.
"""

import time
from pathlib import Path
from typing import Any

import pytest

from bench.test_full_size import save
from convert.nvidia.lint import lint_file
from convert.tensorrt import TensorrtConfig, convert
from kdc_edge.bundle import Bundle
from kdc_edge.process import in_own_process, peak_mib
from kdc_edge.runtimes.engines import build

pytestmark = pytest.mark.slow
MEMORY_MIB = 12_000
SIDE = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "checkpoint"
    save(folder, SIDE)
    folder.with_name("prompts.txt").write_text("red apple\nrocket\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("precision", "floor"), [("fp16", 50), ("int8", 18)])
def test_it_converts_within_the_memory_promised_and_builds(
    precision: Any, floor: float, checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; it exists for Linux on x86-64")
    report = convert(
        TensorrtConfig(
            checkpoint, tmp_path / "bundle", precision, calibration=checkpoint.with_name("prompts.txt"), spare=False,
            rounding="nearest", components=("unet",), steps=1, guidance=1.0, allow_drift=True,
        )
    )  # fmt: skip
    took, bundle = report["conversion"]["unet"], Bundle.open(tmp_path / "bundle")
    seconds, plan_mib, built_mib = in_own_process("building", built, bundle.path)
    print(
        f"\nunet {SIDE} {precision}: {took['seconds']:.0f} s, {took['peak_mib']:.0f} MiB at most (estimated "
        f"{took['estimated_mib']}), {bundle.bytes / 1e6:.0f} MB, {report['parity']['unet']['snr_db']:.1f} dB; "
        f"tensorrt-rtx: {seconds:.0f} s, {built_mib:.0f} MiB at most, a plan of {plan_mib:.0f} MiB"
    )
    assert lint_file(bundle.path / "unet" / "model.onnx") == []
    assert took["peak_mib"] <= min(MEMORY_MIB, 1.1 * took["estimated_mib"])
    assert report["parity"]["unet"]["snr_db"] >= floor


def built(path: Path) -> tuple[float, float, float]:
    """Seconds, the plan's MiB and the process's at most."""
    import tensorrt_rtx as trt

    unet, start = Bundle.open(path).component("unet"), time.perf_counter()
    plan, _ = build(trt, path / unet.files[0], unet.inputs, unet.options["profile"], target=trt.ComputeCapability.SM86)
    return time.perf_counter() - start, len(plan) / 2**20, peak_mib()
