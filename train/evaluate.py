"""Measure a text-to-image model: FID, KID, CLIP score, retrieval, tones; against another one LPIPS, PSNR, SSIM and a verdict.

    python -m train.evaluate --model assets/emoji-64/teacher        # about five minutes on one CPU core
    accelerate launch --num_processes 8 -m train.evaluate --model path/to/sd15 --device cuda ...

Everything is `kdc_edge/torch_ref`'s, as in `bench quality`. What training adds is the ceiling: emoji-64's real pictures
through the checkpoint's own autoencoder, as one more card.
"""

from typing import TYPE_CHECKING, Any

from kdc_edge import command
from train.quiet import quiet
from train.recipes import EvaluateConfig

if TYPE_CHECKING:
    from kdc_edge.cards import Card
    from kdc_edge.drawing import Part
    from kdc_edge.torch_ref.measure import Bench, Seen
    from kdc_edge.torch_ref.subject import Subject


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The cards of one model, JSON-able; with --against exit 1 unless it is as good."""
    quiet()
    from dataclasses import replace
    from functools import partial

    from kdc_edge import schema
    from kdc_edge.torch_ref.measured import conclude, measure

    part, device = processes(config.quality.device)
    quality = replace(config.quality, device=device)
    found = measure(config.model, quality, part=part, more=partial(more, config))
    conclude(found.verdict)
    return schema.dump(found)


def processes(device: str) -> tuple["Part", str]:
    """This process's share of the work under `accelerate launch`, and its device."""
    import os

    from accelerate import PartialState

    from kdc_edge.drawing import ALONE, Part

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE, device
    state = PartialState(cpu=device == "cpu")
    return Part(state.process_index, state.num_processes, state.wait_for_everyone), str(state.device)


def more(config: EvaluateConfig, bench: "Bench", subject: "Subject", seen: list["Seen"]) -> list["Card"]:
    """The sheet, and the ceiling of a checkpoint on the data set with pictures."""
    from kdc_edge.torch_ref.measured import sheet_of

    if config.sheet is not None and bench.part.first:
        import numpy as np

        from train.drawing import sheet

        sheet(np.stack([np.asarray(image) for image in sheet_of(seen[0], 64)])).save(config.sheet)
    return ceilings(config, bench, subject, seen) if subject.kind == "checkpoint" and bench.part.first else []


def ceilings(config: EvaluateConfig, bench: "Bench", subject: "Subject", seen: list["Seen"]) -> list["Card"]:
    """The same figures of the real pictures, encoded and decoded: what no generator behind this decoder can surpass."""
    from dataclasses import replace

    import numpy as np
    import torch

    from kdc_edge.cards import CEILING, Basis
    from kdc_edge.checkpoint import Checkpoint
    from kdc_edge.torch_ref import figures
    from kdc_edge.torch_ref.networks import load_model
    from kdc_edge.torch_ref.perceptual import psnr
    from train.autoencoder import decode, encode

    if bench.gallery is None or subject.pipeline is None:
        return []
    vae = load_model(Checkpoint.open(config.model), "vae")
    real = bench.gallery.pixels
    decoded = decode(vae, encode(vae, torch.from_numpy(real).permute(0, 3, 1, 2).contiguous()))
    through = ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    networks, found = bench.networks, []
    known = bench.known(networks.images)
    basis = Basis("pixels", "", "none", known.name, bench.gallery.digest())
    vae_psnr = figures.mean(psnr(real, through), "higher", basis)  # of all pictures, as its floor is
    for one in seen:
        rows = np.array(one.sample.prompts.rows, int)
        if not len(rows):
            continue
        pictures = list(through[rows])
        images = networks.images(pictures)
        features = images if networks.features.hash == networks.images.hash else networks.features(pictures)
        sample = replace(one.sample, numbers=np.arange(len(rows)), images=images, features=features, folder=None)
        measured = figures.all_of(bench.quality, networks, sample, known, bench.reference(sample.prompts))
        numbers = measured.numbers | {"vae_psnr": vae_psnr}
        card = replace(one.card, model=f"{subject.name}'s autoencoder", kind=CEILING, skipped=0)
        found.append(replace(card, numbers=numbers, not_measured=measured.not_measured))
    return found


def main(argv: list[str] | None = None) -> None:
    command.run(evaluate, argv, prog="python -m train.evaluate")


if __name__ == "__main__":
    main()
