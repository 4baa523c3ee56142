"""Does a picture show what its caption says? Retrieval among known pictures, by any `transformers` CLIP folder.

The emoji-64 judge (`assets/emoji-64/judge`) is such a folder. It says of a generated picture which of the real ones it is.
"""

# N pictures asked about, M candidates, D embedding width, H W pixels

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

BATCH = 128


@dataclass(frozen=True)
class Retrieval:
    """Shares of the pictures whose right candidate is the first, and among the first five."""

    top1: float
    top5: float
    count: int


@dataclass(frozen=True)
class Judge:
    """A CLIP in fp32 with its tokenizer."""

    clip: CLIPModel
    tokenizer: CLIPTokenizer

    @classmethod
    def open(cls, folder: Path) -> "Judge":
        clip = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval().requires_grad_(False)
        return cls(clip, CLIPTokenizer.from_pretrained(folder))

    def pictures(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W, 3) uint8 → (N, D), normalised."""
        return F.normalize(self.features(pixels), dim=-1)

    def features(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """(N, H, W, 3) uint8 → (N, D), as long as the image tower makes them."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            found = [self.clip.get_image_features(pixel_values=part).pooler_output for part in x.split(BATCH)]
        return torch.cat(found)

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """N captions → (N, D), normalised."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            found = [self.clip.get_text_features(input_ids=part).pooler_output for part in ids.split(BATCH)]
        return F.normalize(torch.cat(found), dim=-1)


def retrieval(scores: torch.Tensor, truth: NDArray[np.int64], classes: NDArray[np.int64]) -> Retrieval:
    """`scores` (N, M); `truth` (N,) the right candidates; candidates of one class (M,) count as one."""
    order = scores.argsort(dim=1, descending=True).numpy()
    ranks = [rank(classes[row], classes[right]) for row, right in zip(order, truth, strict=True)]
    return Retrieval(float(np.mean([r < 1 for r in ranks])), float(np.mean([r < 5 for r in ranks])), len(ranks))


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of `count` pictures (Wilson 1927)."""
    middle, half = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def rank(ordered: NDArray[np.int64], right: int) -> int:
    """How many other classes come before `right`."""
    return len(dict.fromkeys(ordered[: int(np.argmax(ordered == right))].tolist()))


def identical(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """A class number per picture; the same for pictures of the same pixels."""
    return np.unique(pixels.reshape(len(pixels), -1), axis=0, return_inverse=True)[1].reshape(-1)
