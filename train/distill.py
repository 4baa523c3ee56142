"""Distil a compact student from a teacher: block removal, then dual-layer distillation against the live teacher.

    python -m train.distill --teacher assets/emoji-64/teacher --student kdc-small     # 0.6 s a step of 64 on 2 CPU cores

Latents and text states are computed once; the student keeps the teacher's tokenizer, text encoder, autoencoder and
scheduler, and is saved as a folder that diffusers loads unchanged.
"""

from typing import TYPE_CHECKING, Any

from kdc_edge import command
from kdc_edge.errors import UsageError
from train.quiet import quiet
from train.ranges import check_numbers
from train.recipes import DistillConfig, LossWeights
from train.student_spec import STUDENTS

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from torch import nn

    from train.diffusion import Cache
    from train.trainer import Loss, Part


def distill(config: DistillConfig) -> dict[str, Any]:
    """Prune, train, save; returns the student's id, sizes and losses."""
    quiet()
    from dataclasses import asdict

    from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
    from kdc_edge.files import refuse_output
    from train import diffusion, logbook
    from train.cache import cached
    from train.drawing import sampler
    from train.folders import load_pipeline, save_pipeline, with_unet
    from train.loop import fit, is_main, pick_device, ready

    check_settings(config)
    if config.dry_run:
        return plan(config)
    refuse_output(config.output_dir, config.run_dir, config.force)
    pipeline = load_pipeline(config.teacher, config.revision)
    known = None if config.revision else Checkpoint.open(config.teacher)
    teacher_id = f"{config.teacher}@{config.revision}" if known is None else known.id
    teacher = diffusion.for_inference(pipeline.unet, pick_device())
    spec = STUDENTS[config.student]()
    student = diffusion.for_training(beginning(config, pipeline), teacher.device)
    start_id = Checkpoint.open(config.init).id if config.init else None
    chosen = {"student": config.student, "init": start_id, "fresh": config.fresh, "weights": asdict(config.weights)}
    key = {"teacher": teacher_id, "spec": spec, **chosen}
    state = config.run_dir / "unet.safetensors"
    ready(config.loop, state, key)
    source, table = cached(config.pictures, pipeline, config.toned_share)
    sample = sampler(pipeline, table.captions, config.run_dir / "samples")
    loss = distillation_loss(student, teacher, source, config.weights, config.loop.batch_size)
    settings = {**chosen, "loop": asdict(config.loop)}
    key["data"] = table.digest
    history = fit(student, loss, config.loop, state, key=key, label=config.student, sample=sample)
    if not is_main():
        return {}
    metrics = {"teacher_parameters": size(teacher), "parameters": size(student)}
    info = CheckpointInfo(
        format=1,
        recipe=f"distill/{config.student}",
        config=settings,
        teacher=teacher_id,
        data=table.digest,
        sampling=None if known is None else known.sampling,
        losses=logbook.curve(history),
        metrics=metrics,
    )
    saved = save_pipeline(config.output_dir, with_unet(pipeline, student), info, config.force)
    results = {"checkpoint": saved.id, **metrics, **logbook.summary(history)}
    logbook.append(config.log, f"distillation {config.student}", settings | {"teacher": teacher_id}, results)
    return {"path": str(config.output_dir), **results}


def check_settings(config: DistillConfig) -> None:
    """UsageError for what cannot be meant."""
    from dataclasses import asdict

    check_numbers(config)
    if not any(asdict(config.weights).values()):
        raise UsageError("every loss weight is 0, so nothing would be learned; give one of them, as --task 1")
    if config.init and config.fresh:
        raise UsageError("--init gives the weights to start from and --fresh wants none; drop one of them")


def beginning(config: DistillConfig, pipeline: "StableDiffusionPipeline") -> "UNet2DConditionModel":
    """The student before its first step. Raises UsageError for one that the teacher cannot teach."""
    from train.folders import configs_of, load_pipeline, same_kind
    from train.loop import is_main
    from train.losses import matched_blocks
    from train.student import build_student, describe
    from train.trainer import seeded

    teacher, spec = pipeline.unet, STUDENTS[config.student]()
    if config.init:
        first = load_pipeline(str(config.init))
        same_kind(config.init, configs_of(first), configs_of(pipeline))
        start = first.unet
    else:
        if is_main():
            describe(teacher.config, spec, config.fresh)
        start = seeded(config.loop.seed, lambda: build_student(teacher, spec, config.fresh))
    if config.weights.feat:
        matched_blocks(start, teacher)
    return start


def plan(config: DistillConfig) -> dict[str, Any]:
    """Sizes, hours and memory of this process and its fellows, said by the main one; no weights are read."""
    from train.estimate import estimate, hardware, report
    from train.folders import same_kind
    from train.loop import is_main
    from train.losses import matched_blocks
    from train.student import describe, on_meta, prune_config, unet_config

    machine = hardware(config.loop)
    if not is_main():
        return {}
    teacher, spec = unet_config(config.teacher, config.revision), STUDENTS[config.student]()
    student = unet_config(str(config.init), None) if config.init else prune_config(teacher, spec)
    sizes = {} if config.init else describe(teacher, spec, config.fresh)
    networks = on_meta(teacher), on_meta(student)
    if config.init:
        same_kind(config.init, {"unet": student}, {"unet": teacher})
    if config.weights.feat:
        matched_blocks(networks[1], networks[0])
    return sizes | report(estimate(*networks, config.loop, machine))


def distillation_loss(
    student: "UNet2DConditionModel",
    teacher: "UNet2DConditionModel",
    source: "Cache",
    weights: LossWeights,
    batch_size: int,
) -> "Loss":
    """The weighted terms of one draw; the teacher is asked, and block outputs recorded, only if a term reads them."""
    from dataclasses import asdict

    import torch

    from train.losses import Answers, matched_blocks, recorded, weighted

    blocks = matched_blocks(student, teacher) if weights.feat else []
    taught = any(weight for name, weight in asdict(weights).items() if name != "task")

    def loss(network: "nn.Module", part: "Part") -> dict[str, torch.Tensor]:
        draw = source.draw(batch_size, part)
        inputs = (draw.noisy, draw.timesteps, draw.text)
        with recorded([s for s, _ in blocks]) as of_student, recorded([t for _, t in blocks]) as of_teacher:
            with torch.no_grad():
                from_teacher = teacher(*inputs).sample if taught else draw.target
            from_student = network(*inputs).sample
        answers = Answers(draw.target, from_student, from_teacher, of_student, of_teacher)
        return weighted(answers, asdict(weights))

    return loss


def size(network: Any) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def main(argv: list[str] | None = None) -> None:
    command.run(distill, argv, prog="python -m train.distill")


if __name__ == "__main__":
    main()
