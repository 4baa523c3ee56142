"""What continual learning keeps: five groups of emoji in sequence, by every method, with the same steps and bytes.

    python -m train.comparison -o runs/comparison --seed 0      # a further seed adds to the table
    python -m train.comparison -o runs/comparison --seed 1 --int8

A base student of 2.8M parameters learns the groups that are no tasks, from random weights; every method goes on from it, and
after each task all of them are drawn and judged. Nothing that saw the tasks starts or teaches a student; the autoencoder and
the text encoder, frozen, have seen all emoji. 4,000 steps for the base, 800 for each of five tasks by each of five methods,
8,000 from scratch: 32,000 steps of 32 and some 6,500 drawings, 2.5 core-hours on an Intel Xeon. A method is trained by one
process, as many at once as there are cores. What is finished is not done again.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kdc_edge import command
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, replace_file, write_json
from train.quiet import quiet
from train.sequences import ComparisonConfig

RESULTS, TABLES = "results.json", "results.md"
# what seeds of one comparison may differ in
OUTSIDE = ("output_dir", "methods", "variants", "scratch", "int8", "workers")


def comparison(config: ComparisonConfig) -> dict[str, Any]:
    """Add a seed: train and judge what is missing, then results.json, results.md and comparison.html over all seeds."""
    quiet()
    from train import comparison_page
    from train.findings import summarize, tables
    from train.trial import Trial

    trial = Trial(config)  # which refuses what cannot be, before a folder is anybody's
    settings = keep_settings(config)
    trial.run()
    found = summarize(settings, [task.name for task in trial.tasks], seeds(config.output_dir))
    write_json(config.output_dir / RESULTS, found)
    replace_file(config.output_dir / TABLES, tables(found).encode())
    page = comparison_page.write(config.output_dir / "comparison.html", found, trial)
    print(f"{page}: open it in a browser", file=sys.stderr)
    return {"results": str(config.output_dir / RESULTS), "page": str(page), "aims": found["aims"]}


def seeds(folder: Path) -> dict[str, Any]:
    """By seed and method, what was found here, and what only results.json knows: it may have run elsewhere."""
    found = earlier(folder).get("seeds", {})
    for path in folder.glob("seed-*/result.json"):
        seed = path.parent.name.removeprefix("seed-")
        found[seed] = found.get(seed, {}) | read_json(path)
    return dict(sorted(found.items(), key=lambda seed: int(seed[0])))


def earlier(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    return read_json(path) if path.exists() else {}


def keep_settings(config: ComparisonConfig) -> dict[str, Any]:
    """What all seeds share, as JSON data. Raises UsageError where the folder holds seeds of another comparison."""
    shared = asdict(replace(config, loop=replace(config.loop, seed=0)))
    settings = {name: value for name, value in shared.items() if name not in OUTSIDE}
    settings |= {name: path.read_text() for name in ("tasks", "base") if (path := getattr(config, name)) is not None}
    settings = json.loads(json.dumps(settings, default=str))
    path = config.output_dir / "settings.json"
    known = read_json(path) if path.exists() else earlier(config.output_dir).get("settings", settings)
    if other := [name for name, value in settings.items() if known.get(name) != value]:
        raise UsageError(f"{path.parent} holds seeds with other {', '.join(other)}; choose another --output-dir")
    write_json(path, settings)
    return settings


def main(argv: list[str] | None = None) -> None:
    command.run(comparison, argv, prog="python -m train.comparison")


if __name__ == "__main__":
    main()
