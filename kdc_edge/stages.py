"""`kdc-edge train|convert|bench …`: the other stages, run in a child process, since none may import another."""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kdc_edge.errors import MissingBackend, choose

STAGES = {"train": "train", "convert": "onnx", "bench": "bench"}  # package → the extra that installs what it needs


def run_stage(stage: str, arguments: Sequence[str]) -> int:
    """`python -m stage …`, or `python -m stage.first-argument …` where the stage has no command of its own.

    Returns the child's exit code. Raises MissingBackend for a stage that is not installed, UsageError for one that has
    no such command.
    """
    module, rest = _module(stage, list(arguments))
    try:
        return subprocess.call([sys.executable, "-m", module, *rest])
    except KeyboardInterrupt:
        return 130


def _module(stage: str, arguments: list[str]) -> tuple[str, list[str]]:
    spec = importlib.util.find_spec(stage)
    if spec is None or spec.submodule_search_locations is None:
        raise MissingBackend(f"{stage} is not installed; pip install 'kdc-edge[{STAGES[stage]}]'")
    folders = list(spec.submodule_search_locations)
    if any((Path(folder) / "__main__.py").exists() for folder in folders):
        return stage, arguments
    names = sorted(path.stem for folder in folders for path in Path(folder).glob("*.py") if _is_command(path))
    if not arguments or arguments[0].startswith("-"):
        arguments = ["", *arguments]
    return f"{stage}.{choose(arguments[0], names, f'command of {stage}')}", arguments[1:]


def _is_command(path: Path) -> bool:
    return '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")
