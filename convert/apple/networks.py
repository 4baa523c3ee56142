"""A checkpoint's networks with the inputs and outputs of Apple's layout, traced."""

# B batch, T text tokens, D text width, C H W latent, f the decoder's upscaling

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convert.apple.attention import SplitEinsum
from kdc_edge.errors import GateError
from kdc_edge.ports import Ports
from kdc_edge.torch_ref.networks import VaeEncoder


class TextEncoder(nn.Module):
    """input_ids (1, T) float32 → last_hidden_state (1, T, D), pooled_outputs (1, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(input_ids.to(torch.int32))
        return out.last_hidden_state, out.pooler_output


class UNet(nn.Module):
    """sample (B, C, H, W), timestep (B,), encoder_hidden_states (B, D, 1, T) → noise_pred (B, C, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        text = encoder_hidden_states.squeeze(2).transpose(1, 2)
        return self.model(sample, timestep, text, return_dict=False)[0]


class VaeDecoder(nn.Module):
    """z (1, C, H, W) → image (1, 3, fH, fW)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Tensor:
        return self.model.decode(z, return_dict=False)[0]


WRAPPERS = {"text_encoder": TextEncoder, "unet": UNet, "vae_decoder": VaeDecoder, "vae_encoder": VaeEncoder}


def wrap(model: nn.Module, component: str, attention: str = "original") -> nn.Module:
    """A diffusers or transformers model in Apple's form."""
    if component == "unet" and attention == "split-einsum":
        model.set_attn_processor(SplitEinsum())
    return WRAPPERS[component](model).eval()


def trace(network: nn.Module, inputs: Sequence[Tensor]) -> torch.jit.ScriptModule:
    """Raises GateError for a network that cannot be traced."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of shapes that become constants, as they must
        try:
            return torch.jit.trace(network, tuple(inputs), check_trace=False, strict=False)
        except RuntimeError as error:
            raise GateError(f"{type(network).__name__} cannot be traced: {str(error).splitlines()[0]}") from error


def example(ports: Ports) -> list[Tensor]:
    """Inputs of the ports' shapes."""
    return [torch.zeros(port.shape) for port in ports.inputs]
