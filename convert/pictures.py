"""Whether the converted model's pictures are the reference's: how far apart, and none of them broken."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from convert.parity import psnr_db, snr_db
from kdc_edge.errors import GateError
from kdc_edge.images import MIN_LUMA_STD, luma_std

MAX_SATURATED_RISE = 0.05  # share of pixels


def compare(reference: dict[str, np.ndarray], converted: dict[str, np.ndarray]) -> dict[str, Any]:
    """Two golden runs of the same prompts: PSNR of the pictures, SNR of the latents after each step (the worst prompt)."""
    pairs = list(zip(reference["images"], converted["images"], strict=True))
    a, b = reference["latents"], converted["latents"]  # (P, S, C, H, W)
    return {
        "psnr_db": [psnr_db(ref, out) for ref, out in pairs],
        "latents_snr_db": [
            min(snr_db(ref, out) for ref, out in zip(a[:, i], b[:, i], strict=True)) for i in range(a.shape[1])
        ],
        "luma_std": [luma_std(Image.fromarray(out)) for _, out in pairs],
    }


def gate(prompts: Sequence[str], reference: np.ndarray, converted: np.ndarray) -> None:
    """Raises GateError where a picture went flat or saturated that the reference's, uint8 (P, h, w, 3), is not."""
    for prompt, ref, out in zip(prompts, reference, converted, strict=True):
        flat = luma_std(Image.fromarray(out))
        if luma_std(Image.fromarray(ref)) > MIN_LUMA_STD and not flat > MIN_LUMA_STD:
            raise GateError(f"'{prompt}': the picture is flat, its luma varies by {flat:.4f}; nothing was written")
        rise = saturated(out) - saturated(ref)
        if not rise <= MAX_SATURATED_RISE:
            raise GateError(f"'{prompt}': {rise:.0%} more pixels are saturated than in PyTorch's; nothing was written")


def saturated(picture: np.ndarray) -> float:
    """Share of pixels that are black or white in every channel."""
    return float(np.mean((picture == 0).all(-1) | (picture == 255).all(-1)))
