"""golden/ of a bundle, read: fixed prompts and seeds, what each stage makes of them, how near a port must come.

docs/conformance.md says what each array is, byte for byte; `convert` writes them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdc_edge import schema
from kdc_edge.bundle import AGAIN, Bundle
from kdc_edge.checkpoint import read_header
from kdc_edge.errors import BundleError
from kdc_edge.files import read_json

FORMAT = 1
SETTINGS, VECTORS = "golden/golden.json", "golden/vectors.safetensors"
DTYPES = {
    "text_ids": "int64", "input_ids": "int64", "noise": "float32", "timesteps": "float32", "sigmas": "float32",
    "last_hidden_state": "float32", "latents": "float32", "images": "uint8",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """`golden.json`."""

    format: int
    prompts: tuple[str, ...]
    """Of the pictures; picture p has seed + p."""
    texts: tuple[str, ...]
    """For the tokenizer alone."""
    sampler: str
    steps: int
    guidance: float
    seed: int
    negative: str
    tolerances: dict[str, float]
    """Largest absolute difference that a port may show, by array."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Settings and arrays, as DTYPES names them."""

    settings: Settings
    arrays: dict[str, np.ndarray]


def read(bundle: Bundle) -> Golden:
    """The golden vectors of a bundle. Raises BundleError where there are none or they are damaged."""
    from safetensors.numpy import load_file

    for name in (SETTINGS, VECTORS):
        if name not in bundle.manifest.files:
            raise BundleError(f"{bundle.path} has no {name}; convert the model again")
    data: Any = read_json(bundle.path / SETTINGS)
    schema.check_format(data, FORMAT, bundle.path / SETTINGS, if_older="convert the model again")
    settings = schema.parse(Settings, data, bundle.path / SETTINGS)
    read_header(bundle.path / VECTORS)
    arrays = load_file(bundle.path / VECTORS)
    for name, dtype in DTYPES.items():
        if name not in arrays or arrays[name].dtype != dtype:
            raise BundleError(f"{bundle.path / VECTORS}: has no {dtype} array '{name}'; {AGAIN}")
    return Golden(settings, arrays)
