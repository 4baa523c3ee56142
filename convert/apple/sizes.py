"""What a conversion will take and what its packages will weigh, before it starts: from the headers of the weights.

Memory is `BASE_MIB + a factor × weights in fp32`: `HOLLOW` where the network is converted without them (692 MiB were measured
on 36, 3,965 on 3,279), `WHOLE` in fp32, or where a plan is measured on the network first (710 and 6,955, when all were so).
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from convert.apple.schemes import SMALLEST, Palette, Plan, Scheme, bits
from convert.estimate import SPARE_MIB, Estimate, checking_mib
from kdc_edge.checkpoint import Checkpoint, read_header, weight_files
from kdc_edge.spec import FOLDERS

BASE_MIB, HOLLOW, WHOLE = 640, 1.03, 1.95
ENCODER, DECODER = ("encoder.", "quant_conv."), ("decoder.", "post_quant_conv.")
OTHER = {"vae_decoder": ENCODER, "vae_encoder": DECODER}  # half of an autoencoder


@dataclass(frozen=True)
class Tensor:
    """A weight in a checkpoint's files."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def operator(self) -> str:
        if "embedding" in self.name and "time" not in self.name and len(self.shape) == 2:
            return "gather"
        return "conv" if len(self.shape) == 4 else "linear"


def tensors(checkpoint: Checkpoint, component: str) -> Iterator[Tensor]:
    """The weights that the component's program has."""
    for path in weight_files(checkpoint.path / FOLDERS[component]):
        for name, entry in read_header(path).items():
            if name.startswith(OTHER.get(component, ())):
                continue
            if entry["dtype"].startswith(("F", "BF")):
                yield Tensor(name, tuple(entry["shape"]))


def weight_bytes(checkpoint: Checkpoint, component: str, plan: Plan, stored: int, budget: float | None = None) -> int:
    """Of the package's weight file; `stored` bits where nothing becomes of a weight."""
    if budget is not None:
        return round(budget * 2**20)
    return round(sum(_bytes(t, plan.of(t.name, t.operator), stored) for t in tensors(checkpoint, component)))


def estimate(checkpoint: Checkpoint, predicted: Mapping[str, int], whole: Collection[str]) -> Estimate:
    """Peak memory of each component's process, `whole` ones in fp32, and the disk that the bundle takes."""
    elements = {name: sum(tensor.size for tensor in tensors(checkpoint, name)) for name in predicted}
    factors = {name: WHOLE if name in whole else HOLLOW for name in predicted}
    memory = {name: math.ceil(BASE_MIB + factors[name] * count * 4 / 2**20) for name, count in elements.items()}
    disk = SPARE_MIB + math.ceil(sum(predicted.values()) / 2**20)
    return Estimate(memory, disk, checking_mib(checkpoint))


def _bytes(tensor: Tensor, scheme: Scheme, stored: int) -> float:
    if tensor.size <= SMALLEST or len(tensor.shape) < 2:
        return tensor.size * stored / 8
    tables = 0
    if isinstance(scheme, Palette):
        parts = 1 if scheme.group is None or tensor.shape[0] % scheme.group else tensor.shape[0] // scheme.group
        tables = parts * 2**scheme.palette * (1 if scheme.int8_table else 2)
    return tensor.size * bits(scheme, stored) / 8 + tables
