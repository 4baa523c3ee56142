"""Parameters and MACs against published figures and closed forms."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.torch_ref.macs import count
from kdc_edge.torch_ref.networks import UNet, load_network

TINY: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}


@pytest.mark.parametrize(
    ("options", "parameters", "layers_g", "attention_g"),
    [
        ({}, 859_520_964, 338.6, 63.0),
        ({"layers_per_block": 1}, 579_384_964, 223.7, 37.8),
        ({"layers_per_block": 1, "mid_block_type": None}, 482_346_884, 217.6, 37.8),
        ({"layers_per_block": 1, "mid_block_type": None, **TINY}, 323_384_964, 205.0, 37.8),
    ],
    ids=["SD 1.x", "base", "small", "tiny"],
)
def test_published_unets(options: dict[str, Any], parameters: int, layers_g: float, attention_g: float):
    """BK-SDM's and KDC-Diff's figures at a 64×64 latent."""
    with torch.device("meta"):
        network = UNet(UNet2DConditionModel(sample_size=64, cross_attention_dim=768, **options))
        inputs = {
            "sample": torch.empty(1, 4, 64, 64),
            "timestep": torch.empty(()),
            "encoder_hidden_states": torch.empty(1, 77, 768),
        }
    cost = count(network, inputs)
    assert cost.parameters == parameters
    assert cost.attention_macs / 1e9 == pytest.approx(attention_g, abs=0.06)
    assert (cost.macs - cost.attention_macs) / 1e9 == pytest.approx(layers_g, abs=0.06)


def test_text_encoder_by_hand(tiny_checkpoint):
    """One layer, width 32: q k v out (4·T·D²), the MLP (2·T·D·64), two attention matmuls (2·T²·D)."""
    network = load_network(Checkpoint.open(tiny_checkpoint), "text_encoder")
    cost = count(network, {"input_ids": torch.zeros(1, 77, dtype=torch.int64)})
    assert cost.attention_macs == 2 * 77 * 77 * 32
    assert cost.macs == cost.attention_macs + 4 * 77 * 32 * 32 + 2 * 77 * 32 * 64


def test_counting_moves_no_weight():
    layer = nn.Conv2d(3, 5, 3, padding=1)
    cost = count(layer, {"input": torch.zeros(1, 3, 8, 8)})
    assert (cost.parameters, cost.macs, cost.attention_macs) == (5 * 3 * 9 + 5, 64 * 5 * 3 * 9, 0)
    assert layer.weight.device.type == "cpu"
