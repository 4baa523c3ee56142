"""Turn a model into one that draws in a few steps without guidance: guided progressive or latent consistency distillation.

    python -m train.fewstep --model assets/emoji-64/student -o runs/fewstep/checkpoint

The model itself, guided, is the teacher. What `progressive` makes is sampled with ddim, at the steps it was trained for; what
`consistency` makes with lcm. The checkpoint says how it is meant to be run, and conversion and evaluation follow it.
"""

from typing import TYPE_CHECKING, Any

from kdc_edge import command
from train.quiet import quiet
from train.ranges import check_numbers
from train.recipes import FewStepConfig

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from train.diffusion import Cache
    from train.solver import Solver
    from train.trainer import Loss


def fewstep(config: FewStepConfig) -> dict[str, Any]:
    """Train or resume, save; returns the checkpoint's id and losses."""
    quiet()
    from dataclasses import asdict, replace

    from kdc_edge.checkpoint import Checkpoint, CheckpointInfo, Sampling
    from kdc_edge.files import refuse_output
    from kdc_edge.spec import pipeline_spec
    from train import diffusion, logbook
    from train.cache import cached
    from train.consistency import lcm_scheduler
    from train.drawing import sampler
    from train.folders import configs_of, load_pipeline, same_kind, save_pipeline, with_unet
    from train.loop import fit, is_main, pick_device, ready
    from train.solver import Solver

    check_numbers(config)
    refuse_output(config.output_dir, config.run_dir, config.force)
    checkpoint = Checkpoint.open(config.model)
    start = Checkpoint.open(config.init or config.model)
    pipeline, first = load_pipeline(str(config.model)), load_pipeline(str(start.path))
    same_kind(start.path, configs_of(first), configs_of(pipeline))
    own = pipeline_spec(checkpoint).guidance
    config = replace(config, guidance=(own, own) if config.guidance is None else config.guidance)
    pipeline.scheduler = diffusion.noise_schedule(pipeline.scheduler)
    solver = Solver.of(pipeline.scheduler, config.guidance)
    check_steps(config, pipeline.scheduler)
    chosen = {name: getattr(config, name) for name in ("method", "guidance", "steps_drawn", "parts")}
    settings = {**chosen, "init": start.id}
    key = {"model": checkpoint.id, **settings}
    state = config.run_dir / "unet.safetensors"
    ready(config.loop, state, key)
    model = diffusion.for_inference(pipeline.unet, pick_device())
    encode = config.method == "consistency"  # progressive starts from noise
    source, table = cached(config.pictures, pipeline, config.toned_share, encode)
    network = diffusion.for_training(first.unet, model.device)
    loss = loss_of(config, model, replace(source, dropout=0.0), solver)
    few = with_unet(pipeline, network)
    if config.method == "consistency":
        few.scheduler = lcm_scheduler(pipeline.scheduler)
    sample = sampler(few, table.captions, config.run_dir / "samples", steps=config.steps_drawn, guidance=1.0)
    key["data"] = table.digest
    history = fit(network, loss, config.loop, state, key=key, label="few steps", sample=sample)
    if not is_main():
        return {}
    settings["loop"] = asdict(config.loop)
    info = CheckpointInfo(
        format=1,
        recipe=f"fewstep/{config.method}",
        config=settings,
        teacher=checkpoint.id,
        data=table.digest,
        sampling=Sampling(config.steps_drawn, 1.0),
        losses=logbook.curve(history),
    )
    saved = save_pipeline(config.output_dir, few, info, config.force)
    results = {"checkpoint": saved.id, **logbook.summary(history)}
    logbook.append(config.log, "few steps", settings | {"model": checkpoint.id}, results)
    return {"path": str(config.output_dir), **results}


def check_steps(config: FewStepConfig, scheduler: "DDIMScheduler") -> None:
    """UsageError for more steps than the method's sampler has."""
    from kdc_edge.errors import UsageError
    from train.consistency import STEPS
    from train.progressive import jumps

    if config.method == "progressive":
        jumps(scheduler, config.steps_drawn)
    elif config.steps_drawn > STEPS:
        raise UsageError(f"--steps-drawn is {config.steps_drawn}, must be between 1 and {STEPS}")


def loss_of(config: FewStepConfig, model: "UNet2DConditionModel", source: "Cache", solver: "Solver") -> "Loss":
    """The method's."""
    from train.consistency import consistency_loss
    from train.progressive import progressive_loss

    batch_size = config.loop.batch_size
    if config.method == "consistency":
        return consistency_loss(model, source, solver, batch_size)
    return progressive_loss(model, source, solver, batch_size, steps=config.steps_drawn, parts=config.parts)


def main(argv: list[str] | None = None) -> None:
    command.run(fewstep, argv, prog="python -m train.fewstep")


if __name__ == "__main__":
    main()
