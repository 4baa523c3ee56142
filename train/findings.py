"""Seeds of the comparison brought together: each measure with its interval, and which aims are met."""

# T tasks, S seeds

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdc_edge import markdown
from kdc_edge.machine import describe
from train.sequences import METHODS
from train.transfer import MEASURES, Interval, Matrix, average, forgetting, interval

FORMAT = 1
REFERENCE = "replay"
AIM_HEAD = ("", "measured", "aim", "")
Result = Mapping[str, Any]
Seeds = Mapping[str, Result]


@dataclass(frozen=True)
class Aim:
    """A figure of one seed, from its results by method, and what it should be; `better` is the side of the bound."""

    name: str
    needs: tuple[str, ...]
    of: Callable[[Result], float]
    better: str
    bound: float


def top1(result: Mapping[str, Any]) -> Matrix:
    """(T + 1, T)."""
    return np.array(result["top1"], np.float64)


def share(a: float, b: float) -> float:
    return a / b if b > 0 else math.nan


AIMS = (
    Aim("share of joint training that latent replay keeps", ("replay", "joint"),
        lambda r: share(average(top1(r["replay"])), average(top1(r["joint"]))), ">=", 0.9),
    Aim("its forgetting, as a share of naive fine-tuning's", ("replay", "naive"),
        lambda r: share(forgetting(top1(r["replay"])), forgetting(top1(r["naive"]))), "<=", 0.25),
    Aim("top-1 of latent over pixel replay at equal bytes", ("replay-no-distillation", "pixel-replay"),
        lambda r: average(top1(r["replay-no-distillation"])) - average(top1(r["pixel-replay"])), ">", 0.0),
    Aim("time of an update, as a share of training from scratch", ("replay", "scratch"),
        lambda r: share(float(np.mean(r["replay"]["seconds"])), r["scratch"]["seconds"][0]), "<=", 0.15),
    Aim("quality after the last update, as a share of training from scratch", ("replay", "scratch"),
        lambda r: share(average(top1(r["replay"])), average(top1(r["scratch"]))), ">=", 0.95),
    Aim("forgetting of the int8 bundles less the checkpoints'", ("int8-bundles", "replay"),
        lambda r: forgetting(top1(r["int8-bundles"])) - forgetting(top1(r["replay"])), "<=", 0.02),
)  # fmt: skip
MEETS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
}


def summarize(settings: Mapping[str, Any], tasks: Sequence[str], seeds: Seeds) -> dict[str, Any]:
    """`results.json`: settings, every seed's scores, each method's measures, the aims."""
    methods = sorted({name for results in seeds.values() for name in results}, key=_place)
    return {
        "format": FORMAT,
        "machine": describe(),
        "settings": settings,
        "tasks": tasks,
        "seeds": seeds,
        "methods": {name: measured(name, seeds) for name in methods},
        "aims": [judged(aim, seeds) for aim in AIMS],
    }


def _place(method: str) -> tuple[int, list[int | str]]:
    """In a table: those that everyone has, bundles and variants of replay by number and name, training from scratch."""
    last = len(METHODS) + (method == "scratch")
    parts = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", method)]
    return METHODS.index(method) if method in METHODS else last, parts


def measured(method: str, seeds: Seeds) -> dict[str, Any]:
    """Mean matrices, and each measure over the seeds that have the method; of KID, whose lower is better, the negative's."""
    results = [r[method] for r in seeds.values() if method in r]
    costs = [float(np.sum(r["seconds"])) for r in results if r["seconds"]]  # a bundle is not trained
    found: dict[str, Any] = {
        "seconds": asdict(interval(costs)) if costs else None,
        "over_replay": paired(method, seeds),
    }
    for score, sign in (("top1", 1.0), ("kid", -1.0)):
        matrices = [np.array(r[score], np.float64) for r in results]
        found[score] = {"matrix": np.mean(matrices, axis=0).tolist()}
        whole = len(matrices[0]) > 2
        names = MEASURES if whole else {"average": average}
        values = {name: [measure(sign * m) for m in matrices] for name, measure in names.items()}
        values["average"] = [sign * value for value in values["average"]]
        found[score] |= {name: asdict(interval(value)) for name, value in values.items()}
    return found


