"""A runtime without a network: outputs of the declared names and shapes, a function of the inputs alone.

For developing and testing apps: it starts at once, needs no toolchain, and answers the same call the same way.
"""

import zlib

import numpy as np

from kdc_edge.bundle import Bundle
from kdc_edge.ports import Ports, check, resolve
from kdc_edge.runtimes import Options


class FakeRuntime:
    """Standard normal noise, seeded by the inputs; pictures have `upscaling` times the latents' height and width."""

    def __init__(self, component: str, ports: Ports, upscaling: int) -> None:
        self.ports = ports
        self._component, self._upscaling = component, upscaling

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        sizes = check(self.ports.inputs, inputs, self._component)
        seed = zlib.crc32(self._component.encode())
        for port in self.ports.inputs:
            seed = zlib.crc32(np.ascontiguousarray(inputs[port.name]).tobytes(), seed)
        for axis in {"height", "width"} & sizes.keys():
            sizes[f"image_{axis}"] = sizes[axis] * self._upscaling
        state = np.random.RandomState(seed)
        return {p.name: state.standard_normal(resolve(p, sizes)).astype(p.dtype) for p in self.ports.outputs}

    def close(self) -> None:
        """Nothing is held."""


def open(bundle: Bundle, component: str, options: Options) -> FakeRuntime:
    spec = bundle.manifest.pipeline
    return FakeRuntime(component, bundle.component(component).ports, spec.image_size[0] // spec.latent[1])


def placement(bundle: Bundle, component: str, options: Options) -> dict[str, int]:
    """There are no operators."""
    bundle.component(component)
    return {"fake": 0}


def available() -> list[str]:
    return ["fake"]
