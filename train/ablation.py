"""What each part of distillation is worth: the same student and steps, with and without it.

    python -m train.ablation --steps 600 -o runs/ablation       # seven trainings, each resumable; a table at the end

Every variant is trained by `train.distill` and measured by `train.evaluate`; one that is finished is not run again.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdc_edge import cards, command
from kdc_edge.cards import Cards
from kdc_edge.files import read_json, replace_file
from kdc_edge.quality import Quality
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
    from train.distill import distill
    from train.evaluate import evaluate

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
        if not (folder / "figures.json").exists():
            quality = Quality(
                judge=str(config.judge),
                data=Path(config.pictures.data),
                count=config.captions,
                run_dir=folder / "quality",
                output=folder / "figures.json",
            )
            evaluate(EvaluateConfig(folder / "checkpoint", quality))
        rows.append((variant.name, cards.read(folder / "figures.json"), _task(folder / "checkpoint" / "kdc.json")))
    text = table(rows)
    replace_file(config.output_dir / "table.md", text.encode())
    print(text, file=sys.stderr)
    return {"table": str(config.output_dir / "table.md"), "rows": [name for name, _, _ in rows]}


def _task(info: Path) -> float:
    """The last value of the loss that all variants share."""
    return read_json(info)["losses"]["terms"]["task"][-1]


def table(rows: list[tuple[str, Cards, float]]) -> str:
    """Markdown: shares with their 95 % intervals, of the first card that has them."""
    heads = ("by_text_top1", "by_text_top5", "by_picture_top1", "by_picture_top5", "tone")
    lines = ["| | task loss | " + " | ".join(head.replace("_", " ") for head in heads) + " |", "|---" * 7 + "|"]
    for name, figures, task in rows:
        shares = [next(card.numbers[head] for card in figures.cards if head in card.numbers) for head in heads]
        cells = [f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]" for share in shares]
        lines.append(f"| {name} | {task:.4f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    command.run(ablation, argv, prog="python -m train.ablation")


if __name__ == "__main__":
    main()
