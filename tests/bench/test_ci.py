"""The ready-made jobs of docs/ci.md: they parse, and their commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), re.DOTALL)
BASES = ("origin/$GITHUB_BASE_REF", "$CI_MERGE_REQUEST_DIFF_BASE_SHA")


def commands(block: str) -> list[str]:
    """Of the one job of a workflow."""
    data = yaml.safe_load(block)
    (job,) = data.get("jobs", data).values()
    return job["script"] if "script" in job else [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("block", BLOCKS, ids=["github", "gitlab"])
def test_a_job_installs_gates_and_measures(block: str) -> None:
    assert [command.split()[0] for command in commands(block)] == ["pip", "python", "python", "python"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands(BLOCKS[0]) if c.startswith("python")])
def test_its_commands_run(command: str, tmp_path: Path) -> None:
    for base in BASES:
        command = command.replace(base, "HEAD")
    words = shlex.split(command.replace("runs/", f"{tmp_path}/"))
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 or "inconclusive" in done.stderr, done.stderr


@pytest.mark.parametrize("block", BLOCKS, ids=["github", "gitlab"])
def test_counters_are_gated_against_the_baseline_that_ships(block: str) -> None:
    command = next(c for c in commands(block) if "baseline.json" in c)
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
