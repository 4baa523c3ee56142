"""Train a text-to-image latent diffusion teacher from nothing, into a folder that diffusers loads.

    python -m train.teacher                     # emoji-64: under two hours on 2 CPU cores, resumable
    python -m train.teacher --init assets/emoji-64/teacher --steps 4000 --learning-rate 3e-4     # train it on

Four stages, each resumable after a kill: a byte-pair tokenizer, an autoencoder, a contrastive text encoder (frozen
afterwards, so that its states are computed once), and the U-Net.
"""

from typing import TYPE_CHECKING, Any

from kdc_edge import command
from kdc_edge.errors import UsageError
from train.quiet import quiet
from train.ranges import check_numbers
from train.recipes import TEACHERS, LoopConfig, TeacherConfig, TeacherRecipe

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, StableDiffusionPipeline
    from torch import nn
    from transformers import CLIPTextModel, CLIPTokenizer

    from train.data import Pictures
    from train.loop import Sampler
    from train.trainer import History, Loss


def train_teacher(config: TeacherConfig) -> dict[str, Any]:
    """Train or resume; returns the checkpoint's id, its figures and where it is."""
    quiet()
    from dataclasses import asdict, replace

    from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
    from kdc_edge.files import refuse_output
    from train import logbook
    from train.data import load
    from train.folders import load_pipeline, save_pipeline
    from train.loop import is_main, ready

    check_numbers(config)
    refuse_output(config.output_dir, config.run_dir, config.force)
    recipe = TEACHERS[config.preset]()
    loop = replace(
        recipe.unet_loop,
        steps=recipe.unet_loop.steps if config.steps is None else config.steps,
        learning_rate=recipe.unet_loop.learning_rate if config.learning_rate is None else config.learning_rate,
    )
    recipe = replace(recipe, unet_loop=loop)
    start = Checkpoint.open(config.init).id if config.init else None
    for name, (loop, of) in stages(recipe).items():
        if start is None or name == "unet":
            ready(loop, config.run_dir / f"{name}.safetensors", {"init": str(start), "of": of})
    previous = load_pipeline(str(config.init)) if config.init else None
    if previous is not None:
        check_start(previous, config)
    pictures = load(config.pictures.data, recipe.size, revision=config.pictures.data_revision).split("train")
    run = Run(config, recipe, pictures, start)
    if previous is not None:
        tokenizer, vae, encoder = previous.tokenizer, previous.vae, previous.text_encoder
    else:
        tokenizer = run.tokenizer()
        vae = run.autoencoder()
        encoder = run.text_encoder(tokenizer)
    pipeline, history, data = run.unet(tokenizer, vae, encoder, previous.unet if previous else None)
    if not is_main():
        return {}
    settings = {"preset": config.preset, "init": start, **asdict(recipe)}
    info = CheckpointInfo(
        format=1,
        recipe=f"teacher/{config.preset}",
        config=settings,
        teacher=None,
        data=data,
        sampling=recipe.sampling,
        losses=logbook.curve(history),
        metrics=run.metrics,
    )
    saved = save_pipeline(config.output_dir, pipeline, info, config.force)
    results = {"checkpoint": saved.id, **run.metrics, **logbook.summary(history)}
    logbook.append(config.log, f"teacher {config.preset}" + (" (continued)" if previous else ""), settings, results)
    return {"path": str(config.output_dir), **results}


def stages(recipe: TeacherRecipe) -> dict[str, tuple[LoopConfig, Any]]:
    """How each network is trained, and its settings, in order."""
    return {
        "autoencoder": (recipe.autoencoder_loop, recipe.autoencoder),
        "text": (recipe.text_loop, recipe.text),
        "unet": (recipe.unet_loop, recipe.unet),
    }


def check_start(pipeline: "StableDiffusionPipeline", config: TeacherConfig) -> None:
    """UsageError for an --init that is no teacher of this command's: it would be trained on to something else."""
    vae, kind = type(pipeline.vae).__name__, pipeline.scheduler.config.prediction_type
    if (vae, kind) != ("AutoencoderTiny", "v_prediction"):
        raise UsageError(
            f"{config.init}: has an {vae} and predicts {kind}; --init wants a teacher that train.teacher made "
            "(AutoencoderTiny, v_prediction); other models are trained on by train.distill --init"
        )


