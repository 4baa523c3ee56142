"""What every converter is told, and what all of them do with it: nothing half-written, nothing below its floor unnoticed."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from convert.card import card
from convert.checks import Found, check, failed, keeping, require_tools, say
from convert.estimate import Estimate, require
from kdc_edge import machine
from kdc_edge.bundle import Bundle, seal
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.files import BUNDLE, refuse_overlap, replace_dir, replace_file, write_json
from kdc_edge.manifest import Manifest, PipelineSpec, bundle_id
from kdc_edge.spec import pipeline_spec

ComponentName = Literal["text_encoder", "unet", "vae_decoder"]
REPORT_FORMAT = 1


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and what becomes of it."""

    model: Path
    """Checkpoint: a diffusers folder."""
    output_dir: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Bundle folder to write."""
    sampler: Literal["euler", "ddim", "dpmpp_2m", "pndm", "lcm"] | None = None
    """Sampler the bundle suggests; the checkpoint's own if not given."""
    steps: int | None = None
    """Steps the bundle suggests; the checkpoint's own if not given, else 20, or 4 for a consistency model."""
    guidance: float | None = None
    """Guidance the bundle suggests; the checkpoint's own if not given, else 3, or 1 for a consistency model."""
    name: str | None = None
    """Name of the bundle; the checkpoint folder's if not given."""
    keep_failed: bool = False
    """Keep what is below its floor beside the output, as NAME.failed."""
    allow_drift: bool = False
    """Write the bundle even so, with what was measured in its report."""
    force: bool = False
    """Replace an existing bundle."""
    dry_run: bool = False
    """Say what it would take, and stop."""

    def __post_init__(self) -> None:
        for written in (self.output_dir, failed(self.output_dir)):
            refuse_overlap(written, self.model)

    @property
    def bundle_name(self) -> str:
        return self.model.resolve().name if self.name is None else self.name

    def spec(self, checkpoint: Checkpoint) -> PipelineSpec:
        return pipeline_spec(checkpoint, steps=self.steps, guidance=self.guidance, sampler=self.sampler)

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A folder that becomes the output at the end, or, where that is wanted, what was kept of a failure."""
        with (
            replace_dir(self.output_dir, self.force, [BUNDLE]) as folder,
            keeping(self.keep_failed, folder, self.output_dir),
        ):
            yield folder


def carry_out(
    config: ConvertConfig,
    needed: Estimate,
    tools: tuple[str, ...],
    extra: str,
    build: Callable[[Path], tuple[Manifest, dict[str, Any]]],
    **planned: Any,
) -> dict[str, Any]:
    """Estimate, then build into a folder that takes its place when all is right; `planned` is for a dry run's answer."""
    print(needed, file=sys.stderr)
    require(needed, config.output_dir)
    output_dir = str(config.output_dir)
    if config.dry_run:
        return {"output_dir": output_dir, "estimate": needed.to_json(), **planned, "written": False}
    require_tools(tools, extra)
    with config.writing() as folder:
        manifest, report = build(folder)
    size = sum(entry.bytes for entry in manifest.files.values())
    result = {"output_dir": output_dir, "id": bundle_id(manifest), "bytes": size, **report}
    say(result)
    return result


def finish(
    config: ConvertConfig,
    checkpoint: Checkpoint,
    folder: Path,
    draft: Manifest,
    runtime: str,
    floors: Mapping[str, float],
    told: Callable[[Manifest], Mapping[str, Any]],
    memory: bool = True,
) -> tuple[Manifest, dict[str, Any]]:
    """Check what `folder` holds, seal it, write its report with what is `told` of the making, and its card.

    `memory`: what checking took is what drawing takes on the device. Raises GateError when all is written.
    """
    found: Found = check(checkpoint, Bundle(folder, draft, bundle_id(draft)), runtime, floors)
    if memory:
        draft = replace(draft, requires=replace(draft.requires, memory_mib=found.memory_mib))
    manifest = seal(folder, draft)
    report = {"format": REPORT_FORMAT, "machine": machine.describe(), **told(manifest), **found.to_json()}
    write_json(folder / "report.json", report)
    replace_file(folder / "README.md", card(manifest, bundle_id(manifest), report).encode())
    found.gate(config.allow_drift)
    return manifest, report
