"""Distil an autoencoder into a tiny one: at a few steps a Stable Diffusion decoder costs more than the U-Net.

    python -m train.decoder --model path/to/sd15 -o runs/decoder/checkpoint

The student is an `AutoencoderTiny` on the teacher's latents; it learns what the teacher decodes from them, by pixel and by
the features that the teacher's own encoder finds. The rest of the folder stays as it was.
"""

from typing import TYPE_CHECKING, Any

from kdc_edge import command
from train.quiet import quiet
from train.ranges import check_numbers
from train.recipes import DecoderConfig, refuse_unet_flags

if TYPE_CHECKING:
    from torch import nn

    from train.diffusion import Cache
    from train.tiny_decoder import Teacher
    from train.trainer import Loss, Part


def decoder(config: DecoderConfig) -> dict[str, Any]:
    """Train or resume, save; returns the checkpoint's id, sizes and how near the pictures are."""
    quiet()
    from dataclasses import asdict

    from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
    from kdc_edge.files import refuse_output
    from train import logbook, tiny_decoder
    from train.cache import cached
    from train.folders import assemble, load_pipeline, save_pipeline
    from train.loop import fit, is_main, pick_device, ready
    from train.trainer import seeded

    check_numbers(config)
    refuse_unet_flags(config.loop)
    refuse_output(config.output_dir, config.run_dir, config.force)
    checkpoint = Checkpoint.open(config.model)
    pipeline = load_pipeline(str(config.model))
    teacher = tiny_decoder.Teacher(pipeline.vae.to(pick_device()))
    student = seeded(config.loop.seed, lambda: tiny_decoder.build(pipeline.vae, config.channels, config.blocks))
    settings = {name: getattr(config, name) for name in ("channels", "blocks", "features")}
    key = {"model": checkpoint.id, **settings}
    state = config.run_dir / "decoder.safetensors"
    ready(config.loop, state, key)
    source, table = cached(config.pictures, pipeline, config.toned_share)
    network = tiny_decoder.BothWays(student.to(teacher.device))
    loss = decoder_loss(teacher, source, config.features, config.loop.batch_size)
    key["data"] = table.digest
    history = fit(network, loss, config.loop, state, key=key, label="decoder")
    if not is_main():
        return {}
    metrics = tiny_decoder.measure(teacher, student, source)
    settings = {**settings, "loop": asdict(config.loop)}
    info = CheckpointInfo(
        format=1,
        recipe="decoder",
        config=settings,
        teacher=checkpoint.id,
        data=table.digest,
        sampling=checkpoint.sampling,
        losses=logbook.curve(history),
        metrics=metrics,
    )
    parts = (pipeline.unet, student, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)
    saved = save_pipeline(config.output_dir, assemble(*parts), info, config.force)
    results = {"checkpoint": saved.id, **metrics, **logbook.summary(history)}
    logbook.append(config.log, "decoder", settings | {"model": checkpoint.id}, results)
    return {"path": str(config.output_dir), **results}


def decoder_loss(teacher: "Teacher", source: "Cache", features: float, batch_size: int) -> "Loss":
    """Pixels, features and, for the encoder, latents."""
    import torch
    from torch.nn import functional as F

    def loss(network: "nn.Module", part: "Part") -> dict[str, torch.Tensor]:
        z = source.clean(batch_size, part)
        wanted = teacher.decode(z)
        found, back = network(z, wanted)
        terms = {"l1": F.l1_loss(found, wanted), "l2": F.mse_loss(found, wanted), "latent": 0.1 * F.mse_loss(back, z)}
        if features:
            with torch.no_grad():
                seen = teacher.features(wanted)
            pairs = zip(teacher.features(found), seen, strict=True)
            terms["features"] = features * torch.stack([F.mse_loss(a, b) / b.square().mean() for a, b in pairs]).mean()
        return terms

    return loss


def main(argv: list[str] | None = None) -> None:
    command.run(decoder, argv, prog="python -m train.decoder")


if __name__ == "__main__":
    main()
