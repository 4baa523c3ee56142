"""One call of a U-Net by every engine, in turns: PyTorch's own, onnxruntime on what torch exports, and our bundles.

    pytest bench/test_unet.py -m slow -s        # emoji-64's four-step student; test_full_size.py has the 482M one

CPU and wall seconds of one thread, beside the machine's matmul peaks and the share of them that is reached.
"""

# side of the latent grid: 64 is a picture of 512 pixels

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import roof
from convert.onnx import OnnxConfig, convert
from kdc_edge import machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.runtimes import Options, Runtime, open_runtime
from kdc_edge.torch_ref.networks import load_network
from kdc_edge.torch_ref.runtime import open_runtime as open_reference

EMOJI = Path(__file__).parents[1] / "assets" / "emoji-64"
EAGER, PLAIN = "PyTorch eager", "onnxruntime, unfused export"
SAMPLES = 15


@pytest.mark.slow
def test_one_call_at_emoji_size(tmp_path: Path) -> None:
    checkpoint, calibration = EMOJI / "fewstep", EMOJI / "calibration.txt"
    bundles = {"fp32": tmp_path / "fp32", "int8": tmp_path / "int8"}
    convert(OnnxConfig(checkpoint, bundles["fp32"]))
    convert(OnnxConfig(checkpoint, bundles["int8"], precision="int8", calibration=calibration, calibration_prompts=32))
    found = compared("emoji-64's four-step student", checkpoint, bundles, tmp_path, SAMPLES)
    assert found["ort fp32"] > 1 and found["ort int8"] > found["ort fp32"]


def compared(what: str, checkpoint: Path, bundles: Mapping[str, Path], folder: Path, samples: int) -> dict[str, float]:
    """Printed; how many times as fast as PyTorch's eager call each engine is at least, in CPU time."""
    torch.set_num_threads(1)
    reference = open_reference(Checkpoint.open(checkpoint), "unet")
    feed = noise(reference)
    engines: dict[str, Callable[[], object]] = {
        EAGER: partial(reference, **feed),
        PLAIN: plain(checkpoint, folder / "plain.onnx", feed),
    }
    for runtime in ("ort", "openvino"):
        for precision, path in bundles.items():
            opened = open_runtime(Bundle.open(path), "unet", runtime, Options(threads=1))
            engines[f"{runtime} {precision}"] = partial(opened, **feed)
    taken = dict(zip(engines, timing.turns(list(engines.values()), warmup=1, samples=samples), strict=True))
    macs = Bundle.open(bundles["fp32"]).component("unet").macs or 0
    peaks = {name: peak for name, peak in roof.measure(threads=1).macs_per_s.items() if peak}
    peaks |= {"bf16": bf16_peak()} if torch.cpu._is_avx512_bf16_supported() else {}
    print(f"\n{machine.processor()}: {', '.join(f'{k} {v / 1e9:.0f}' for k, v in peaks.items())} GMAC/s at most")
    found = {}
    for name, sampled in taken.items():
        ratio, low, high = timing.ratio_interval(sampled.of("cpu"), taken[EAGER].of("cpu"), seed=0)
        wall, *between = timing.ratio_interval(sampled.of("wall"), taken[EAGER].of("wall"), seed=0)
        found[name] = low
        seconds = sampled.quantile(0.5, "cpu")
        peak = peaks["int8" if "int8" in name else "fp32"]
        print(
            f"{what}, {name}: {1000 * seconds:.4g} ms, {macs / seconds / 1e9:.0f} GMAC/s, "
            f"{macs / seconds / peak:.0%} of the peak; {ratio:.2f} [{low:.2f}, {high:.2f}] times as fast as eager, "
            f"by the wall clock {wall:.2f} [{between[0]:.2f}, {between[1]:.2f}]"
        )
    return found


def noise(runtime: Runtime) -> dict[str, np.ndarray]:
    """For a batch of one, in the middle of the way."""
    rng = np.random.RandomState(0)
    ports = {port.name: port for port in runtime.ports.inputs}
    shapes = {name: [axis if isinstance(axis, int) else 1 for axis in port.shape] for name, port in ports.items()}
    feed = {name: rng.standard_normal(shape).astype(ports[name].dtype) for name, shape in shapes.items()}
    return feed | {"timestep": np.array(500, np.float32)}


def plain(checkpoint: Path, path: Path, feed: Mapping[str, np.ndarray]) -> Callable[[], object]:
    """What a user has without this project: torch's export as it comes, in onnxruntime as it comes."""
    import onnxruntime

    network = load_network(Checkpoint.open(checkpoint), "unet")
    inputs = {name: torch.from_numpy(value) for name, value in feed.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(network, (), path, kwargs=inputs, dynamo=True, verbose=False)
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, dict(feed))


def bf16_peak() -> float:
    """MACs per second of PyTorch's product, the best of a few: onnxruntime has none on a CPU."""
    a = torch.ones(roof.N, roof.N, dtype=torch.bfloat16)
    return roof.N**3 / min(timing.measure(lambda: a @ a, warmup=2, samples=roof.SAMPLES).wall)
