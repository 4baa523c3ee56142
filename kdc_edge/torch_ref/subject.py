"""What is measured: a bundle through its own runtime, a checkpoint in fp32, or pictures that were drawn before."""

from dataclasses import dataclass
from pathlib import Path

from kdc_edge import drawing
from kdc_edge.bundle import Bundle
from kdc_edge.cards import UNKNOWN
from kdc_edge.drawing import Drawings, Drawn, How, Part
from kdc_edge.errors import UsageError
from kdc_edge.inspection import open_any
from kdc_edge.pictures import listing
from kdc_edge.pipeline import Pipeline
from kdc_edge.prompts import PromptSet
from kdc_edge.quality import Quality
from kdc_edge.runtimes import Options
from kdc_edge.torch_ref.reference import digest_of
from kdc_edge.torch_ref.runtime import open_pipeline


@dataclass(frozen=True)
class Subject:
    """`pipeline` is None where the pictures are already there, in `path`."""

    path: Path
    name: str
    kind: str
    id: str
    runtime: str
    pipeline: Pipeline | None
    batch: int = 1

    @classmethod
    def open(cls, path: Path, runtime: str, options: Options, quality: Quality) -> "Subject":
        """Any of the kinds. Raises BundleError, UsageError."""
        if (path / drawing.INDEX).exists():
            known = drawing.read(path)
            return cls(path, known.name, known.kind, known.model, known.runtime, None)
        if path.is_dir() and not any((path / name).exists() for name in ("manifest.json", "model_index.json")):
            return cls(path, path.name, "pictures", digest_of(listing(path)), UNKNOWN, None)
        found = open_any(path)
        if isinstance(found, Bundle):
            name = f"{found.manifest.name} {found.manifest.precision}"
            pipe = Pipeline.open(found, runtime, options)
            return cls(path, name, "bundle", found.id, _ran(runtime, options), pipe)
        pipe = open_pipeline(found, quality.device)
        ran = f"torch fp32, {quality.device}"
        return cls(path, path.resolve().name, "checkpoint", found.id, ran, pipe, quality.batch)

    def plan(self, prompts: PromptSet, quality: Quality, seed: int) -> Drawings:
        """What is, or has been, drawn for a set."""
        if self.pipeline is None:
            return self._drawn(prompts, seed)
        how = How.of(self.pipeline, seed, quality.sampler, quality.steps, quality.guidance)
        return drawing.plan(self.name, self.id, self.kind, self.runtime, how, prompts)

    def _drawn(self, prompts: PromptSet, seed: int) -> Drawings:
        if (self.path / drawing.INDEX).exists():
            known = drawing.read(self.path)
            if (known.prompts_hash, known.how.seed) != (prompts.hash, seed):
                seen = f"{known.prompts} ({known.prompts_hash[:12]}) with seed {known.how.seed}"
                asked = f"{prompts.name} ({prompts.hash[:12]}) with seed {seed}"
                raise UsageError(f"{self.path}: drawn from {seen}, asked for is {asked}")
            return known
        files = listing(self.path, at_least=len(prompts.prompts))
        if len(files) > len(prompts.prompts):
            raise UsageError(
                f"{self.path}: has {len(files)} pictures for {len(prompts.prompts)} prompts; which is whose?"
            )
        pairs = zip(files, prompts.prompts, strict=True)
        pictures = tuple(
            Drawn(str(file.relative_to(self.path)), text, seed + i) for i, (file, text) in enumerate(pairs)
        )
        how = How(seed, UNKNOWN, 0, 0.0)
        return Drawings(
            drawing.FORMAT, self.name, self.id, self.kind, self.runtime, how, prompts.name, prompts.hash, pictures
        )

    def draw(self, wanted: Drawings, folder: Path, part: Part) -> Path:
        """The folder with the pictures: its own, or `folder` after drawing what is not there."""
        if self.pipeline is None:
            return self.path
        drawing.draw_all(self.pipeline, wanted, folder, self.batch, part)
        return folder

    def close(self) -> None:
        if self.pipeline is not None:
            self.pipeline.close()


def _ran(runtime: str, options: Options) -> str:
    return runtime if options.provider is None else f"{runtime}, {options.provider}"
