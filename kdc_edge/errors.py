"""What can go wrong and the exit code it becomes. Every message says what, where, seen against wanted, and the remedy.

KdcError
├─ GateError         measured, and not good enough               exit 1
├─ UsageError        a value that cannot be meant                exit 2
├─ MissingBackend    a toolchain, runtime or device is absent    exit 3
├─ ResourceError     memory or disk                              exit 4
└─ BundleError       missing, damaged, unsafe, other format      exit 5
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar


class KdcError(Exception):
    """Anything this project raises on purpose; its text is all a person needs to go on."""

    exit_code: ClassVar[int] = 1


class GateError(KdcError):
    """Measured, and not good enough: parity, quality, regression, a picture that is no picture."""


class UsageError(KdcError):
    """A value that cannot be meant."""

    exit_code = 2


class MissingBackend(KdcError):
    """A toolchain, runtime or device is absent, or was asked for and not used."""

    exit_code = 3


class ResourceError(KdcError):
    """Out of memory or disk."""

    exit_code = 4


class BundleError(KdcError):
    """A file or folder is missing, damaged, unsafe or of another format: bundles, checkpoints, data."""

    exit_code = 5


CheckpointError = BundleError


def suggest(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest option, or nothing."""
    near = difflib.get_close_matches(name, list(options), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def choose(name: str, options: Iterable[str], what: str) -> str:
    """`name` if it is one of `options`, else UsageError with the nearest one."""
    options = list(options)
    if name not in options:
        raise UsageError(f"no {what} '{name}'; there are {', '.join(options)}{suggest(name, options)}")
    return name
