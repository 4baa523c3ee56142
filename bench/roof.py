"""The machine's roof: the most it multiplies and moves in a second, by probes of a fraction of a second each.

The matrix products are ONNX graphs of one operator, written here byte by byte, so that they run through the same runtime as
the bundles and need no package of their own.
"""

# N side of the square matrices

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdc_edge import timing
from kdc_edge.runtimes import ort

N = 768
COPY_BYTES = 1 << 28  # larger than any last-level cache
SAMPLES = 7
# ONNX's numbers of element types (onnx.proto, TensorProto.DataType)
FLOAT, UINT8, INT8, INT32, FLOAT16 = 1, 2, 3, 6, 10
PROBES: dict[str, tuple[str, tuple[int, int], int, Any]] = {
    "fp32": ("MatMul", (FLOAT, FLOAT), FLOAT, np.float32),
    "fp16": ("MatMul", (FLOAT16, FLOAT16), FLOAT16, np.float16),
    "int8": ("MatMulInteger", (UINT8, INT8), INT32, np.uint8),
}


@dataclass(frozen=True)
class Roof:
    """`macs_per_s` by type of number, None where the runtime has no kernel for it; `bytes_per_s` read and written."""

    macs_per_s: dict[str, float | None]
    bytes_per_s: float


def measure(threads: int | None = None) -> Roof:
    """Best of a few calls each: a roof is what the machine can do, not what it did at a bad moment."""
    rates = {name: _matmul(name, threads) for name in PROBES}
    return Roof(rates, _bandwidth())


def _matmul(name: str, threads: int | None) -> float | None:
    onnxruntime = ort.toolchain()
    operator, kinds, result, dtype = PROBES[name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            graph(operator, kinds, result), options, providers=["CPUExecutionProvider"]
        )
    except Exception:  # the library's own classes derive from nothing narrower
        return None
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, (N, N)).astype(dtype)
    b = rng.integers(0, 3, (N, N)).astype(np.int8 if name == "int8" else dtype)
    taken = timing.measure(lambda: session.run(None, {"a": a, "b": b}), warmup=2, samples=SAMPLES)
    return N**3 / min(taken.wall)


def _bandwidth() -> float:
    """Bytes read and written by one thread's copy."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    taken = timing.measure(lambda: np.copyto(target, source), warmup=1, samples=SAMPLES)
    return 2 * COPY_BYTES / min(taken.wall)


def graph(operator: str, kinds: tuple[int, int], result: int) -> bytes:
    """An ONNX model `c = operator(a, b)` over N×N matrices, as protobuf (onnx.proto: field numbers in the comments)."""
    node = _text(1, "a") + _text(1, "b") + _text(2, "c") + _text(4, operator)  # input, output, op_type
    values = [_value(name, kind) for name, kind in zip("ab", kinds, strict=True)]
    body = _message(1, node) + _text(2, "probe")  # node, name
    body += b"".join(_message(11, value) for value in values) + _message(12, _value("c", result))  # input, output
    opset = _number(2, 18)  # version of the default domain
    return _number(1, 8) + _message(7, body) + _message(8, opset)  # ir_version, graph, opset_import


def _value(name: str, kind: int) -> bytes:
    shape = b"".join(_message(1, _number(1, N)) for _ in range(2))  # dim { dim_value }
    tensor = _number(1, kind) + _message(2, shape)  # elem_type, shape
    return _text(1, name) + _message(2, _message(1, tensor))  # name, type { tensor_type }


def _number(tag: int, value: int) -> bytes:
    return bytes([tag << 3]) + bytes(_varint(value))


def _text(tag: int, value: str) -> bytes:
    return _message(tag, value.encode())


def _message(tag: int, value: bytes) -> bytes:
    return struct.pack("B", tag << 3 | 2) + bytes(_varint(len(value))) + value


def _varint(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value
