"""Every setting of training, and the presets: frozen dataclasses, no torch, so that `--help` answers at once."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kdc_edge.checkpoint import Sampling
from kdc_edge.errors import UsageError
from kdc_edge.quality import Quality
from train.student_spec import StudentName

OutputDir = Annotated[Path, tyro.conf.arg(aliases=["-o"])]
GUIDED = Sampling(steps=8, guidance=1.5)


@dataclass(frozen=True)
class LoopConfig:
    """How a network is trained; the result is an exponential moving average of its weights."""

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon takes half the steps of AdamW on a U-Net; parameters of one dimension stay with AdamW."""
    warmup: int = 100
    """Steps in which the learning rate rises."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate after that; cosine falls to 0."""
    weight_decay: float = 0.01
    ema: float = 0.998
    """Decay of the averaged weights; 0 turns averaging off."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    accumulate: int = 1
    """Calls that a batch is divided into, to save memory; every process of `accelerate launch` divides it further."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Of the arithmetic; auto is bf16 where the hardware multiplies it."""
    checkpointing: bool = False
    """Compute activations twice, to save memory."""
    sample_every: int = 0
    """Steps between pictures of the network in training, in the run folder; 0 draws none."""
    tensorboard: bool = False
    """Log to the run folder for TensorBoard."""
    seed: int = 0


def refuse_unet_flags(loop: LoopConfig) -> None:
    """UsageError for settings that only the training of a U-Net follows."""
    if loop.checkpointing or loop.sample_every:
        raise UsageError("--checkpointing and --sample-every are of use to a U-Net only; drop them")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape and noise of the autoencoder; f = 8."""

    channels: int = 48
    latent_channels: int = 16
    encoder_blocks: tuple[int, ...] = (0, 0, 2, 2)
    decoder_blocks: tuple[int, ...] = (3, 3, 1, 0)
    latent_noise: float = 0.05
    """Deviation of the noise the decoder learns to ignore."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Two small transformers that meet in `projection` dimensions."""

    text_width: int = 256
    text_layers: int = 3
    text_heads: int = 4
    vision_width: int = 192
    vision_layers: int = 3
    vision_heads: int = 6
    patch: int = 8
    projection: int = 192
    blur: float = 0.3
    """Share of the pictures that are blurred to half resolution."""
    noise: float = 0.08
    """Largest deviation of the pixel noise, pixels in [-1, 1]."""
    neighbours: int = 1
    """Pictures of a batch that follow one another in the data: neighbours are alike, and the hardest to tell apart."""


@dataclass(frozen=True)
class UNetConfig:
    """A pyramid of stages as Stable Diffusion's: the innermost without attention."""

    channels: tuple[int, ...] = (96, 192, 160)
    attention: tuple[bool, ...] = (False, True, False)
    layers_per_block: int = 2
    head_dim: int = 32


