"""A small CLIP: the generator's text encoder, and the judge that measures it.

Both are plain `transformers` `CLIPModel`s trained with the symmetric InfoNCE loss of CLIP (arXiv 2103.00020, figure 3), on
different pictures with different seeds. The image tower sees pictures shifted, blurred and noised, so that a slightly soft
picture is judged by what it shows.
"""

# B batch, T text tokens, H W pixels

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from kdc_edge.errors import UsageError
from train.captions import CaptionChoice
from train.recipes import ContrastiveConfig
from train.tokenizer import POSITIONS, pad_ids
from train.trainer import Loss, Part


def build(config: ContrastiveConfig, tokenizer: CLIPTokenizer, size: int) -> CLIPModel:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": 2 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.text_heads,
        "max_position_embeddings": POSITIONS,
        "projection_dim": config.projection,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": config.vision_width,
        "intermediate_size": 3 * config.vision_width,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "image_size": size,
        "patch_size": config.patch,
        "projection_dim": config.projection,
    }
    settings = CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.projection)
    return CLIPModel._from_config(settings, attn_implementation="eager")  # on CPUs the fused one trains a third slower


def text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The text tower alone, as Stable Diffusion's pipelines hold it."""
    encoder = CLIPTextModel(clip.config.text_config)
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.eval().requires_grad_(False)


class CaptionIds(CaptionChoice):
    """Token ids of every caption of every picture, (M, T)."""

    def __init__(self, tokenizer: CLIPTokenizer, captions: Sequence[Sequence[str]]) -> None:
        super().__init__(captions)
        self.end = tokenizer.eos_token_id  # pads, too
        self.ids = pad_ids(tokenizer, [text for group in captions for text in group])


def draw(count: int, batch_size: int, neighbours: int, generator: torch.Generator) -> Tensor:
    """(batch_size,) of `count` pictures, none twice, in runs of `neighbours`; the rest of a division is left out."""
    neighbours = min(neighbours, count, batch_size)
    starts = torch.randperm(count // neighbours, generator=generator)[: batch_size // neighbours] * neighbours
    shift = torch.randint(neighbours, (), generator=generator)  # so that runs do not always begin at the same pictures
    return ((starts + shift)[:, None] + torch.arange(neighbours)).flatten() % count


def augment(x: Tensor, config: ContrastiveConfig, generator: torch.Generator) -> Tensor:
    """Shift by up to 3 pixels, blur a share, add noise. `x` (B, 3, H, W) in [-1, 1]."""
    shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
    x = torch.roll(x, shift, (2, 3))
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    blurred = (torch.rand(len(x), 1, 1, 1, generator=generator) < config.blur).to(x.device)
    level = config.noise * torch.rand(len(x), 1, 1, 1, generator=generator)
    return torch.where(blurred, soft, x) + (level * torch.randn(x.shape, generator=generator)).to(x)


def contrastive_loss(pixels: Tensor, ids: CaptionIds, batch_size: int, config: ContrastiveConfig) -> Loss:
    """`pixels` (N, 3, H, W) uint8, in the order of `ids`. A picture is told from the others of its part of the batch.

    Raises UsageError for fewer than two pictures.
    """
    if len(pixels) < 2:
        raise UsageError(f"{len(pixels)} picture is too few: it is learned by telling it from others; give two or more")

    def loss(clip: nn.Module, part: Part) -> Mapping[str, Tensor]:
        generator = part.generator
        index = draw(len(pixels), batch_size, config.neighbours, generator)[part.rows(batch_size)]
        x = augment(pixels[index].to(part.device).float() / 127.5 - 1, config, generator)
        tokens = trim(ids.ids[ids.rows(index, generator)], ids.end).to(part.device)
        return {"contrastive": clip(input_ids=tokens, pixel_values=x, return_loss=True).loss}

    return loss


def trim(tokens: Tensor, end: int) -> Tensor:
    """Drop the columns that are padding in every row; a causal encoder's pooled output does not see them."""
    used = int((tokens != end).sum(1).max()) + 1
    return tokens[:, :used]
