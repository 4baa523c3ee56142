"""Settings of continual learning and of the comparison of its methods, beside those of `train.recipes`; no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from kdc_edge.errors import UsageError
from kdc_edge.replay import Store
from train.recipes import LoopConfig, OutputDir, PicturesConfig, UNetConfig

Policy = Literal["reservoir", "class-balanced", "herding", "random"]
Update = Literal["full", "cross-attention", "lora"]
Method = Literal["naive", "joint", "replay", "replay-no-distillation", "pixel-replay"]
CHOICES = {"policy": get_args(Policy), "store": get_args(Store), "update": get_args(Update)}
METHODS: tuple[Method, ...] = ("naive", "joint", "replay", "replay-no-distillation", "pixel-replay")
USUAL = LoopConfig(800, 32, 4e-4, "muon", warmup=50, ema=0.995)
SHORT = LoopConfig(800, 32, 6e-4, "muon", warmup=50, ema=0.995, precision="no")  # seeds of all machines compare
SMALL = UNetConfig(channels=(64, 96, 64), layers_per_block=1)  # 2,828,464 parameters on emoji-64's latents


@dataclass(frozen=True)
class RetentionWeights:
    """Weights of the terms on replayed draws, the task's own being 1; a term of weight 0 is not computed."""

    replay_weight: float = 1.0
    """The stored pictures' own target."""
    previous_weight: float = 2.0
    """Agreement with the student of before this task."""
    teacher_weight: float = 1.0
    """Agreement with --teacher, where one is given."""


@dataclass(frozen=True)
class ReplayConfig:
    """What is remembered, and how it is replayed; a buffer that is there has rules of its own."""

    replay_memory: str | None = None
    """Bytes of a new buffer, latents and captions together, 64MiB if not given; 0 keeps nothing: naive fine-tuning."""
    policy: Policy | None = None
    """What a full buffer keeps; reservoir if not given."""
    store: Store | None = None
    """Of a latent, int8 if not given: with a scale for each item; captions keeps none, the student draws what is replayed."""
    replay_share: float = 0.5
    """Of every batch, the rows that are replayed: stored pictures and samples, each alike."""
    pool: int = 512
    """Samples that the student of before a task draws of remembered captions, to be held to; 0 draws none."""
    pool_steps: int = 10
    """Guided steps of such a sample."""
    pool_guidance: float = 1.5


@dataclass(frozen=True)
class ContinualConfig:
    """Settings of a sequence of tasks."""

    model: Annotated[Path, tyro.conf.arg(aliases=["-m"])] = Path("assets/emoji-64/student")
    """The student to teach; a dry run needs its unet/config.json only."""
    tasks: Path | None = None
    """TOML file with a [[task]] table for each."""
    add: str | None = None
    """One more task for a student with a buffer: a folder, archive or hub id, named by its last part."""
    output_dir: OutputDir = Path("runs/continual/checkpoints")
    """Folder of a checkpoint for each task."""
    run_dir: Path = Path("runs/continual/state")
    """Folder of the resumable state."""
    buffer: Path = Path("runs/continual/buffer")
    """Folder of the replay buffer."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    toned_share: float = 0.2
    """Share of the draws that go to pictures with a skin tone, where a task has both."""
    replay: ReplayConfig = ReplayConfig()
    weights: RetentionWeights = RetentionWeights()
    teacher: Path | None = None
    """A checkpoint of the same autoencoder and text encoder that knows the tasks."""
    update: Update = "full"
    """What is trained: every tensor, the attention to the caption, or LoRA of all attention, merged at the end."""
    rank: int = 16
    """Of LoRA's matrices."""
    joint: bool = False
    """Train each task on the pictures of all of them up to it: what replay is measured against, not a way to save memory."""
    loop: LoopConfig = USUAL
    """Of each task."""
    dry_run: bool = False
    """Print time and memory; write nothing."""
    log: Path = Path("docs/log.md")


@dataclass(frozen=True)
class BufferConfig:
    """A replay buffer, and what is to be done with it."""

    buffer: Annotated[Path, tyro.conf.Positional] = Path("runs/continual/buffer")
    remove: tuple[str, ...] = ()
    """SHA-256 of source pictures, or eight digits of it or more."""
    remove_captions: tuple[str, ...] = ()
    """Captions that are forgotten with all their pictures."""
    merge: tuple[Path, ...] = ()
    """Other buffers whose items come in."""
    replay_memory: str | None = None
    """A new limit."""


@dataclass(frozen=True)
class ComparisonConfig:
    """Settings that all methods share."""

    output_dir: OutputDir = Path("runs/comparison")
    """Folder for every run, results.json and comparison.html; seeds add up in it."""
    methods: tuple[Method, ...] = METHODS
    variants: tuple[str, ...] = ()
    """Also replay with one setting otherwise: replay-memory=13KB, policy=herding, store=captions, update=lora."""
    model: Annotated[Path, tyro.conf.arg(aliases=["-m"])] = Path("assets/emoji-64/student")
    """Where the frozen autoencoder and text encoder come from; its U-Net is not used."""
    tasks: Path | None = None
    """TOML file; five groups of emoji-64 if not given."""
    base: Path | None = None
    """TOML file of the one task that the base student learns first; emoji-64's other groups if not given."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    unet: UNetConfig = SMALL
    base_steps: int = 4000
    """Of the base student."""
    base_learning_rate: float = 1e-3
    loop: LoopConfig = SHORT
    """Of each task, the same for every method; its seed is the one that is added."""
    replay: ReplayConfig = ReplayConfig("105KB", "reservoir", "int8", pool=768)
    weights: RetentionWeights = field(default_factory=RetentionWeights)
    scratch: bool = True
    """Also train from scratch on everything, for the cost of an update."""
    int8: bool = False
    """Also measure replay's checkpoints as int8 ONNX bundles."""
    workers: int | None = None
    """Processes that train at once; as many as there are cores, on a GPU one."""
    judge: str = "assets/emoji-64/judge"
    prompts: int = 48
    """Captions of each task that are drawn and judged, a fixed choice."""
    draw_steps: int = 20
    """Guided steps of a picture that is judged."""
    strip: int = 2
    """Of them, pictures of each task in the strip."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers is {self.workers}; one at least trains")
        if self.strip < 1 or self.prompts < 2:
            raise UsageError(
                f"--prompts is {self.prompts} and --strip {self.strip}; KID wants two pictures, a strip one"
            )
        if self.int8 and "replay" not in self.methods:
            raise UsageError("--int8 measures replay's checkpoints; name replay among --methods")
