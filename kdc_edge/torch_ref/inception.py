"""InceptionV3 as FID has it since 2017: the TensorFlow graph of 2015-12-05, in PyTorch and without torchvision.

Not torchvision's Inception: average pools leave the padding out, the last block pools by maximum, and there are 1,008
classes. Takes the `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid and torch-fidelity. Resizing is clean-fid's
(arXiv 2104.11222): bicubic with antialiasing, in float, never rounded to bytes.
"""

# B batch, C channels, H W pixels

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, DIMENSIONS, CLASSES = 299, 2048, 1008
SHA256 = "6726825d"  # the digits that the file's name carries, too
RESIZE = f"PIL bicubic with antialiasing to {SIDE}, float, clipped (clean-fid)"
Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, into: int, out: int, kernel: Kernel, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """(B, into, 35, 35) → (B, 224 + pool, 35, 35)."""

    def __init__(self, into: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(into, 64, 1)
        self.branch5x5_1 = Conv(into, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(into, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(into, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """(B, into, 35, 35) → (B, into + 480, 17, 17)."""

    def __init__(self, into: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(into, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(into, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """(B, into, 17, 17) → (B, 768, 17, 17), by rows and columns of seven."""

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        row: tuple[Kernel, Kernel] = (1, 7), (0, 3)
        column: tuple[Kernel, Kernel] = (7, 1), (3, 0)

        def seven(into: int, out: int, shape: tuple[Kernel, Kernel]) -> Conv:
            return Conv(into, out, shape[0], padding=shape[1])

        self.branch1x1 = Conv(into, 192, 1)
        self.branch7x7_1 = Conv(into, width, 1)
        self.branch7x7_2 = seven(width, width, row)
        self.branch7x7_3 = seven(width, 192, column)
        self.branch7x7dbl_1 = Conv(into, width, 1)
        self.branch7x7dbl_2 = seven(width, width, column)
        self.branch7x7dbl_3 = seven(width, width, row)
        self.branch7x7dbl_4 = seven(width, width, column)
        self.branch7x7dbl_5 = seven(width, 192, row)
        self.branch_pool = Conv(into, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """(B, into, 17, 17) → (B, into + 512, 8, 8)."""

    def __init__(self, into: int) -> None:
        super().__init__()
        self.branch3x3_1 = Conv(into, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(into, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat(
            [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1
        )


class BlockE(nn.Module):
    """(B, into, 8, 8) → (B, 2048, 8, 8); the network's last pools by maximum."""

    def __init__(self, into: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Conv(into, 320, 1)
        self.branch3x3_1 = Conv(into, 384, 1)
        self.branch3x3_2a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(into, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(into, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.last else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class InceptionV3(nn.Module):
    """(B, 3, 299, 299) in [-1, 1) → (B, 2048) pooled features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(2048, last=True)
        self.fc = nn.Linear(DIMENSIONS, CLASSES)  # in the published file; the features end before it

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


def prepare(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """N pictures (H, W, 3) uint8 of any sizes → (N, 3, 299, 299) in [-1, 1)."""
    resized = np.stack([resize(picture, SIDE) for picture in pictures])
    return (torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous() - 128) / 128


def resize(picture: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """(H, W, 3) uint8 → (side, side, 3) in [0, 255], each channel by itself."""
    channels = [Image.fromarray(np.ascontiguousarray(picture[..., c], np.float32)) for c in range(3)]
    scaled = [np.asarray(channel.resize((side, side), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(scaled, axis=-1).clip(0, 255)
