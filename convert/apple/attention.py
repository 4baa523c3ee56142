"""Attention as the Neural Engine prefers it (SPLIT_EINSUM): (B, C, 1, S) tensors, 1×1 convolutions, one einsum a head.

A drop-in for diffusers' attention processors, with the same weights and the same numbers. After Apple's account in "Deploying
Transformers on the Apple Neural Engine" (machinelearning.apple.com, 2022); written from it.
"""

# B batch, C inner width, d width of a head, S queries, K keys

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitEinsum:
    """An attention processor for `UNet2DConditionModel.set_attn_processor`."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None or attn.spatial_norm is not None or attn.norm_cross or hidden_states.ndim != 3:
            raise NotImplementedError("split-einsum attention is for plain transformer blocks without masks")
        residual = hidden_states
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        x, y = _channels_first(hidden_states), _channels_first(text)
        width = attn.inner_dim // attn.heads
        q = _project(attn.to_q, x).split(width, dim=1)  # heads of (B, d, 1, S)
        k = _project(attn.to_k, y).transpose(1, 3).split(width, dim=3)  # (B, K, 1, d)
        v = _project(attn.to_v, y).split(width, dim=1)  # (B, d, 1, K)
        heads = [_attend(*qkv, attn.scale) for qkv in zip(q, k, v, strict=True)]
        out = _project(attn.to_out[0], torch.cat(heads, dim=1)).squeeze(2).transpose(1, 2)
        out = out + residual if attn.residual_connection else out
        return out / attn.rescale_output_factor


def _channels_first(x: Tensor) -> Tensor:
    """(B, S, C) → (B, C, 1, S)."""
    return x.transpose(1, 2).unsqueeze(2)


def _project(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(B, d, 1, S), (B, K, 1, d), (B, d, 1, K) → (B, d, 1, S)."""
    weights = (torch.einsum("bchq,bkhc->bkhq", q, k) * scale).softmax(dim=1)
    return torch.einsum("bkhq,bchk->bchq", weights, v)
