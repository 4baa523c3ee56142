"""Turn a model into one that draws in 1 to 8 steps without guidance: latent consistency distillation (arXiv 2310.04378).

    python -m train.fewstep --model assets/emoji-64/student -o runs/fewstep/checkpoint

The model itself, guided, jumps once along its own trajectory; the network in training must say at both ends of the jump that
the trajectory leads to the same picture. The target is answered by the averaged weights. The result is a folder with
diffusers' `LCMScheduler`.
"""

from typing import TYPE_CHECKING, Any

from kdc_edge import command
from train.quiet import quiet
from train.recipes import FewStepConfig

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import nn

    from train.consistency import Solver
    from train.diffusion import Cache
    from train.trainer import Loss, Part


def fewstep(config: FewStepConfig) -> dict[str, Any]:
    """Train or resume, save; returns the checkpoint's id and losses."""
    quiet()
    from dataclasses import asdict, replace

    from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
    from kdc_edge.files import refuse_existing
    from train import diffusion, logbook
    from train.cache import cached
    from train.consistency import Solver, lcm_scheduler
    from train.drawing import sampler
    from train.folders import load_pipeline, save_pipeline, with_unet
    from train.loop import fit, is_main, pick_device

    refuse_existing(config.output_dir, config.force)
    checkpoint = Checkpoint.open(config.model)
    pipeline = load_pipeline(str(config.model))
    solver = Solver.of(pipeline.scheduler, config.guidance)  # UsageError before anything is computed
    teacher = pipeline.unet.to(pick_device())
    source, table = cached(config.pictures, pipeline, config.toned_share)
    source = replace(source, dropout=0.0)
    network = diffusion.for_training(load_pipeline(str(config.model)).unet, teacher.device)
    loss = consistency_loss(network, teacher, source, solver, config.loop.batch_size)
    few = with_unet(pipeline, network)
    few.scheduler = lcm_scheduler(pipeline.scheduler)
    sample = sampler(few, table.captions, config.run_dir / "samples", steps=config.steps_drawn, guidance=1.0)
    key = {"model": checkpoint.id, "data": table.digest, "guidance": config.guidance}
    state = config.run_dir / "unet.safetensors"
    history = fit(network, loss, config.loop, state, key=key, label="few steps", sample=sample)
    if not is_main():
        return {}
    settings = {"guidance": config.guidance, "loop": asdict(config.loop)}
    info = CheckpointInfo(
        format=1,
        recipe="fewstep",
        config=settings,
        teacher=checkpoint.id,
        data=table.digest,
        losses=logbook.curve(history),
    )
    saved = save_pipeline(config.output_dir, few, info, config.force)
    results = {"checkpoint": saved.id, **logbook.summary(history)}
    logbook.append(config.log, "few steps", settings | {"model": checkpoint.id}, results)
    return {"path": str(config.output_dir), **results}


def consistency_loss(
    network: "UNet2DConditionModel",
    teacher: "UNet2DConditionModel",
    source: "Cache",
    solver: "Solver",
    batch_size: int,
) -> "Loss":
    """Huber distance between the pictures that are seen from both ends of one jump of the guided teacher."""
    import torch
    from torch.func import functional_call

    from train.consistency import huber

    def loss(training: "nn.Module", part: "Part") -> dict[str, torch.Tensor]:
        draw = source.draw(batch_size, part, solver.timesteps)
        empty = source.empty(draw)
        share = torch.rand(batch_size, generator=part.generator)[part.rows(batch_size)]
        here, there = draw.timesteps, solver.before(draw.timesteps)
        with torch.no_grad():
            answers = [teacher(draw.noisy, here, text).sample for text in (draw.text, empty)]
            guided = solver.guided(*answers, share)
            jumped = solver.jump(draw.noisy, guided, here, there)
            answer = functional_call(network, dict(part.average), (jumped, there, draw.text)).sample
            target = solver.picture(jumped, answer, there)
        seen = solver.picture(draw.noisy, training(draw.noisy, here, draw.text).sample, here)
        return {"consistency": huber(seen, target)}

    return loss


def main(argv: list[str] | None = None) -> None:
    command.run(fewstep, argv, prog="python -m train.fewstep")


if __name__ == "__main__":
    main()
