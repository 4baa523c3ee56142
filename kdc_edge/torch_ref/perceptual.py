"""How alike two pictures are: LPIPS (arXiv 1801.03924, version 0.1) on AlexNet or VGG16, PSNR and SSIM.

The backbones are defined here and take torchvision's published files; the linear heads come with torchmetrics.
"""

# B pairs, H W pixels, C channels

import importlib.util
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdc_edge.errors import MissingBackend, choose
from kdc_edge.torch_ref import weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]
EPS = 1e-8
WINDOW = 11  # pixels, of SSIM


def _conv(into: int, out: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    padding = kernel // 2 if stride == 1 else 2
    return [nn.Conv2d(into, out, kernel, stride, padding), nn.ReLU()]


def alexnet() -> nn.Sequential:
    """torchvision's `alexnet().features` up to its last ReLU."""
    pool = nn.MaxPool2d(3, 2)
    first, second = [*_conv(3, 64, 11, stride=4), pool], [*_conv(64, 192, 5), pool]
    return nn.Sequential(*first, *second, *_conv(192, 384), *_conv(384, 256), *_conv(256, 256))


def vgg16() -> nn.Sequential:
    """torchvision's `vgg16().features` up to its last ReLU."""
    stages = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
    layers: list[nn.Module] = []
    for widths in stages:
        layers += [] if not layers else [nn.MaxPool2d(2, 2)]
        layers += [layer for pair in itertools.pairwise(widths) for layer in _conv(*pair)]
    return nn.Sequential(*layers)


# name → backbone, the layers that are compared, SHA-256 of torchvision's file as its name carries it
NETWORKS = {
    "alex": (alexnet, (1, 4, 7, 9, 11), "7be5be79"),
    "vgg": (vgg16, (3, 8, 15, 22, 29), "397923af"),
}


@dataclass(frozen=True)
class Lpips:
    """`backbone` and, for each layer compared, the channels' weights (C,)."""

    name: str
    backbone: nn.Sequential
    layers: tuple[int, ...]
    heads: tuple[Tensor, ...]
    hash: str

    @classmethod
    def open(cls, name: str, source: str, sha256: str | None = None) -> "Lpips":
        """`alex` or `vgg` with torchvision's ImageNet weights from `source`. Raises BundleError for other weights."""
        build, layers, known = NETWORKS[choose(name, NETWORKS, "LPIPS network")]
        path, seen = weights.checked(source, known if sha256 is None else sha256)
        state = {key.removeprefix("features."): value for key, value in weights.read(path).items()}
        backbone = build()
        state = {key: value for key, value in state.items() if key in backbone.state_dict()}
        return cls(name, weights.load(backbone, state, path), layers, heads(name), seen)

    def __call__(self, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Two sets of pictures (B, H, W, 3) uint8 → (B,); 0 is the same picture."""
        with torch.inference_mode():
            total = torch.zeros(len(a))
            x, y = self._scaled(a), self._scaled(b)
            for number, layer in enumerate(self.backbone):
                x, y = layer(x), layer(y)
                if number in self.layers:
                    head = self.heads[self.layers.index(number)]
                    total += ((_unit(x) - _unit(y)) ** 2 * head[:, None, None]).sum(1).mean((1, 2))
        return total.double().numpy()

    def _scaled(self, pictures: NDArray[np.uint8]) -> Tensor:
        x = _tensor(pictures) * 2 - 1
        shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        return (x - shift) / scale


def heads(name: str) -> tuple[Tensor, ...]:
    """The published linear heads, from torchmetrics' package. Raises MissingBackend."""
    found = importlib.util.find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise MissingBackend("torchmetrics is not installed, and LPIPS' heads are its: pip install 'kdc-edge[quality]'")
    file = Path(found.origin).parent / "functional" / "image" / "lpips_models" / f"{name}.pth"
    state = weights.read(file)
    return tuple(state[f"lin{i}.model.1.weight"].flatten() for i in range(5))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B, H, W, 3) twice → (B,) dB; the same picture is 100, as more than bytes can tell."""
    error = np.array([((x.astype(np.float64) - y) ** 2).mean() for x, y in zip(a, b, strict=True)])
    return np.minimum(100.0, 10 * np.log10(255**2 / np.maximum(error, 1e-12)))


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(B, H, W, 3) twice → (B,); Gaussian window of sigma 1.5, 11 pixels wide, where it fits (Wang et al. 2004)."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise MissingBackend("torchmetrics is not installed: pip install 'kdc-edge[quality]'") from error
    pair = (_tensor(pictures).double() for pictures in (a, b))
    _, full = structural_similarity_index_measure(*pair, reduction="none", data_range=1.0, return_full_image=True)
    inside = slice(WINDOW // 2, -(WINDOW // 2))  # torchmetrics' own mean takes the mirrored border in
    return full[..., inside, inside].mean((1, 2, 3)).numpy()


def _tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


def _unit(x: Tensor) -> Tensor:
    """Each position's channels, normalised."""
    return x / torch.sqrt(EPS + (x**2).sum(1, keepdim=True))
