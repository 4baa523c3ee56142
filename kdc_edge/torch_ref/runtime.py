"""The reference runtime: a checkpoint's component in PyTorch fp32 on the CPU, called like every other runtime."""

import numpy as np
import torch

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.ports import Ports, check
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.torch_ref.networks import load_network


class TorchRuntime:
    """Named numpy arrays in, named numpy arrays out."""

    def __init__(self, network: torch.nn.Module, ports: Ports) -> None:
        self.ports = ports
        self._network = network

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check(self.ports.inputs, inputs, type(self._network).__name__)
        with torch.inference_mode():
            outputs = self._network(**{name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()})
        arrays = outputs if isinstance(outputs, tuple) else (outputs,)
        return {port.name: array.numpy() for port, array in zip(self.ports.outputs, arrays, strict=True)}

    def close(self) -> None:
        """Let the weights go."""
        del self._network


def open_runtime(checkpoint: Checkpoint, component: str) -> TorchRuntime:
    """`text_encoder`, `unet` or `vae_decoder` of a checkpoint."""
    ports = component_ports(checkpoint, pipeline_spec(checkpoint))[component]
    return TorchRuntime(load_network(checkpoint, component), ports)
