"""Work in a process of its own: its memory is its own, is measured, and goes back when it ends."""

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

from kdc_edge.errors import ResourceError

P = ParamSpec("P")
T = TypeVar("T")
STATUS = Path("/proc/self/status")
REMEDY = "close other programs, or use a machine with more memory"


def in_own_process(what: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`fn(…)` in a fresh interpreter. Raises what it raises, and ResourceError where the system killed it."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as pool:
            return pool.submit(fn, *args, **kwargs).result()
    except BrokenProcessPool:
        raise ResourceError(f"{what}: its process was killed, most likely for want of memory; {REMEDY}") from None
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise ResourceError(f"{what}: out of memory; {REMEDY}") from error
        raise


def peak_mib() -> float:
    """The most memory this process ever held."""
    if STATUS.exists():
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _quiet() -> None:
    """Exporters log what they skip; what matters comes back as a result or an error."""
    logging.disable(logging.WARNING)
