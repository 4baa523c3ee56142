"""Components that take turns in memory: one is open at a time, opened when it is called and closed when another is."""

from collections.abc import Callable, Mapping

import numpy as np

from kdc_edge.ports import Ports
from kdc_edge.runtimes import Runtime


class Turns:
    """`openers` by name; whose turn it is stays open between its calls."""

    def __init__(self, openers: Mapping[str, Callable[[], Runtime]]) -> None:
        self._openers = openers
        self._name: str | None = None
        self._open: Runtime | None = None

    def component(self, name: str, ports: Ports) -> "Turn":
        """A runtime that stands in for the component."""
        return Turn(self, name, ports)

    def take(self, name: str) -> Runtime:
        """The component, after closing the one before."""
        if self._open is None or self._name != name:
            self.close()
            self._open, self._name = self._openers[name](), name
        return self._open

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


class Turn:
    """One component of them."""

    def __init__(self, turns: Turns, name: str, ports: Ports) -> None:
        self.ports = ports
        self._turns, self._name = turns, name

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self._turns.take(self._name)(**inputs)

    def close(self) -> None:
        self._turns.close()
