"""Captions: what a person might type for a picture, from a name and what else is known of it."""

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

HUES = (
    (15, "red"),
    (45, "orange"),
    (70, "yellow"),
    (165, "green"),
    (255, "blue"),
    (290, "purple"),
    (340, "pink"),
    (361, "red"),
)


def captions(row: Mapping[str, str], pixels: np.ndarray) -> list[str]:
    """The name first, then its templates. `row` has `text` and, if known, `group`, `subgroup`; `pixels` (H, W, 3) uint8."""
    name = row["text"].strip()
    found = [name]
    if row.get("subgroup"):  # as Unicode lists emoji
        found += [f"{name} emoji", f"an emoji of {name}"]
    if group := row.get("group"):
        found.append(f"{name}, {group.lower()}")
    drawn = bool(row.get("subgroup") or group)  # one thing on white; of a photograph the colour says nothing
    if drawn and (colour := dominant_colour(pixels)) and colour not in name.lower():
        found.append(f"{colour} {name}")
    return found


class CaptionChoice:
    """One caption for each drawn picture, of all pictures' captions in a row."""

    def __init__(self, captions: Sequence[Sequence[str]]) -> None:
        self.starts = torch.tensor([0, *(len(group) for group in captions)]).cumsum(0)

    def rows(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """For pictures `index` (B,), the number of one caption each; the first, which is the plain name, half of the time."""
        count = self.starts[index + 1] - self.starts[index]
        draw = torch.rand(2, len(index), generator=generator)
        return self.starts[index] + torch.where(draw[0] < 0.5, 0, (draw[1] * count).long())


def class_caption(name: str) -> str:
    """A class name as a prompt: `pink_primrose` → `pink primrose`."""
    return name.replace("_", " ").strip()


def dominant_colour(pixels: np.ndarray) -> str | None:
    """The colour word that covers most of what is not white, if it covers half of it."""
    x = pixels.reshape(-1, 3).astype(np.float32) / 255
    x = x[(x < 0.94).any(1)]
    if len(x) < 40:
        return None
    words, counts = np.unique([colour_word(pixel) for pixel in x[:: max(1, len(x) // 256)]], return_counts=True)
    best = counts.argmax()
    return str(words[best]) if 2 * counts[best] >= counts.sum() else None


def colour_word(rgb: np.ndarray) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb.tolist())
    if value < 0.2:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.85 else "grey"
    word = next(word for limit, word in HUES if hue * 360 < limit)
    return "brown" if word == "orange" and value < 0.65 else word
