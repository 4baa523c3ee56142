"""A picture of 512 pixels: the 482M student in four steps, int8, with a tiny decoder, against the teacher in PyTorch.

    pytest bench/test_full_picture.py -m slow -s        # 40 minutes on 2 cores, 12 GB of memory

The teacher is Stable Diffusion 1.5 in diffusers, 25 steps with guidance, fp32, eager. It draws one whole picture; how much
that varies is composed from its components' times, in turns with whole pictures by the student. Weights are random: speed
asks not what they are. CPU seconds of one thread.
"""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from bench.test_full_size import save
from convert.onnx import OnnxConfig, convert
from kdc_edge import machine, timing
from kdc_edge.pipeline import Pipeline
from kdc_edge.runtimes import Options
from tests.floors import hold
from tests.train.test_student import SD1

STEPS, GUIDANCE, SAMPLES = 25, 7.5, 3
FLOOR = 55  # times as fast, by onnxruntime
PROMPT = "red apple"


@pytest.mark.slow
def test_a_picture_against_diffusers_and_the_teacher(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    student(tmp_path)
    pipe = teacher(tmp_path)
    calls: dict[str, Callable[[], object]] = {"text": partial(encode, pipe), "unet": partial(denoise, pipe)}
    calls["decoder"] = partial(decode, pipe)
    runtimes = ("ort", "openvino")
    opened = [Pipeline.open(tmp_path / "bundle", name, Options(threads=1)) for name in runtimes]
    calls |= {name: partial(one.generate, PROMPT) for name, one in zip(runtimes, opened, strict=True)}
    taken = dict(zip(calls, timing.turns(list(calls.values()), warmup=1, samples=SAMPLES), strict=True))
    eager = sum(taken[name].of("cpu") * times for name, times in (("text", 1), ("unet", STEPS), ("decoder", 1)))
    whole = timing.measure(
        lambda: pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE), warmup=0, samples=1
    )
    print(
        f"\n{machine.processor()}: the teacher in PyTorch {whole.quantile(0.5, 'cpu'):.0f} CPU s, one whole picture; "
        f"{np.median(eager):.0f} composed of medians"
    )
    found = {}
    for name in runtimes:
        ratio, found[name], high = timing.ratio_interval(taken[name].of("cpu"), np.asarray(eager), seed=0)
        seconds = taken[name].quantile(0.5, "cpu")
        print(
            f"the student by {name}: {seconds:.2f} CPU s; {ratio:.1f} [{found[name]:.1f}, {high:.1f}] times as fast as "
            f"composed, {whole.quantile(0.5, 'cpu') / seconds:.1f} as the whole one"
        )
    hold(found["ort"], FLOOR, kept=25)


def student(folder: Path) -> None:
    save(folder / "student", 64, tiny=True)
    (folder / "prompts.txt").write_text(f"{PROMPT}\n", encoding="utf-8")
    config = OnnxConfig(
        folder / "student", folder / "bundle", precision="int8", steps=4, guidance=1.0, calibration=folder / "prompts.txt",
        allow_drift=True, spare=False,
    )  # fmt: skip
    convert(config)


def teacher(folder: Path) -> Any:
    save(folder / "teacher", 64, SD1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own deprecations
        pipe = StableDiffusionPipeline.from_pretrained(
            folder / "teacher", torch_dtype=torch.float32, safety_checker=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def encode(pipe: Any) -> object:
    """Both texts."""
    return pipe.encode_prompt(PROMPT, "cpu", 1, True)


@torch.no_grad()
def denoise(pipe: Any) -> object:
    """One guided step."""
    return pipe.unet(torch.zeros(2, 4, 64, 64), 500, encoder_hidden_states=torch.zeros(2, 77, 768)).sample


@torch.no_grad()
def decode(pipe: Any) -> object:
    return pipe.vae.decode(torch.zeros(1, 4, 64, 64)).sample
