"""How a package stores its weights: one small config per scheme, chosen by name, else by operator, else the default.

| precision | text encoder | U-Net | decoder, encoder |
|---|---|---|---|
| fp32 | fp32 | fp32 | fp32 |
| fp16 | fp16 | fp16 | fp16 |
| int8 | palette of 8 bits | int8, fp16 in the layers that suffer most | palette of 8 bits |
| int4 | palette of 8 bits | int4 in blocks of 32 | palette of 8 bits |
| palette8 | palette | palette | palette |
| palette6, palette4, palette3, palette2 | palette of 8 bits | palette | palette of 8 bits |
| mixed | palette of 8 bits | palettes of 2 to 8 bits by tensor, or fp16 | palette of 8 bits |

Arithmetic is fp16 everywhere but in fp32. Embeddings are looked up, not multiplied, and stay as they are.
A plan is JSON: {"unet": {"default": {"palette": 6}, "names": {"conv_in*": null}, "ops": {"linear": {"linear": 8}}}}.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from convert.apple.targets import TARGETS, TargetName
from kdc_edge import schema
from kdc_edge.errors import BundleError, UsageError, choose
from kdc_edge.files import read_json

SMALLEST = 2048  # numbers of a tensor that is worth a table
PALETTE_BITS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Palette:
    """Each weight is an index into a table of 2^bits numbers: of the tensor, or of `group` output channels."""

    palette: int
    uniform: bool = False
    """A table of equal steps; else the one of least squared error (k-means)."""
    group: int | None = None
    int8_table: bool = False
    """The table itself as int8 and a scale."""

    def __post_init__(self) -> None:
        if self.palette not in PALETTE_BITS:
            raise ValueError(f"palette is {self.palette} bits, must be one of {', '.join(map(str, PALETTE_BITS))}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group}, must be at least 1")


@dataclass(frozen=True)
class Linear:
    """Integers and a scale per output channel, or for every `block` of its inputs."""

    linear: Literal[8, 4]
    block: int | None = None
    symmetric: bool = True


@dataclass(frozen=True)
class Sparse:
    """The `sparse` share of smallest weights is dropped; what is left is stored by `then`."""

    sparse: float
    then: Palette | Linear | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sparse < 1:
            raise ValueError(f"sparse is {self.sparse}, must be between 0 and 1")


Scheme = Palette | Linear | Sparse | None


@dataclass(frozen=True)
class Plan:
    """What becomes of a component's weights; `None` leaves them as they are."""

    default: Palette | Linear | Sparse | None = None
    ops: dict[str, Palette | Linear | Sparse | None] = field(default_factory=dict)
    """By the operator that reads the weight: conv, linear, matmul, gather."""
    names: dict[str, Palette | Linear | Sparse | None] = field(default_factory=dict)
    """By patterns of the weight's name in the checkpoint; the first that fits."""

    def of(self, name: str, operator: str) -> Scheme:
        """By name, else by operator, else the default."""
        for pattern, scheme in self.names.items():
            if fnmatch(name, pattern):
                return scheme
        return self.ops.get(operator, self.default)

    def schemes(self) -> Iterator[Scheme]:
        yield from (self.default, *self.ops.values(), *self.names.values())


@dataclass(frozen=True)
class Plans:
    """`--plan FILE`."""

    text_encoder: Plan = Plan()
    unet: Plan = Plan()
    vae_decoder: Plan = Plan()
    vae_encoder: Plan = Plan()


Precision = Literal[
    "fp32", "fp16", "int8", "int4", "palette8", "palette6", "palette4", "palette3", "palette2", "mixed"
]  # fmt: skip
EMBEDDINGS: dict[str, Palette | Linear | Sparse | None] = {"gather": None}


def _all(default: Scheme, sides: Scheme) -> dict[str, Plan]:
    """`default` for the U-Net, `sides` for what stands beside it."""
    chosen = {"text_encoder": sides, "unet": default, "vae_decoder": sides, "vae_encoder": sides}
    return {name: Plan(scheme, EMBEDDINGS) for name, scheme in chosen.items()}


PRECISIONS: dict[Precision, dict[str, Plan]] = {
    "fp32": _all(None, None),
    "fp16": _all(None, None),
    "int8": _all(Linear(8), Palette(8)),
    "int4": _all(Linear(4, 32), Palette(8)),
    "palette8": _all(Palette(8), Palette(8)),
    "palette6": _all(Palette(6), Palette(8)),
    "palette4": _all(Palette(4), Palette(8)),
    "palette3": _all(Palette(3), Palette(8)),
    "palette2": _all(Palette(2), Palette(8)),
    "mixed": _all(None, Palette(8)),
}


def evened(plan: Plan) -> Plan:
    """The same with palettes of equal steps."""

    def even(scheme: Scheme) -> Scheme:
        return replace(scheme, uniform=True) if isinstance(scheme, Palette) else scheme

    ops, names = ({key: even(s) for key, s in table.items()} for table in (plan.ops, plan.names))
    return Plan(even(plan.default), ops, names)


def read_plans(path: Path) -> dict[str, Plan]:
    """Raises UsageError for a file that is no plan."""
    try:
        plans = schema.parse(Plans, read_json(path), f"--plan {path}")
    except BundleError as error:
        raise UsageError(str(error)) from None
    return {part.name: getattr(plans, part.name) for part in fields(plans)}


def require(plans: Mapping[str, Plan], target: TargetName) -> None:
    """Raises UsageError for a scheme that the target does not read."""
    if TARGETS[target].blocks:
        return
    for name, plan in plans.items():
        for scheme in plan.schemes():
            if what := _new(scheme):
                raise UsageError(f"{name}: {what} is read from ios18 on, not by {target}; choose --target ios18")


def _new(scheme: Scheme) -> str | None:
    """What of a scheme came with iOS 18."""
    match scheme:
        case Palette(palette=3):
            return "a palette of 3 bits"
        case Palette(group=int()):
            return "a palette for each group of channels"
        case Palette(int8_table=True):
            return "a palette with an int8 table"
        case Linear(linear=4):
            return "a 4-bit integer"
        case Linear(block=int()):
            return "a scale for each block"
        case Sparse(then=Palette() | Linear()):
            return "a sparse weight that is made smaller still"
    return None


def floor_db(plan: Plan, precision: str) -> float:
    """The least SNR to PyTorch fp32; of fewer than 8 bits nothing is asked but that there is more signal than noise."""
    if precision == "fp32":
        return 90.0
    return min(map(_floor_db, plan.schemes()))


def _floor_db(scheme: Scheme) -> float:
    match scheme:
        case None:
            return 50.0
        case Palette(palette=8) | Linear(linear=8):
            return 33.0
    return 0.0


def bits(scheme: Scheme, stored: int = 16) -> float:
    """Of a weight in the file, about: for the estimate. `stored` where nothing becomes of it."""
    match scheme:
        case None:
            return stored
        case Palette(palette=n):
            return n
        case Linear(linear=n, block=block):
            return n if block is None else n + 16 / block
        case Sparse(sparse=share, then=then):
            return 1 + (1 - share) * bits(then)
    raise AssertionError(scheme)


def check_names(plan: Plan, names: Sequence[str], operators: Sequence[str]) -> None:
    """Raises UsageError for a pattern that fits no weight, or an operator that reads none."""
    for pattern in plan.names:
        if not any(fnmatch(name, pattern) for name in names):
            raise UsageError(f"--plan: no weight is named '{pattern}'; the first is {names[0]}")
    for operator in plan.ops:
        if operator != "gather":
            choose(operator, operators, "operator of --plan that reads weights")
