"""Two sides in processes of their own that take turns: one visit of the gate."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kdc_edge.errors import GateError
from kdc_edge.timing import Samples

PAIRS = 10  # of one visit; more visits say more than longer ones
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Tree:
    """A folder whose `kdc_edge` is run."""

    root: Path

    @classmethod
    def here(cls) -> "Tree":
        """The code that is running now."""
        return cls(Path(__file__).resolve().parent.parent)

    def works(self, bundle: Path) -> str | None:
        """Why this revision cannot draw from the bundle here; None if it can."""
        try:
            with Worker((bundle, self), Work("picture", 1, 1, 0)):
                return None
        except GateError as error:
            return str(error)


Entrant = tuple[Path, Tree]  # a bundle, and the code that runs it


@dataclass(frozen=True)
class Work:
    """What is timed."""

    what: str
    """A component, or the picture."""
    steps: int
    """Of the picture."""
    threads: int
    seed: int


class Worker:
    """A process that answers a line with the seconds of one call."""

    def __init__(self, entrant: Entrant, work: Work) -> None:
        bundle, tree = entrant
        numbers = (str(number) for number in (work.threads, work.steps, work.seed))
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                WORKER.read_text(encoding="utf-8") + "\nmain()\n",
                str(bundle.resolve()),
                work.what,
                *numbers,
            ],
            cwd=tree.root,
            env=os.environ | {"PYTHONPATH": str(tree.root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Worker":
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def once(self) -> tuple[float, float]:
        """Wall and CPU seconds of one call."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        wall, cpu = self._read()
        return wall, cpu

    def _read(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            last = errors.strip().splitlines()[-1:]
            raise GateError(f"a timed process ended early: {last[0] if last else 'killed'}")
        return json.loads(line)


def visit(a: Entrant, b: Entrant, index: int, work: Work) -> tuple[Samples, Samples]:
    """Starts both, in turns first A and first B, and lets them take turns A B B A; returns their samples."""
    order = (0, 1) if index % 2 == 0 else (1, 0)
    started = {side: Worker((a, b)[side], work) for side in order}
    taken: tuple[list[tuple[float, float]], ...] = ([], [])
    with started[0], started[1]:
        for pair in range(PAIRS):
            for side in order if pair % 2 == 0 else reversed(order):
                taken[side].append(started[side].once())
    first, second = (Samples(tuple(w for w, _ in pairs), tuple(c for _, c in pairs), 1) for pairs in taken)
    return first, second