@dataclass(frozen=True)
class TeacherRecipe:
    """A teacher from nothing: tokenizer, autoencoder, text encoder, U-Net."""

    size: int = 64
    merges: int = 1500
    toned_share: float = 0.2
    """Share of the draws that go to pictures with a skin tone."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    text: ContrastiveConfig = ContrastiveConfig()
    unet: UNetConfig = UNetConfig()
    autoencoder_loop: LoopConfig = LoopConfig(2300, 32, 2e-3, ema=0.995)
    text_loop: LoopConfig = LoopConfig(1500, 128, 1e-3, ema=0.995)
    unet_loop: LoopConfig = LoopConfig(4000, 64, 8e-4, "muon", warmup=200, ema=0.999)
    sampling: Sampling = GUIDED
    """How it and its students draw where nothing else is asked."""


def emoji_64() -> TeacherRecipe:
    """The default teacher: 19M parameters, 0.3 GMACs a step. Under two hours on 2 CPU cores with bfloat16."""
    return TeacherRecipe()


def emoji_64_gpu() -> TeacherRecipe:
    """The same networks, trained for as long as a GPU does it in minutes."""
    return replace(
        emoji_64(),
        autoencoder_loop=LoopConfig(12_000, 64, 2e-3, ema=0.999),
        text_loop=LoopConfig(2_500, 256, 1e-3, ema=0.995),
        unet_loop=LoopConfig(40_000, 128, 6e-4, "muon", warmup=500, ema=0.9995),
    )


def emoji_64_large() -> TeacherRecipe:
    """A larger U-Net for GPUs: wider stages, attention in all but the innermost."""
    return replace(
        emoji_64_gpu(), unet=UNetConfig(channels=(192, 384, 512), attention=(True, True, False), head_dim=64)
    )


TEACHERS = {"emoji-64": emoji_64, "emoji-64-gpu": emoji_64_gpu, "emoji-64-large": emoji_64_large}


@dataclass(frozen=True)
class PicturesConfig:
    """Captioned pictures, and where what is computed of them once is kept."""

    data: str = "assets/emoji-64.tar"
    """Tar, zip, folder or hub id."""
    data_revision: str | None = None
    """Revision of a hub data set."""
    flips: bool = False
    """Train on mirrored pictures, too."""
    cache_dir: Path = Path("runs/cache")
    """Folder for latents and text states; what was made from other pictures or networks is made anew."""
    cache_dtype: Literal["fp16", "fp32"] = "fp16"


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of one teacher run."""

    output_dir: OutputDir = Path("runs/teacher/checkpoint")
    """Folder of the finished diffusers pipeline."""
    run_dir: Path = Path("runs/teacher")
    """Folder of the resumable state."""
    preset: Literal["emoji-64", "emoji-64-gpu", "emoji-64-large"] = "emoji-64"
    pictures: PicturesConfig = PicturesConfig()
    init: Path | None = None
    """Continue from this teacher: its tokenizer, autoencoder and text encoder are kept, its U-Net is trained on."""
    steps: int | None = None
    """Steps of the U-Net; the preset's if not given."""
    learning_rate: float | None = None
    """Learning rate of the U-Net; the preset's if not given."""
    log: Path = Path("docs/log.md")
    """Markdown file that the run's settings and results are appended to."""
    force: bool = False
    """Replace an existing output folder."""


@dataclass(frozen=True)
class JudgeConfig:
    """Settings of the judge: a CLIP with another seed that has seen every picture."""

    output_dir: OutputDir = Path("runs/judge/checkpoint")
    run_dir: Path = Path("runs/judge")
    data: str = "assets/emoji-64.tar"
    data_revision: str | None = None
    """Revision of a hub data set."""
    size: int = 64
    merges: int = 1500
    init: Path | None = None
    """Train this judge on."""
    towers: ContrastiveConfig = ContrastiveConfig(neighbours=8)
    loop: LoopConfig = LoopConfig(1500, 128, 1e-3, ema=0.995, seed=1000)
    log: Path = Path("docs/log.md")
    force: bool = False


@dataclass(frozen=True)
class StudentConfig:
    """Settings of block removal: a preset, or a budget and what is measured to reach it."""

    teacher: str = "assets/emoji-64/teacher"
    """Stable Diffusion 1.x/2.x folder, or hub id; --dry-run of a preset needs its unet/config.json only."""
    revision: str | None = None
    """Revision of a hub teacher."""
    student: StudentName = "kdc-small"
    budget_macs: float | None = None
    """In place of the preset: remove what changes the output least until this share of the MACs is left."""
    budget_parameters: float | None = None
    """The same for parameters; with both, both are kept."""
    pictures: PicturesConfig = PicturesConfig()
    calibration: int = 32
    """Pictures that the change is measured on, each at a timestep of its own."""
    seed: int = 0
    dry_run: bool = False
    """Print sizes and what is copied; write nothing."""
    output_dir: OutputDir = Path("runs/student/pruned")
    force: bool = False


@dataclass(frozen=True)
class LossWeights:
    """Weights of dual-layer distillation; a term of weight 0 is not computed."""

    task: float = 1.0
    out: float = 1.0
    feat: float = 0.1
    soft: float = 0.0
    """The paper's is 1; L_soft then outweighs all else (it is an output error of about 1,400 times L_out's weight)."""
    soft_normalised: float = 0.0
    """L_soft brought to the size of L_out, on any grid."""


