"""A `cudart` of cuda-python that keeps device memory in bytearrays and does nothing before it is waited for.

Everything goes onto a stream and runs at its next synchronisation, so a result that is read too early is not there; while
a stream is captured, work goes into a graph instead, and pageable copies are refused as they are by the driver.
"""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

OK, INVALID, NO_MEMORY = 0, 1, 2
BASE, STEP = 1 << 40, 1 << 32  # of addresses, that nothing else has
SIZE = 1 << 34  # of the device


class Code(int):
    name = "error"


class Cuda:
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, sm: tuple[int, int] = (8, 7), capturable: bool = True, driver: int = 12060) -> None:
        self.memory: dict[int, bytearray] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.sm, self.capturable, self.driver = sm, capturable, driver
        self.launches, self.graphs, self.streams, self.made = 0, 0, 0, 0

    def cudaGetDeviceProperties(self, number: int) -> tuple[Any, ...]:
        about = {"name": b"Orin", "major": self.sm[0], "minor": self.sm[1], "totalGlobalMem": SIZE}
        return Code(OK), SimpleNamespace(**about)

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return Code(OK), self.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, ...]:
        return Code(OK), 12060

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size + sum(map(len, self.memory.values())) > SIZE:
            failed = Code(NO_MEMORY)
            failed.name = "cudaErrorMemoryAllocation"
            return failed, 0
        self.made += 1
        self.memory[BASE + self.made * STEP] = bytearray(size)
        return Code(OK), BASE + self.made * STEP

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        del self.memory[address]
        return (Code(OK),)

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        self.streams += 1
        return Code(OK), 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams -= 1
        return (Code(OK),)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        work, self.queue = self.queue, []
        for step in work:
            step()
        return (Code(OK),)

    def cudaMemcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> tuple[Any, ...]:
        if self.captured is not None:
            return (Code(INVALID),)

        def copy() -> None:
            if kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice:
                self.memory[target][:count] = ctypes.string_at(source, count)
            else:
                ctypes.memmove(target, bytes(self.memory[source][:count]), count)

        self.queue.append(copy)
        return (Code(OK),)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        assert not self.queue, "captured with work still on the stream"
        self.captured = []
        return (Code(OK),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        graph, self.captured = self.captured, None
        return Code(OK if self.capturable else INVALID), graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        self.graphs += 1
        return Code(OK), list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (Code(OK),)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.graphs -= 1
        return (Code(OK),)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        self.queue.extend(graph)
        return (Code(OK),)

    def enqueue(self, stream: int, work: Callable[[], None]) -> bool:
        """For the fake TensorRT; false where it cannot be captured."""
        if self.captured is not None and not self.capturable:
            return False
        (self.queue if self.captured is None else self.captured).append(work)
        return True

    def array(self, address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Device memory as numbers."""
        count = int(np.prod(shape))
        return np.frombuffer(self.memory[address], dtype, count).reshape(shape)
