"""Where a bundle is to run, and what its graphs may therefore hold."""

from dataclasses import dataclass
from typing import Literal

TargetName = Literal["cpu", "mobile", "web", "cuda"]


@dataclass(frozen=True)
class Target:
    """`fused`: attention is an operator of onnxruntime's own, for which the target's provider has a kernel.

    `halves`: the provider multiplies fp16 as it stands; elsewhere fp16 is how weights are stored.
    """

    fused: bool
    halves: bool = False


TARGETS: dict[TargetName, Target] = {
    "cpu": Target(fused=True),
    "mobile": Target(fused=False),  # Core ML, NNAPI, QNN and XNNPACK take standard operators only
    "web": Target(fused=False),
    "cuda": Target(fused=True, halves=True),
}
