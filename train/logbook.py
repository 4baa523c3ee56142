"""The experiment log: every training run appends what it was, where it ran and what came out."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kdc_edge.machine import describe
from train.trainer import History


def append(log: Path, title: str, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """One entry at the end of `log`, which is made if it is not there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    entry = (
        f"\n## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC · {title}\n\n"
        f"- machine: {machine()}\n"
        f"- settings: `{json.dumps(settings, default=str)}`\n" + "".join(f"- {k}: {v}\n" for k, v in results.items())
    )
    with log.open("a", encoding="utf-8") as file:
        file.write(entry)


def machine() -> str:
    """Where this process trains, in one line."""
    about = describe()
    cpu = f"{about['processor']}, {torch.get_num_threads()} threads"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu
    return f"{device}; torch {torch.__version__}, Python {about['python']}"


def summary(history: History) -> dict[str, Any]:
    """Loss at the start and end of a run, and what it cost."""
    first, last = ({name: round(values[i], 5) for name, values in history.terms.items()} for i in (0, -1))
    return {
        "steps": history.steps[-1],
        "loss": {"first": first, "last": last},
        "seconds": round(history.seconds, 1),
        "images per second": round(history.images / history.seconds, 1),
    }


def curve(history: History) -> dict[str, Any]:
    """The loss curve as `kdc.json` keeps it."""
    took = {"seconds": round(history.seconds, 1), "cpu_seconds": round(history.cpu_seconds, 1)}
    return {"steps": asdict(history)["steps"], "terms": history.terms, **took}
