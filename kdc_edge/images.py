"""Arrays to pictures, contact sheets, and the gate that tells a picture from a broken one."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kdc_edge.errors import GateError, UsageError

MIN_LUMA_STD = 2 / 255  # of full scale; below it a picture is one flat colour
CELL, MARGIN, CAPTION = 128, 8, 16  # pixels: least width of a cell, space around it, height of its caption


def to_image(sample: np.ndarray) -> Image.Image:
    """A decoder's sample (3, H, W) in [-1, 1], clipped, as RGB; GateError if it is not finite."""
    if not np.isfinite(sample).all():
        raise GateError("the decoder returned NaN or infinity; the weights or the precision of a component are broken")
    pixels = np.round((sample / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def to_sample(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels (..., H, W, 3) as an encoder takes them: (..., 3, H, W) float32 in [-1, 1]."""
    return np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, -1, -3)


def luma_std(image: Image.Image) -> float:
    """Standard deviation of the luma, 0 to 1."""
    return float(np.asarray(image.convert("L"), dtype=np.float64).std() / 255)


def check_picture(image: Image.Image) -> None:
    """GateError for a picture of one flat colour."""
    if not (std := luma_std(image)) > MIN_LUMA_STD:
        raise GateError(
            f"the picture is flat: its luma varies by {std:.4f}, a picture's by more than {MIN_LUMA_STD:.4f}"
        )


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of the RGB pixels, row by row; a file's own format and metadata stay out of it."""
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """All pictures in one, captions under them, small ones enlarged; near square unless `columns` says otherwise."""
    if not images or len(images) != len(captions):
        raise UsageError(f"a contact sheet takes as many captions as pictures, not {len(captions)} for {len(images)}")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    scale = max(1, -(-CELL // images[0].width))
    width, height = images[0].width * scale, images[0].height * scale
    rows = -(-len(images) // columns)
    pitch = width + MARGIN, height + CAPTION + MARGIN
    sheet = Image.new("RGB", (columns * pitch[0] + MARGIN, rows * pitch[1] + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = MARGIN + i % columns * pitch[0], MARGIN + i // columns * pitch[1]
        sheet.paste(image.resize((width, height), Image.Resampling.BICUBIC), (x, y))
        _write(draw, caption, (x, y + height + 2), width)
    return sheet


def _write(draw: ImageDraw.ImageDraw, text: str, at: tuple[int, int], width: int) -> None:
    """One line, shortened until it fits."""
    font, line = ImageFont.load_default(), " ".join(text.split())
    shown = line
    while shown and draw.textlength(shown, font=font) > width:
        line = line[: min(len(line) - 1, width)]
        shown = f"{line}…" if line else ""
    draw.text(at, shown, fill="black", font=font)


def on_white(picture: Image.Image) -> Image.Image:
    """RGB; grey, CMYK and palettes converted, what is transparent white."""
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def square(picture: Image.Image, size: int) -> np.ndarray:
    """The centre square, resized by Lanczos where it is not that size: (size, size, 3) uint8."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(picture)
