"""A checkpoint's components as torch modules with the port table's inputs and outputs, in fp32 and eval mode.

Weights come from safetensors only, whole or in shards, stored in any float type. The teacher and the student, the
autoencoder with and without a KL head are the same to the rest of the project: one of three networks.
"""

# B batch, T text tokens, D text width, C latent channels, H W latent grid, f the decoder's upscaling

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import BundleError, suggest
from kdc_edge.spec import FOLDERS
from kdc_edge.torch_ref.quiet import quiet

CLASSES = {
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    "CLIPTextModel": "transformers",
    "UNet2DConditionModel": "diffusers",
}
DTYPE = {"diffusers": "torch_dtype", "transformers": "dtype"}
# plain attention in the text encoder: its fused one guards against fully masked rows, which cost nodes and never occur
LIBRARY_OPTIONS: dict[str, dict[str, Any]] = {
    "diffusers": {},
    "transformers": {"attn_implementation": "eager"},
}


class TextEncoder(nn.Module):
    """input_ids (B, T) int64 → last_hidden_state (B, T, D), pooler_output (B, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(input_ids)
        return out.last_hidden_state, out.pooler_output


class UNet(nn.Module):
    """sample (B, C, H, W), timestep (), encoder_hidden_states (B, T, D) → out_sample (B, C, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]


class VaeDecoder(nn.Module):
    """latent_sample (B, C, H, W), already divided by the scaling factor → sample (B, 3, fH, fW) in [-1, 1].

    Takes the encoder out of `model`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for part in ("encoder", "quant_conv"):
            setattr(model, part, None)

    def forward(self, latent_sample: Tensor) -> Tensor:
        return self.model.decode(latent_sample, return_dict=False)[0]


class VaeEncoder(nn.Module):
    """sample (B, 3, fH, fW) in [-1, 1] → latent_parameters (B, 2C, H, W), mean and log variance; a tiny one's (B, C, H, W).

    Takes the decoder out of `model`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for part in ("decoder", "post_quant_conv"):
            setattr(model, part, None)

    def forward(self, sample: Tensor) -> Tensor:
        out: Tensor = self.model.encoder(sample)
        last = getattr(self.model, "quant_conv", None)
        return out if last is None else last(out)


NETWORKS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "text_encoder": TextEncoder,
    "unet": UNet,
    "vae_decoder": VaeDecoder,
    "vae_encoder": VaeEncoder,
}


def load_network(checkpoint: Checkpoint, component: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """One of NETWORKS over the checkpoint's weights."""
    return NETWORKS[component](load_model(checkpoint, FOLDERS[component], dtype)).eval()


def outline(checkpoint: Checkpoint, component: str) -> nn.Module:
    """One of NETWORKS without numbers: what layers it has and what they are called."""
    cls, where = _model_class(checkpoint, FOLDERS[component]), checkpoint.path / FOLDERS[component]
    with torch.device("meta"), quiet("diffusers", "transformers"):
        if CLASSES[cls.__name__] == "diffusers":
            model = cls.from_config(checkpoint.config(FOLDERS[component]))
        else:
            model = cls(cls.config_class.from_pretrained(where, local_files_only=True))
    return NETWORKS[component](model)


def load_model(checkpoint: Checkpoint, folder: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The diffusers or transformers model of `unet`, `vae` or `text_encoder`, without gradients.

    Raises BundleError for a class outside CLASSES and for weights that are absent, damaged or do not fit the config.
    """
    cls = _model_class(checkpoint, folder)
    where = checkpoint.path / folder
    library = CLASSES[cls.__name__]
    options = LIBRARY_OPTIONS[library] | {DTYPE[library]: dtype}
    try:
        with quiet("diffusers", "transformers"):
            model, info = cls.from_pretrained(
                where, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{where}: cannot load {cls.__name__}: {error}; fetch the checkpoint again") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise BundleError(f"{where}: {len(missing)} weights missing, first {missing[0]}; fetch the checkpoint again")
    return model.eval().requires_grad_(False)


def _model_class(checkpoint: Checkpoint, folder: str) -> Any:
    config = checkpoint.config(folder)
    name = config.get("_class_name") or next(iter(config.get("architectures") or []), None)
    if name not in CLASSES:
        raise BundleError(
            f"{checkpoint.path / folder}: class is {name}, supported are {', '.join(CLASSES)}{suggest(str(name), CLASSES)}"
        )
    return getattr(importlib.import_module(CLASSES[name]), name)
