"""The bundle that comes with the package, as pytest-benchmark functions, and against the teacher in PyTorch.

    pytest bench --benchmark-enable --benchmark-json runs/bench.json
    pytest bench/test_default_bundle.py -m slow -s             # whole pictures, CPU seconds of one thread; three minutes

In the ordinary test run each is called once, untimed.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.side import WHAT, Side
from convert.onnx import OnnxConfig, convert
from kdc_edge import machine, timing
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.pipeline import DEFAULT_BUNDLE, Pipeline
from kdc_edge.runtimes import Options
from tests.floors import hold

EMOJI = Path(__file__).parents[1] / "assets" / "emoji-64"
FLOOR, SAMPLES = 30, 9


@pytest.fixture(scope="module")
def side() -> Iterator[Side]:
    pytest.importorskip("onnxruntime")
    with Side.open(DEFAULT_BUNDLE, "ort", Options(threads=1)) as opened:
        opened.check()
        yield opened


@pytest.mark.parametrize("what", WHAT)
def test_latency(benchmark: Any, side: Side, what: str) -> None:
    benchmark(side.call(what))


def test_open(benchmark: Any) -> None:
    pytest.importorskip("onnxruntime")
    benchmark(lambda: Side.open(DEFAULT_BUNDLE, "ort", Options(threads=1)).pipeline.close())


@pytest.mark.slow
def test_a_picture_against_diffusers_and_the_teacher() -> None:
    """As it ships: 8-bit weights, fp32 products."""
    hold(times_as_fast(DEFAULT_BUNDLE), FLOOR, kept=6)


@pytest.mark.slow
def test_a_picture_with_int8_products(tmp_path: Path) -> None:
    calibration = EMOJI / "calibration.txt"
    convert(
        OnnxConfig(
            EMOJI / "fewstep", tmp_path / "int8", precision="int8", calibration=calibration, calibration_prompts=32
        )
    )
    hold(times_as_fast(tmp_path / "int8"), FLOOR, kept=9)


def times_as_fast(bundle: Path) -> float:
    """At least, as the teacher's pipeline as its users run it, eagerly; the bundle by its own sampler in four steps."""
    pytest.importorskip("onnxruntime")
    with Pipeline.open(bundle, "ort", Options(threads=1)) as pipe:
        found = timing.compare(
            lambda: pipe.generate("red apple"), eager(), seed=0, warmup=2, samples=SAMPLES, clock="cpu"
        )
    ours, theirs = (1000 * taken.quantile(0.5, "cpu") for taken in (found.a, found.b))
    print(
        f"\n{machine.processor()}: teacher in PyTorch {theirs:.0f} CPU ms a picture, {bundle.name} {ours:.1f}; "
        f"{found.ratio:.1f} [{found.low:.1f}, {found.high:.1f}] times as fast"
    )
    return found.low


def eager() -> Callable[[], object]:
    """In the teacher's own steps: fewer cost it more than a point of its first places."""
    torch = pytest.importorskip("torch")
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own deprecations
        pipe = StableDiffusionPipeline.from_pretrained(
            EMOJI / "teacher", torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    own = Checkpoint.open(EMOJI / "teacher").sampling
    assert own is not None
    return lambda: pipe("red apple", num_inference_steps=own.steps, guidance_scale=own.guidance)
