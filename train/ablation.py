"""What each part of distillation is worth: the same student and steps, with and without it.

    python -m train.ablation --steps 600 -o runs/ablation       # seven trainings, each resumable; a table at the end

Every variant is trained by `train.distill` and measured by `train.evaluate`; one that is finished is not run again.
"""

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kdc_edge import cards, command, markdown
from kdc_edge.cards import Cards
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, replace_file, write_json
from kdc_edge.quality import Quality
from train.quiet import quiet
from train.ranges import check_numbers
from train.recipes import AblationConfig, DistillConfig, EvaluateConfig, LossWeights


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    name: str
    weights: LossWeights
    fresh: bool = False


TASK = LossWeights(1.0, 0.0, 0.0)
OUT = replace(TASK, out=1.0)
FEAT = replace(OUT, feat=0.1)
VARIANTS = (
    Variant("task", TASK),
    Variant("task + out", OUT),
    Variant("task + out + feat", FEAT),
    Variant("task + out + feat + soft, normalised", replace(FEAT, soft_normalised=1.0)),
    Variant("the paper's weights", LossWeights(1.0, 1.0, 1.0, 1.0)),
    Variant("task + out + feat, random start", FEAT, fresh=True),
    Variant("no teacher at all: task, random start", TASK, fresh=True),
)


def ablation(config: AblationConfig) -> dict[str, Any]:
    """Train and measure what is not yet there; writes table.md and returns its rows."""
    quiet()
    from train.distill import distill
    from train.evaluate import evaluate
    from train.loop import check, is_main, processes

    together = processes()
    check_numbers(config)
    check(config.loop, together.num_processes)
    same_settings(config, write=is_main())
    rows = []
    for number, variant in enumerate(VARIANTS):
        folder = config.output_dir / f"{number}"
        if not (folder / "checkpoint").exists():
            distill(
                DistillConfig(
                    teacher=config.teacher,
                    student=config.student,
                    fresh=variant.fresh,
                    output_dir=folder / "checkpoint",
                    run_dir=folder,
                    pictures=config.pictures,
                    weights=variant.weights,
                    loop=config.loop,
                    log=folder / "log.md",
                )
            )
            together.wait_for_everyone()  # the main process saves
        if not (folder / "figures.json").exists():
            quality = Quality(
                judge=str(config.judge),
                data=Path(config.pictures.data),
                count=config.captions,
                run_dir=folder / "quality",
                output=folder / "figures.json",
            )
            evaluate(EvaluateConfig(folder / "checkpoint", quality))
            together.wait_for_everyone()
        rows.append((variant.name, cards.read(folder / "figures.json"), _task(folder / "checkpoint" / "kdc.json")))
    text = table(rows)
    if is_main():
        replace_file(config.output_dir / "table.md", text.encode())
        print(text, file=sys.stderr)
    return {"table": str(config.output_dir / "table.md"), "rows": [name for name, _, _ in rows]}


def same_settings(config: AblationConfig, write: bool) -> None:
    """UsageError for a folder of an ablation with other settings, whose figures would be mixed with these."""
    from kdc_edge.checkpoint import Checkpoint
    from train.cache import fingerprint
    from train.loop import OUTSIDE

    pictures = config.pictures
    settings = {
        "teacher": Checkpoint.open(config.teacher).id,
        "student": config.student,
        "data": fingerprint(pictures.data, pictures.data_revision),
        "flips": pictures.flips,
        "loop": {name: value for name, value in asdict(config.loop).items() if name not in OUTSIDE},
        "judge": str(config.judge),
        "captions": config.captions,
    }
    path = config.output_dir / "settings.json"
    if path.exists() or (config.output_dir / "0" / "checkpoint").exists():
        there = read_json(path) if path.exists() else {}
        if other := [name for name, value in settings.items() if there.get(name) != value]:
            raise UsageError(
                f"{config.output_dir} holds an ablation with another {', '.join(other)}; choose another --output-dir "
                "or delete it"
            )
    elif write:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def _task(info: Path) -> float:
    """The last value of the loss that all variants share."""
    return read_json(info)["losses"]["terms"]["task"][-1]


def table(rows: list[tuple[str, Cards, float]]) -> str:
    """Markdown: shares with their 95 % intervals, of the first card that has them."""
    heads = ("by_text_top1", "by_text_top5", "by_picture_top1", "by_picture_top5", "tone")
    lines = []
    for name, figures, task in rows:
        shares = [next(card.numbers[head] for card in figures.cards if head in card.numbers) for head in heads]
        cells = (f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]" for share in shares)
        lines.append((name, f"{task:.4f}", *cells))
    return "\n".join(markdown.table(("", "task loss", *(head.replace("_", " ") for head in heads)), lines)) + "\n"


def main(argv: list[str] | None = None) -> None:
    command.run(ablation, argv, prog="python -m train.ablation")


if __name__ == "__main__":
    main()
