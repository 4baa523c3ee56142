"""What README and docs print, quote and tabulate is what was run and recorded."""

import re
import subprocess
import sys
from pathlib import Path

from bench import exports, quality, record
from kdc_edge.files import read_json
from train.findings import summarize, tables

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def test_its_python_prints_what_stands_below_it(tmp_path: Path) -> None:
    code, printed = re.search(
        r"```python\n(.*?)```\s+```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    ).groups()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == (printed, "")
    assert (tmp_path / "apple.png").stat().st_size > 1000


def test_its_speeds_are_those_of_the_record_that_ships() -> None:
    found = record.read(ROOT / "bench" / "baseline.json")
    text = README.read_text(encoding="utf-8")
    assert exports.markdown([found]) in text
    assert f"`{found.command}`" in text


def test_its_quality_is_that_of_the_cards_that_ship() -> None:
    files = [
        ROOT / "assets" / "emoji-64" / "cards" / f"{name}.json" for name in ("teacher", "student", "fewstep", "bundle")
    ]
    found = quality.cards(quality.CardsConfig(tuple(files), across=("sampler", "steps", "guidance")))
    text = README.read_text(encoding="utf-8")
    tables = [part for part in found["table"].split("\n\n") if part.startswith("|")]
    assert len(tables) == 2 and all(table in text for table in tables)


def test_what_continual_learning_keeps_is_what_its_comparison_found() -> None:
    """The tables of every seed that was kept, made again from their scores."""
    found = read_json(ROOT / "assets" / "emoji-64" / "continual" / "results.json")
    again = summarize(found["settings"], found["tasks"], found["seeds"]) | {"machine": found["machine"]}
    assert tables(again) in (ROOT / "docs" / "continual.md").read_text(encoding="utf-8")
