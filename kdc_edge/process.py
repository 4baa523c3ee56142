"""Work in processes of their own: their memory is their own, is measured, and goes back when they end."""

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from kdc_edge.errors import ResourceError

P = ParamSpec("P")
T = TypeVar("T")
STATUS = Path("/proc/self/status")
REMEDY = "close other programs, or use a machine with more memory"


def in_own_process(what: str, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`fn(…)` in a fresh interpreter. Raises what it raises, and ResourceError where the system killed it."""
    with processes(what, 1) as pool:
        done = pool.submit(fn, *args, **kwargs)
        if isinstance(done.exception(), RuntimeError):  # as that of a process that was killed
            done.result()
    return done.result()  # after what only `fn` raises, its process ends in its own time, and tidies up


@contextmanager
def processes(what: str, count: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh interpreters, which end at once where the block raises or this process ends, however it does.

    Raises ResourceError where the system killed one or refused it memory.
    """
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin) as pool:
        try:
            yield pool
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ResourceError(
                    f"{what}: its process was killed, most likely for want of memory; {REMEDY}"
                ) from None
            if isinstance(error, RuntimeError) and "allocate memory" in str(error):
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


def _begin() -> None:
    """Exporters log what they skip; what matters comes back as a result or an error."""
    logging.disable(logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
