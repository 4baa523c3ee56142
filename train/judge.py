"""Train the judge: a small CLIP of its own seed that has seen all the pictures, to measure the generators with.

    python -m train.judge                       # resumable; 20 minutes on one CPU core

The result is a plain `transformers` `CLIPModel` folder with its tokenizer.
"""

from typing import Any

from kdc_edge import command
from train.quiet import quiet
from train.ranges import check_numbers
from train.recipes import JudgeConfig, refuse_unet_flags


def train_judge(config: JudgeConfig) -> dict[str, Any]:
    """Train or resume; returns the last loss and where the judge is."""
    quiet()
    from dataclasses import asdict

    from transformers import CLIPModel

    from kdc_edge.files import refuse_output, replace_dir
    from train import contrastive, logbook
    from train.cache import weights_hash
    from train.data import load
    from train.folders import half
    from train.loop import check, fit, is_main, pick_device, processes
    from train.tokenizer import train_tokenizer
    from train.trainer import seeded

    check_numbers(config)
    refuse_unet_flags(config.loop)
    refuse_output(config.output_dir, config.run_dir, config.force, ["config.json"])
    check(config.loop, processes().num_processes)
    pictures = load(config.data, config.size, revision=config.data_revision)
    tokenizer = train_tokenizer((text for group in pictures.captions for text in group), config.merges)
    clip = seeded(config.loop.seed, lambda: contrastive.build(config.towers, tokenizer, config.size)).to(pick_device())
    if config.init is not None:
        clip.load_state_dict(CLIPModel.from_pretrained(config.init, use_safetensors=True).state_dict())
    start = None if config.init is None else weights_hash(clip)
    ids = contrastive.CaptionIds(tokenizer, pictures.captions)
    loss = contrastive.contrastive_loss(pictures.tensor(), ids, config.loop.batch_size, config.towers)
    key = {"data": pictures.digest(), "of": config.towers, "init": str(start)}
    history = fit(clip, loss, config.loop, config.run_dir / "judge.safetensors", key=key, label="judge")
    if not is_main():
        return {}
    with replace_dir(config.output_dir, config.force, ["config.json"]) as temporary:
        half(clip).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    results = logbook.summary(history)
    settings = {"init": str(config.init), **asdict(config.towers), "loop": asdict(config.loop)}
    title = "judge" + (" (continued)" if config.init else "")
    logbook.append(config.log, title, settings, results)
    return {"path": str(config.output_dir), **results}


def main(argv: list[str] | None = None) -> None:
    command.run(train_judge, argv, prog="python -m train.judge")


if __name__ == "__main__":
    main()
