"""Operating systems that a package can be made for, and what each of them reads."""

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["ios16", "ios17", "ios18"]


@dataclass(frozen=True)
class Target:
    """`coremltools` is the library's name for it, `specification` the version inside a package."""

    coremltools: str
    specification: int
    os: str
    blocks: bool
    """Whether it has iOS 18's weights: 3 bits, groups, blocks, 4-bit integers, joint schemes; and multifunction packages."""


TARGETS: dict[TargetName, Target] = {
    "ios16": Target("iOS16", 7, "iOS 16 or macOS 13", blocks=False),
    "ios17": Target("iOS17", 8, "iOS 17 or macOS 14", blocks=False),
    "ios18": Target("iOS18", 9, "iOS 18 or macOS 15", blocks=True),
}
