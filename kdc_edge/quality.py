"""Settings of a quality measurement, shared by `train.evaluate` and `bench quality`; no torch, so that --help is quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kdc_edge.errors import UsageError
from kdc_edge.prompts import SETS

Metric = Literal["fid", "kid", "clip", "retrieval", "tone", "lpips", "psnr", "ssim"]
PAIRED = ("lpips", "psnr", "ssim")  # against another model's pictures of the same noise


@dataclass(frozen=True)
class Quality:
    """What is asked for and how it is judged."""

    prompts: tuple[str, ...] = SETS
    """emoji-64's `trained` and `generalisation` captions, or text files: .txt, .tsv, .csv, .jsonl, COCO's .json."""
    count: int | None = None
    """Prompts of a set, a fixed choice; 256 of `trained`, all of any other, `generalisation` always whole."""
    data: Path = Path("assets/emoji-64.tar")
    """Captioned pictures that `trained` and `generalisation` are of, and the reference of FID and KID for them."""
    metrics: tuple[Metric, ...] | None = None
    """Those that can be measured with what is given; one that is named here and cannot be is an error."""
    judge: str = "assets/emoji-64/judge"
    """A transformers CLIP, folder or hub id: of the CLIP score, of retrieval, and of FID and KID unless --inception."""
    inception: str | None = None
    """Features of FID and KID: pt_inception-2015-12-05-6726825d.pth, a path or owner/repository/file on the hub."""
    inception_sha256: str | None = None
    """Of another file with the same weights, eight digits or more."""
    reference: Path | None = None
    """Folder of real pictures for FID and KID with prompts from a file."""
    size: int | None = None
    """Crop and resize drawn and real pictures to this side first (BK-SDM's COCO protocol: 256)."""
    lpips: Literal["alex", "vgg"] | None = None
    """With --against: LPIPS by this network."""
    lpips_weights: str | None = None
    """torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth, a path or owner/repository/file on the hub."""
    seed: int = 0
    """Of the first picture's noise; each further one has the next."""
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    """As steps and guidance: the model's own if not given."""
    against: Path | None = None
    """A bundle, checkpoint or folder of drawings: is the model as good, with the same prompts and noise?"""
    band: float | None = None
    """Worse by no more than this share is as good; MLPerf's (FID 0.02, CLIP 0.002) or the A/A spread if not given."""
    aa_seeds: int = 2
    """Other seeds that the reference of --against is drawn with, to see how far it is from itself."""
    force: bool = False
    """FID of fewer pictures than feature dimensions."""
    skip_bad: bool = False
    """Leave out pictures that cannot be read; the card says how many."""
    keep: bool = False
    """Keep the drawn pictures with their prompts and seeds."""
    batch: int = 16
    """Pictures drawn at once by a checkpoint; a bundle draws one by one."""
    device: str = "cpu"
    """Of a checkpoint and of the networks that judge."""
    run_dir: Path = Path("runs/quality")
    """Folder for drawings, features and the reference's statistics; a run that was killed goes on there."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for the metric cards."""

    def check(self) -> None:
        """UsageError for settings that exclude each other."""
        if not self.prompts:
            raise UsageError("no prompts; name a set or a file")
        if self.batch < 1 or self.aa_seeds < 0 or (self.band is not None and not 0 < self.band < 1):
            raise UsageError("--batch must be at least 1, --aa-seeds at least 0, and --band between 0 and 1")
        if (self.lpips is None) != (self.lpips_weights is None):
            raise UsageError("--lpips and --lpips-weights go together: the network and its ImageNet weights")
        paired = [name for name in self.metrics or () if name in PAIRED]
        if paired and self.against is None:
            raise UsageError(f"{', '.join(paired)} hold pictures against another model's; name it with --against")
        if self.against is not None and not (self.wants("fid") or self.wants("clip")):
            raise UsageError("--against decides by fid and clip, and --metrics leaves both out")
        if self.lpips is not None and self.against is None:
            raise UsageError("--lpips holds pictures against another model's; name it with --against")

    def wants(self, metric: Metric) -> bool:
        return self.metrics is None or metric in self.metrics

    def named(self, metric: Metric) -> bool:
        """Whether it was asked for by name, so that it may not be left out."""
        return self.metrics is not None and metric in self.metrics
