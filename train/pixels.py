"""Pixel replay in as many bytes as latent replay, counted instead of stored: the latents of as many pictures as would fit.

The autoencoder is frozen and lossless pictures are whole: to train on the latents of those that are kept is to train on them.
"""

import io
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdc_edge.errors import UsageError
from kdc_edge.replay import About, hexadecimal
from train.replay import RECORD, Buffer, Offer, caption_bytes, fixed_bytes, item_bytes


def webp_bytes(picture: NDArray[np.uint8]) -> int:
    """Of (H, W, 3), lossless."""
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "WEBP", lossless=True, quality=100, method=6)
    return encoded.tell()


def pixel_bytes(buffer: Buffer, sizes: Mapping[str, int]) -> int:
    """Of a buffer with pictures of these bytes, by SHA-256, in place of its latents."""
    kept = hexadecimal(buffer.contents.columns["pictures"])
    captions = sum(map(caption_bytes, buffer.about.captions))
    return fixed_bytes(buffer.about) + captions + sum(sizes[picture] + RECORD for picture in kept)


def room(about: About, offers: Sequence[Offer], sizes: Mapping[str, int], memory: int) -> int:
    """The limit of the largest buffer whose pictures, after every offer, fit into `memory` bytes; to one item exact.

    Raises UsageError where none does.
    """
    items, texts = sum(len(offer.pictures) for offer in offers), {text for offer in offers for text in offer.captions}
    least = fixed_bytes(replace(about, tasks=(*about.tasks, *(offer.task for offer in offers)))) + 64
    step, captions = item_bytes(about), sum(map(caption_bytes, texts))
    # of two items' room captions leave that of one
    limits = range(least + 2 * step, least + captions + (items + 2) * step, step)

    def too_large(limit: int) -> bool:
        buffer = Buffer.empty(replace(about, limit=limit))
        for offer in offers:
            buffer = buffer.take(offer)
            if pixel_bytes(buffer, sizes) > memory:
                return True
        return False

    fitting = bisect_left(limits, True, key=too_large)
    if not fitting:
        raise UsageError(
            f"--replay-memory is {memory:,} bytes, in which there is no picture as lossless WebP; give more"
        )
    return limits[fitting - 1]
