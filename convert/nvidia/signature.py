"""What a graph is but for its weights' values: an engine of one takes the weights of another that agrees in it.

`structure` is a SHA-256 over operators, ends and whole-number constants (shapes and axes decide kernels); weights are
listed by name.
"""

import hashlib
from pathlib import Path
from typing import Any


def signature(path: Path) -> dict[str, Any]:
    """Of the ONNX file at `path`, as JSON data."""
    import onnx
    from onnx import TensorProto

    graph = onnx.load(path, load_external_data=False).graph
    whole = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}
    fixed = [tensor for tensor in graph.initializer if tensor.data_type in whole]
    digest = hashlib.sha256()
    for part in (*graph.node, *graph.input, *graph.output, *fixed):
        digest.update(part.SerializeToString(deterministic=True))
    weights = {
        tensor.name: {"type": TensorProto.DataType.Name(tensor.data_type).lower(), "shape": list(tensor.dims)}
        for tensor in graph.initializer
        if tensor.data_type not in whole
    }
    return {"structure": digest.hexdigest(), "weights": weights}
