"""Does a picture show what its caption says? CLIP score, and retrieval among known pictures, by any `transformers` CLIP.

The emoji-64 judge (`assets/emoji-64/judge`) is such a folder. It says of a generated picture which of the real ones it is.
"""

# N pictures asked about, M candidates, D embedding width, H W pixels

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from kdc_edge.errors import BundleError, MissingBackend
from kdc_edge.files import read_json
from kdc_edge.torch_ref.quiet import quiet

BATCH = 128


@dataclass(frozen=True)
class Retrieval:
    """Shares of the pictures whose right candidate is the first, and among the first five."""

    top1: float
    top5: float
    count: int


@dataclass(frozen=True)
class Preprocess:
    """How a CLIP wants its pictures: `shortest` edge resized, centre cropped to `side`, normalised."""

    side: int
    shortest: int | None = None
    """None for a CLIP without a preprocessor_config.json: the whole picture is resized."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, side: int, config: dict[str, Any]) -> "Preprocess":
        """Of a `preprocessor_config.json`, `{}` if there is none. Raises BundleError for another filter than bicubic."""
        if not config:
            return cls(side)
        if config.get("resample", Image.Resampling.BICUBIC) != Image.Resampling.BICUBIC:
            raise BundleError(
                f"the CLIP resizes with Pillow's filter {config['resample']}, only bicubic (3) is supported"
            )
        size, crop = config.get("size", side), config.get("crop_size", side)
        shortest = size["shortest_edge"] if isinstance(size, dict) else size
        crop = crop["height"] if isinstance(crop, dict) else crop
        return cls(crop, shortest, tuple(config["image_mean"]), tuple(config["image_std"]))

    @property
    def rule(self) -> str:
        """For the card."""
        if self.shortest is None:
            return f"PIL bicubic to {self.side} where it is not that size"
        return f"PIL bicubic, shortest edge {self.shortest}, centre crop {self.side}"

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """N pictures (H, W, 3) uint8 of any sizes → (N, 3, side, side)."""
        x = torch.from_numpy(np.stack([self._fit(picture) for picture in pictures])).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (self.mean, self.std))
        return (x - mean) / std

    def _fit(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = picture.shape[:2]
        wanted = (self.side, self.side)
        if self.shortest is not None:  # the longer edge is cut off, not rounded, as CLIP's own code has it
            short = min(height, width)
            wanted = (self.shortest * width // short, self.shortest * height // short)
        if (width, height) != wanted:
            picture = np.asarray(Image.fromarray(picture).resize(wanted, Image.Resampling.BICUBIC))
        top, left = (picture.shape[0] - self.side) // 2, (picture.shape[1] - self.side) // 2
        return picture[top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class Judge:
    """A CLIP in fp32 with its tokenizer."""

    clip: CLIPModel
    tokenizer: CLIPTokenizer
    preprocess: Preprocess = field(default=Preprocess(64))

    @classmethod
    def open(cls, source: Path | str, device: str = "cpu") -> "Judge":
        """A folder or hub id. Raises MissingBackend where the hub does not give it, BundleError for a damaged folder."""
        folder = clip_folder(str(source))
        try:
            with quiet("transformers"):
                clip = CLIPModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
                tokenizer = CLIPTokenizer.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError) as error:
            raise BundleError(
                f"{source}: not readable as a CLIP ({str(error).splitlines()[0]}); fetch it again"
            ) from error
        config = folder / "preprocessor_config.json"
        known = Preprocess.of(clip.config.vision_config.image_size, read_json(config) if config.exists() else {})
        return cls(clip.eval().requires_grad_(False).to(device), tokenizer, known)

    @property
    def dimensions(self) -> int:
        return self.clip.config.projection_dim

    def pictures(self, pixels: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """N pictures (H, W, 3) uint8 → (N, D), normalised."""
        return F.normalize(self.features(pixels), dim=-1)

    def features(self, pixels: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        """N pictures (H, W, 3) uint8 → (N, D), as long as the image tower makes them."""
        parts = (self.preprocess(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH))
        return torch.cat([self.forward(part) for part in parts])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Preprocessed pictures (N, 3, side, side) → (N, D)."""
        with torch.no_grad():
            return self.clip.get_image_features(pixel_values=x.to(self.clip.device)).pooler_output.cpu()

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """N captions → (N, D), normalised; over-long ones lose their end."""
        ids = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            parts = [part.to(self.clip.device) for part in ids.split(BATCH)]
            found = [self.clip.get_text_features(input_ids=part).pooler_output.cpu() for part in parts]
        return F.normalize(torch.cat(found), dim=-1)


def clip_folder(source: str) -> Path:
    """A local folder, or the hub's copy of one: safetensors only."""
    path = Path(source)
    if path.is_dir():
        return path
    if source.count("/") != 1 or source.startswith((".", "/")):
        raise BundleError(f"{source}: no such folder; give a CLIP's folder, or its hub id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MissingBackend(f"{source}: not a local folder, and the hub does not give it ({error})") from error


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