class Run:
    """The stages of one teacher, each from its own state file in `run_dir`; `start` is the id of what it continues."""

    def __init__(
        self, config: TeacherConfig, recipe: TeacherRecipe, pictures: "Pictures", start: str | None = None
    ) -> None:
        from train.loop import pick_device

        self.config, self.recipe, self.pictures, self.stages = config, recipe, pictures, stages(recipe)
        self.device, self.metrics = pick_device(), {}
        self.key = {"data": pictures.digest(), "init": str(start)}
        self.pixels = pictures.tensor()

    def tokenizer(self) -> "CLIPTokenizer":
        from train.tokenizer import train_tokenizer

        return train_tokenizer((text for group in self.pictures.captions for text in group), self.recipe.merges)

    def autoencoder(self) -> "AutoencoderTiny":
        from train import autoencoder
        from train.trainer import seeded

        loop, settings = self.stages["autoencoder"]
        vae = seeded(loop.seed, lambda: autoencoder.build(settings)).to(self.device)
        network = autoencoder.Reconstruction(vae, settings.latent_noise)
        loss = autoencoder.reconstruction_loss(self.pixels, loop.batch_size)
        history = self._fit("autoencoder", network, loss)
        self.metrics |= {
            "vae_psnr": round(autoencoder.psnr(vae, self.pixels), 2),
            "vae_seconds": round(history.seconds, 1),
        }
        return vae

    def text_encoder(self, tokenizer: "CLIPTokenizer") -> "CLIPTextModel":
        from train import contrastive
        from train.trainer import seeded

        loop, settings = self.stages["text"]
        clip = seeded(loop.seed, lambda: contrastive.build(settings, tokenizer, self.recipe.size)).to(self.device)
        ids = contrastive.CaptionIds(tokenizer, self.pictures.captions)
        loss = contrastive.contrastive_loss(self.pixels, ids, loop.batch_size, settings)
        history = self._fit("text", clip, loss)
        self.metrics |= {
            "text_loss": round(history.terms["contrastive"][-1], 4),
            "text_seconds": round(history.seconds, 1),
        }
        return contrastive.text_encoder(clip)

    def unet(
        self, tokenizer: Any, vae: Any, encoder: Any, start: Any
    ) -> tuple["StableDiffusionPipeline", "History", str]:
        """The pipeline, its U-Net trained; the loss curve; and the hash of the data."""
        from train import diffusion
        from train.cache import cached
        from train.drawing import sampler
        from train.folders import assemble
        from train.trainer import seeded

        loop, settings = self.stages["unet"]
        side = self.recipe.size // 2 ** (len(vae.config.encoder_block_out_channels) - 1)
        channels, width = vae.config.latent_channels, encoder.config.hidden_size
        network = start or seeded(loop.seed, lambda: diffusion.build(settings, channels, side, width))
        network = diffusion.for_training(network, self.device)
        pipeline = assemble(network, vae, encoder, tokenizer, diffusion.build_scheduler())
        source, table = cached(self.config.pictures, pipeline, self.recipe.toned_share)
        loss = diffusion.task_loss(source, loop.batch_size)
        sample = sampler(pipeline, table.captions, self.config.run_dir / "samples")
        return pipeline, self._fit("unet", network, loss, sample), table.digest

    def _fit(self, name: str, module: "nn.Module", loss: "Loss", sample: "Sampler | None" = None) -> "History":
        from train.loop import fit

        loop, of = self.stages[name]
        state = self.config.run_dir / f"{name}.safetensors"
        return fit(module, loss, loop, state, key=self.key | {"of": of}, label=name, sample=sample)


def main(argv: list[str] | None = None) -> None:
    command.run(train_teacher, argv, prog="python -m train.teacher")


if __name__ == "__main__":
    main()