@dataclass(frozen=True)
class DistillConfig:
    """Settings of one distillation."""

    teacher: str = "assets/emoji-64/teacher"
    """Stable Diffusion 1.x/2.x folder, or hub id."""
    revision: str | None = None
    """Revision of a hub teacher."""
    student: StudentName = "kdc-small"
    init: Path | None = None
    """Train this student on instead of pruning the teacher anew."""
    fresh: bool = False
    """Start from random weights instead of the teacher's."""
    output_dir: OutputDir = Path("runs/student/checkpoint")
    run_dir: Path = Path("runs/student")
    pictures: PicturesConfig = PicturesConfig()
    toned_share: float = 0.2
    """Share of the draws that go to pictures with a skin tone."""
    weights: LossWeights = field(default_factory=LossWeights)
    loop: LoopConfig = LoopConfig(2000, 64, 5e-4, "muon", warmup=50)
    dry_run: bool = False
    """Print sizes and what it would take; a teacher's unet/config.json is enough."""
    log: Path = Path("docs/log.md")
    force: bool = False


@dataclass(frozen=True)
class FewStepConfig:
    """Settings of the distillation to few steps."""

    model: Annotated[Path, tyro.conf.arg(aliases=["-m"])] = Path("assets/emoji-64/student")
    """The checkpoint to speed up."""
    init: Path | None = None
    """Train this checkpoint's network on instead of starting from the model's; one of few steps, usually."""
    output_dir: OutputDir = Path("runs/fewstep/checkpoint")
    run_dir: Path = Path("runs/fewstep")
    method: Literal["progressive", "consistency"] = "progressive"
    """progressive: ddim at exactly --steps-drawn steps; consistency: lcm at any few steps."""
    pictures: PicturesConfig = PicturesConfig()
    toned_share: float = 0.2
    """Share of the draws that go to pictures with a skin tone."""
    guidance: tuple[float, float] | None = None
    """Least and greatest guidance of the model, its own if not given: the result draws as if guided by something between."""
    steps_drawn: int = 4
    """Steps that the result takes for a picture."""
    parts: int = 2
    """Guided steps of the model that progressive's result takes in one."""
    loop: LoopConfig = LoopConfig(1500, 16, 4e-4, "muon", warmup=50, ema=0.99)
    """Progressive trains on each of its steps: a batch of 16 pictures in 4 steps is 64 samples."""
    log: Path = Path("docs/log.md")
    force: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of decoder distillation."""

    model: Annotated[Path, tyro.conf.arg(aliases=["-m"])]
    """The checkpoint whose autoencoder is made tiny."""
    output_dir: OutputDir = Path("runs/decoder/checkpoint")
    run_dir: Path = Path("runs/decoder")
    pictures: PicturesConfig = PicturesConfig()
    toned_share: float = 0.2
    """Share of the draws that go to pictures with a skin tone."""
    channels: int = 64
    blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Residual blocks of the decoder's levels, from the latents outwards."""
    features: float = 0.1
    """Weight of the features that the teacher's encoder finds; 0 leaves them out."""
    loop: LoopConfig = LoopConfig(4000, 16, 1e-3, ema=0.995)
    log: Path = Path("docs/log.md")
    force: bool = False


@dataclass(frozen=True)
class EvaluateConfig:
    """A checkpoint, and what is measured."""

    model: Annotated[Path, tyro.conf.arg(aliases=["-m"])] = Path("assets/emoji-64/teacher")
    """A checkpoint; or a bundle, or pictures that were drawn before."""
    quality: Quality = field(default_factory=Quality)
    sheet: Path | None = None
    """PNG of the first 64 pictures of the first set."""


@dataclass(frozen=True)
class AblationConfig:
    """Settings of the comparison; those of the training are shared by all variants."""

    output_dir: OutputDir = Path("runs/ablation")
    """Folder for a run of each variant, and table.md."""
    teacher: str = "assets/emoji-64/teacher"
    student: StudentName = "kdc-small"
    pictures: PicturesConfig = PicturesConfig()
    loop: LoopConfig = LoopConfig(600, 64, 8e-4, "muon", warmup=50)
    judge: Path = Path("assets/emoji-64/judge")
    captions: int = 256
    """Captions that each student is measured on."""
