"""The 482M student at full size: what converting takes, and how fast its U-Net runs against PyTorch and OpenVINO.

    pytest bench/test_full_size.py -m slow -s        # an hour and a half on 2 cores, 12 GB of memory

Weights are random, for neither speed nor memory asks what they are; int8 decibels of random weights say nothing of pictures.
Times are CPU seconds of one thread, all engines in turns.
"""

# side of the latent grid: 64 is a picture of 512 pixels

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from bench import fresh
from bench.test_unet import compared
from convert.onnx import OnnxConfig, convert
from kdc_edge import machine
from kdc_edge.runtimes import Options
from tests.floors import hold
from tests.train.test_student import SD1
from train import diffusion, tiny_decoder
from train.folders import assemble, half
from train.recipes import DecoderConfig
from train.student import from_config, prune_config
from train.student_spec import STUDENTS
from train.tokenizer import train_tokenizer
from train.trainer import seeded

pytestmark = pytest.mark.slow
KL = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
PRECISIONS = ("fp32", "fp16", "int8")
SAMPLES = 7
FLOORS = {  # times as fast as PyTorch, asked and kept; of processors with int8 products of their own
    ("ort fp32", 32): (2.1, 1.4),
    ("ort fp32", 64): (1.7, 1.1),
    ("ort int8", 32): (6.3, 3.5),
    ("ort int8", 64): (3.8, 2.3),
}
LOAD_S, SESSION_MIB = 1.2, 900  # of the int8 U-Net at a side of 32


@dataclass(frozen=True)
class Sized:
    """The student for one side, and its bundles by precision."""

    side: int
    checkpoint: Path
    bundles: dict[str, Path]
    conversions: dict[str, dict[str, float]]


@pytest.fixture(scope="module", params=[32, 64])
def sized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sized]:
    folder = tmp_path_factory.mktemp("full")
    checkpoint = folder / "checkpoint"
    save(checkpoint, request.param)
    bundles = {precision: folder / precision for precision in PRECISIONS}
    taken = {precision: converted(checkpoint, bundles[precision], precision, "unet") for precision in PRECISIONS}
    yield Sized(request.param, checkpoint, bundles, {precision: took["unet"] for precision, took in taken.items()})


def converted(checkpoint: Path, bundle: Path, precision: Any, *components: Any) -> dict[str, dict[str, float]]:
    """Convert, on random weights without sparing; by component seconds, peak and estimated MiB, MB of files, worst dB."""
    config = OnnxConfig(
        checkpoint, bundle, components=components, precision=precision, steps=1, guidance=1.0, allow_drift=True
    )
    if precision == "int8":
        prompts = checkpoint.with_name("prompts.txt")
        prompts.write_text("red apple\nrocket\n", encoding="utf-8")
        config = replace(config, calibration=prompts, spare=False)
    report = convert(config)
    return {
        name: report["conversion"][name]
        | {
            "snr_db": report["parity"][name]["snr_db"],
            "mb": sum(path.stat().st_size for path in (bundle / name).iterdir()) / 1e6,
        }
        for name in components
    }


def save(folder: Path, side: int, shape: dict[str, Any] | None = None, tiny: bool = False) -> None:
    """Random weights in the shapes of the 482M student of Stable Diffusion 1.x; else another U-Net, a tiny decoder."""
    tokenizer = train_tokenizer(["red apple", "rocket"], merges=10)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768, **ids
    )
    config = prune_config(SD1, STUDENTS["kdc-small"]()) if shape is None else shape
    unet = seeded(0, lambda: half(from_config(config | {"sample_size": side})))
    vae = seeded(0, lambda: half(AutoencoderKL(**KL, sample_size=8 * side)))
    if tiny:
        of = DecoderConfig(folder)
        vae = seeded(0, lambda: half(tiny_decoder.build(vae, of.channels, of.blocks)))
    encoder = seeded(0, lambda: half(CLIPTextModel(text)))
    assemble(unet, vae, encoder, tokenizer, diffusion.build_scheduler()).save_pretrained(folder)


def test_what_converting_takes(sized: Sized) -> None:
    within_the_estimate(f"unet {sized.side}", sized.conversions)


@pytest.mark.parametrize("decoder", ["AutoencoderKL", "AutoencoderTiny"])
def test_what_converting_the_other_components_takes(decoder: str, tmp_path: Path) -> None:
    """For pictures of 512 pixels; the U-Net that makes their calls is a narrow one."""
    checkpoint = tmp_path / "checkpoint"
    narrow = SD1 | {"block_out_channels": (32, 64, 64, 64), "layers_per_block": 1}
    save(checkpoint, 64, narrow, tiny=decoder == "AutoencoderTiny")
    names = ("vae_decoder", "text_encoder") if decoder == "AutoencoderKL" else ("vae_decoder",)
    taken = {precision: converted(checkpoint, tmp_path / precision, precision, *names) for precision in PRECISIONS}
    for name in names:
        within_the_estimate(decoder if name == "vae_decoder" else name, {p: took[name] for p, took in taken.items()})


def within_the_estimate(what: str, conversions: dict[str, dict[str, float]]) -> None:
    """Printed, by precision; of random weights, int8's decibels are not judged."""
    for precision, took in conversions.items():
        print(
            f"\n{what} {precision}: {took['seconds']:.0f} s, {took['peak_mib']:.0f} MiB at most (estimated "
            f"{took['estimated_mib']}), {took['mb']:.0f} MB, {took['snr_db']:.1f} dB"
        )
    assert {
        p: took["peak_mib"] for p, took in conversions.items() if took["peak_mib"] > 1.1 * took["estimated_mib"]
    } == {}
    assert conversions["fp32"]["snr_db"] >= 90 and conversions["fp16"]["snr_db"] >= 50


@pytest.fixture(scope="module")
def speeds(sized: Sized, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """How many times as fast as PyTorch each engine is, at least."""
    bundles = {precision: sized.bundles[precision] for precision in ("fp32", "int8")}
    return compared(f"unet {sized.side}", sized.checkpoint, bundles, tmp_path_factory.mktemp("plain"), SAMPLES)


@pytest.mark.parametrize("engine", ["ort fp32", "ort int8"])
def test_one_call_of_the_unet(sized: Sized, speeds: dict[str, float], engine: str) -> None:
    if "avx512_vnni" not in machine.instructions():
        pytest.skip("measured and printed; the floors are of processors with AVX512-VNNI")
    hold(speeds[engine], *FLOORS[engine, sized.side])


def test_opening(sized: Sized, tmp_path: Path) -> None:
    """As it is, and with what the first start kept for this machine."""
    if sized.side != 32:
        pytest.skip("measured at a side of 32")
    print()
    for precision in ("fp32", "int8"):
        for cache in (None, tmp_path / precision, tmp_path / precision):
            kept = "" if cache is None else ", with what an earlier start kept" if cache.exists() else ", keeping it"
            verified, cpu, mib = fresh.opening(
                sized.bundles[precision], "unet", "ort", Options(threads=1, cache_dir=cache)
            )
            taken = f"verified in {verified:.2f} CPU s, opened in {cpu:.2f}, {mib:.0f} MiB at most"
            print(f"unet {sized.side} {precision}{kept}: {taken}")
    assert cpu <= LOAD_S and mib <= SESSION_MIB
