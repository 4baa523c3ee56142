"""Two tasks of six pictures, and where a test keeps what it learns of them."""

from dataclasses import replace
from pathlib import Path

from train.sequences import ContinualConfig

TASKS = """
[[task]]
name = "smileys"
where = { group = "Smileys & Emotion" }

[[task]]
name = "animals"
where = { group = ["Animals & Nature"] }
"""


def within(config: ContinualConfig, folder: Path) -> ContinualConfig:
    places = {"output_dir": folder / "out", "run_dir": folder / "state", "buffer": folder / "buffer"}
    return replace(config, **places, log=folder / "log.md")
