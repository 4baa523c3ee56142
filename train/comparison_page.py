"""The comparison as one self-contained HTML page: aims, measures, a figure, matrices, the same prompts after every task."""

# T tasks

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdc_edge import page
from kdc_edge.page import COLOURS, escape, picture, section, table
from train.findings import AIM_HEAD, about, aim_rows, short
from train.transfer import MEASURES

if TYPE_CHECKING:
    from train.trial import Trial

TITLE = "Continual learning: what is kept of tasks learned in sequence"
WIDTH, HEIGHT, LEFT, LINE = 640, 224, 46, 18


def write(path: Path, found: Mapping[str, Any], trial: "Trial") -> Path:
    """`found` is results.json's content; the strips are of the trial's seed."""
    tasks = [task.name for task in trial.tasks]
    sequences = {name: m for name, m in found["methods"].items() if len(m["top1"]["matrix"]) > 1}
    body = [
        section("Aims", table(AIM_HEAD, aim_rows(found["aims"])) + f"<p>{escape(about(found))}</p>"),
        section("Right picture first, by the judge", measures(found["methods"], "top1")),
        section("Kernel distance (KID) to each task's real pictures", measures(found["methods"], "kid")),
        section(
            "Over the tasks learned so far",
            curves({name: so_far(m["top1"]["matrix"]) for name, m in of_every_seed(sequences).items()}, tasks),
        ),
        section("Matrices: rows after a task, columns on a task", matrices(sequences, tasks)),
        section("The same prompts after every task", strips(trial, list(sequences), tasks)),
    ]
    page.write(path, TITLE, body)
    return path


def measures(methods: Mapping[str, Any], score: str) -> str:
    """Of top-1 in points, beside replay's of the same seeds, and what training cost; of KID as it is."""
    top1 = score == "top1"
    scale, digits = (100, 1) if top1 else (1, 2)
    rows = []
    for name, found in methods.items():
        more = (short(found["over_replay"], 100, 1), short(found["seconds"], 1 / 60, 1)) if top1 else ()
        rows.append((name, *(short(found[score].get(measure), scale, digits) for measure in MEASURES), *more))
    return table(("", *MEASURES, *(("over replay", "CPU minutes") if top1 else ())), rows)


def of_every_seed(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Those with as many seeds as any: means over other seeds are no curves to compare."""
    seeds = {name: found["top1"]["average"]["seeds"] for name, found in methods.items()}
    return {name: found for name, found in methods.items() if seeds[name] == max(seeds.values())}


def so_far(matrix: Sequence[Sequence[float]]) -> list[float]:
    """After each task, the mean score on it and those before."""
    return [sum(row[: i + 1]) / (i + 1) for i, row in enumerate(matrix[1:])]


def curves(series: Mapping[str, Sequence[float]], tasks: Sequence[str]) -> str:
    """A line per method as inline SVG, shares from 0 to 1 over tasks."""

    def place(i: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 12) * i / (len(tasks) - 1)
        return f"{x:.1f},{12 + (HEIGHT - 34) * (1 - value):.1f}"

    marks: list[str] = []
    for value in (0.0, 0.5, 1.0):
        x, y = place(0, value).split(",")
        marks.append(f'<line class="axis" x1="{x}" x2="{WIDTH - 12}" y1="{y}" y2="{y}"/>')
        marks.append(f'<text x="4" y="{float(y) + 4:.1f}">{value:.0%}</text>')
    for i, task in enumerate(tasks):
        anchor = "start" if i == 0 else "end" if i == len(tasks) - 1 else "middle"
        x = place(i, 0).split(",")[0]
        marks.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}">{escape(task)}</text>')
    for number, (name, values) in enumerate(series.items()):
        points = " ".join(place(i, value) for i, value in enumerate(values))
        x, y = 8 + 208 * (number % 3), HEIGHT + 12 + LINE * (number // 3)
        dashes = ' stroke-dasharray="6 4"' if number >= COLOURS else ""
        marks.append(f'<polyline class="line-{number % COLOURS}"{dashes} points="{points}"/>')
        label = f"{name}, dashed" if dashes else name
        marks.append(f'<text class="text-{number % COLOURS}" x="{x}" y="{y}">{escape(label)}</text>')
    box = f"0 0 {WIDTH} {HEIGHT + LINE * -(-len(series) // 3)}"
    return f'<svg viewBox="{box}" role="img" aria-label="share right after each task">{"".join(marks)}</svg>'


def matrices(methods: Mapping[str, Any], tasks: Sequence[str]) -> str:
    return f'<div class="matrices">{"".join(_matrices(methods, tasks))}</div>'


def _matrices(methods: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    for name, found in methods.items():
        rows = "".join(
            f"<tr><td>{escape(label)}</td>{''.join(_cell(top1, kid) for top1, kid in zip(*pair, strict=True))}</tr>"
            for label, *pair in zip(["before", *tasks], found["top1"]["matrix"], found["kid"]["matrix"], strict=True)
        )
        heads = "".join(f"<th>{escape(task)}</th>" for task in tasks)
        yield f'<div class="wide"><h3>{escape(name)}</h3><table><tr><th></th>{heads}</tr>{rows}</table></div>'


def _cell(top1: float, kid: float) -> str:
    return f'<td class="score" style="--share: {70 * top1:.0f}" title="KID: {kid:.2f}">{top1:.0%}</td>'


def strips(trial: "Trial", methods: Sequence[str], tasks: Sequence[str]) -> str:
    """A row of pictures after each task, by method; those that this seed has."""
    parts = [f"<p>{escape(', '.join(trial.examiner.shown))}; seed {trial.config.loop.seed}.</p>"]
    for method in methods:
        rows = [(task, trial.strip(method, task)) for task in tasks]
        figures = [_figure(method, task, path) for task, path in rows if path.exists()]
        parts += [f"<h3>{escape(method)}</h3>", *figures] if figures else []
    return f'<div class="strip">{"".join(parts)}</div>'


def _figure(method: str, task: str, path: Path) -> str:
    caption = f"after {escape(task)}"
    return f"<figure>{picture(path, f'{method}, {caption}')}<figcaption>{caption}</figcaption></figure>"
