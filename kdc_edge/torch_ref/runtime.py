"""The reference runtime: a checkpoint's component in PyTorch fp32, called like every other runtime."""

import numpy as np
import torch

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.pipeline import COMPONENTS, Pipeline
from kdc_edge.ports import Ports, check
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.tokenizer import Tokenizer
from kdc_edge.torch_ref.networks import load_network


class TorchRuntime:
    """Named numpy arrays in, named numpy arrays out."""

    def __init__(self, network: torch.nn.Module, ports: Ports, device: str = "cpu") -> None:
        self.ports = ports
        self._network, self._device = network.to(device), device

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        check(self.ports.inputs, inputs, type(self._network).__name__)
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(np.asarray(array)).to(self._device) for name, array in inputs.items()}
            outputs = self._network(**tensors)
        arrays = outputs if isinstance(outputs, tuple) else (outputs,)
        return {port.name: array.cpu().numpy() for port, array in zip(self.ports.outputs, arrays, strict=True)}

    def close(self) -> None:
        """Let the weights go."""
        del self._network


def open_runtime(checkpoint: Checkpoint, component: str, any_size: bool = False) -> TorchRuntime:
    """`text_encoder`, `unet` or `vae_decoder` of a checkpoint, for latents of its own or of any size."""
    ports = component_ports(checkpoint, pipeline_spec(checkpoint), any_size)[component]
    return TorchRuntime(load_network(checkpoint, component), ports)


def open_pipeline(checkpoint: Checkpoint, device: str = "cpu") -> Pipeline:
    """A checkpoint's pictures by the project's own samplers and noise: those its bundles draw, in fp32."""
    spec = pipeline_spec(checkpoint)
    ports = component_ports(checkpoint, spec)
    components = {name: TorchRuntime(load_network(checkpoint, name), ports[name], device) for name in COMPONENTS}
    return Pipeline(spec, Tokenizer.open(checkpoint.path / "tokenizer", spec.tokens), components, checkpoint.id)
