"""What block removal keeps of a U-Net, and its presets; no torch."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class StudentSpec:
    """What block removal keeps of a U-Net (arXiv 2505.06995; BK-SDM, 2305.15798)."""

    pairs_per_stage: int | tuple[int, ...] = 1
    """Residual-and-attention pairs left in each down stage, or in each by itself from the outside in; the up stage that
    mirrors it keeps one more."""
    keep_mid: bool = True
    drop_innermost: bool = False


def kdc_base() -> StudentSpec:
    """One pair per stage. 579,384,964 parameters from SD 1.x."""
    return StudentSpec()


def kdc_small() -> StudentSpec:
    """KDC-Diff's U-Net: one pair per stage, no mid block. 482,346,884 parameters from SD 1.x; 0.64 of its MACs."""
    return replace(kdc_base(), keep_mid=False)


def kdc_tiny() -> StudentSpec:
    """As kdc_small without the innermost stage. 323,384,964 parameters from SD 1.x."""
    return replace(kdc_small(), drop_innermost=True)


def kdc_3stage() -> StudentSpec:
    """As kdc_base without the innermost stage. 420,423,044 parameters from SD 1.x."""
    return replace(kdc_base(), drop_innermost=True)


STUDENTS = {"kdc-base": kdc_base, "kdc-small": kdc_small, "kdc-tiny": kdc_tiny, "kdc-3stage": kdc_3stage}
StudentName = Literal["kdc-base", "kdc-small", "kdc-tiny", "kdc-3stage"]
