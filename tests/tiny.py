"""Seeded Stable Diffusion folders of under 0.3M parameters: the same classes and files as the real ones, in milliseconds."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from train.tokenizer import train_tokenizer

WIDTH = 32  # of the text embedding
WORDS = ["red apple", "green heart", "waving hand: medium skin tone", "flag: Norway", "grinning face with big eyes"]


def emoji_checkpoint(folder: Path) -> Path:
    """The emoji-64 shape: AutoencoderTiny, f = 8, 16 latent channels, v-prediction, weights stored in fp16."""
    torch.manual_seed(1)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
        latent_channels=16,
    )
    last = vae.decoder.layers[-1]  # so that pictures are grey with detail, not black
    last.weight.data *= 6
    last.bias.data += 0.5
    return _save(folder, vae, _unet(16, (16, 32)), "v_prediction", torch.float16)


def sd_checkpoint(folder: Path) -> Path:
    """The Stable Diffusion 1.x shape: AutoencoderKL, 4 latent channels, epsilon, scaling 0.18215, fp32 weights."""
    torch.manual_seed(2)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )
    return _save(folder, vae, _unet(4, (16,)), "epsilon", torch.float32)


def clip(folder: Path) -> Path:
    """A CLIP of 32 pixels and 16 dimensions."""
    torch.manual_seed(3)
    vocab = tokenizer()
    ids = {"bos_token_id": vocab.bos_token_id, "eos_token_id": vocab.eos_token_id, "pad_token_id": vocab.pad_token_id}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(vocab), "max_position_embeddings": 77},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    vocab.save_pretrained(folder)
    return folder


def tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's shape with a few merges."""
    return train_tokenizer(WORDS, merges=200)


def _unet(latent_channels: int, widths: tuple[int, ...]) -> UNet2DConditionModel:
    """Cross attention at the top level alone, no mid block: an export takes seconds for each attention."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")[: len(widths)],
        mid_block_type=None,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")[-len(widths) :],
        cross_attention_dim=WIDTH,
        attention_head_dim=1,
        norm_num_groups=8,
    )


def _text_encoder(vocab: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=WIDTH,
            bos_token_id=vocab.bos_token_id,
            eos_token_id=vocab.eos_token_id,
            pad_token_id=vocab.pad_token_id,
        )
    )


def _save(folder: Path, vae: torch.nn.Module, unet: torch.nn.Module, prediction: str, dtype: torch.dtype) -> Path:
    vocab = tokenizer()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )
    text_encoder = _text_encoder(vocab)
    for network in (vae, unet, text_encoder):
        for parameter in network.parameters():  # no two alike: fresh norms are all ones and all zeros
            parameter.data += 0.02 * torch.randn_like(parameter)
        network.to(dtype)
    parts = (vae, text_encoder, vocab, unet, scheduler, None, None)
    StableDiffusionPipeline(*parts, requires_safety_checker=False).save_pretrained(folder)
    return folder