def paired(method: str, seeds: Seeds) -> dict[str, Any] | None:
    """Its average top-1 less that of replay, over the seeds that have both; None where there is nothing to compare."""
    pairs = [(r[method], r[REFERENCE]) for r in seeds.values() if method in r and REFERENCE in r]
    values = [average(top1(own)) - average(top1(reference)) for own, reference in pairs]
    return asdict(interval(values)) if values and method != REFERENCE else None


def judged(aim: Aim, seeds: Seeds) -> dict[str, Any]:
    """`met` is by the mean over seeds; None where it was not measured."""
    values = [aim.of(results) for results in seeds.values() if all(name in results for name in aim.needs)]
    known: Interval | None = interval(values) if values and all(map(math.isfinite, values)) else None
    met = None if known is None else MEETS[aim.better](known.mean, aim.bound)
    value = None if known is None else asdict(known)
    return {"name": aim.name, "aim": f"{aim.better} {aim.bound:g}", "value": value, "met": met}


def tables(found: Mapping[str, Any]) -> str:
    """Markdown of results.json's content: the aims, and of each method its scores after the last task and its measures."""
    head = ("", *found["tasks"], *MEASURES, "over replay", "KID", "CPU minutes")
    rows = [(name, *_row(method)) for name, method in found["methods"].items()]
    before = next(m["top1"]["matrix"][0] for m in found["methods"].values() if len(m["top1"]["matrix"]) > 1)
    rows.insert(0, ("before", *(f"{score:.0%}" for score in before), *[""] * (len(MEASURES) + 3)))
    aims = markdown.table(AIM_HEAD, aim_rows(found["aims"]))
    return "\n".join([about(found), "", *aims, "", *markdown.table(head, rows)]) + "\n"


def _row(method: Mapping[str, Any]) -> Iterator[str]:
    top1, kid = method["top1"], method["kid"]
    yield from (f"{score:.0%}" for score in top1["matrix"][-1])
    yield from (short(top1.get(measure), 100, 1) for measure in MEASURES)
    yield short(method["over_replay"], 100, 1)
    yield short(kid["average"], 1)
    yield short(method["seconds"], 1 / 60, 1)


def aim_rows(aims: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    says = {True: "met", False: "not met", None: "not measured"}
    return [(aim["name"], shown(aim["value"]), aim["aim"], says[aim["met"]]) for aim in aims]


def about(found: Mapping[str, Any]) -> str:
    """What the figures rest on."""
    machine, settings = found["machine"], found["settings"]
    loop, memory = settings["loop"], settings["replay"]["replay_memory"]
    return (
        f"Seed {', '.join(found['seeds'])}; intervals and ± are 95 % over seeds (Student's t). {loop['steps']} steps of "
        f"{loop['batch_size']} for each task, {memory} of memory, {settings['prompts']} captions of each task drawn. "
        f"{machine['processor']}, {machine['cores']} cores."
    )


def shown(value: Mapping[str, Any] | None) -> str:
    """Mean and interval; of one seed the value alone."""
    if value is None:
        return "–"
    mean = f"{value['mean']:.2f}"
    return mean if value["low"] is None else f"{mean} [{value['low']:.2f}, {value['high']:.2f}]"


def short(value: Mapping[str, Any] | None, scale: float, digits: int = 2) -> str:
    """Mean ± half the interval; of one seed the value alone."""
    if value is None:
        return "–"
    mean = f"{value['mean'] * scale:.{digits}f}"
    return mean if value["low"] is None else f"{mean} ± {(value['high'] - value['mean']) * scale:.{digits}f}"
