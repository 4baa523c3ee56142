"""Is the gate to be trusted? Real gates of a revision against itself, and against itself made slower on purpose.

    python -m bench.trial kdc_edge/data/emoji-64 --gates 100 --slowed 40 --neighbours 1 -o runs/trial.json     # hours

The base is this checkout; the head is a copy of it, or a copy whose runtime works on for five per cent after every call.
Beside the gate's answers stands what a fixed rule on medians would have said of the same samples, which is
`pytest-benchmark --benchmark-compare-fail=median:5%`: of the base timed in the same gate, and of the one timed in the gate
before, as a recorded baseline is.
"""

import multiprocessing
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from bench.gate import GateConfig, judge, time_both
from bench.visits import Tree
from kdc_edge import command, machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, write_json

RUNTIME = Path("kdc_edge/runtimes/ort.py")
CALL = "self._session.run(names, inputs)"
SLOWER = """

def _slowed(work, share):
    import time

    start = time.perf_counter()
    done = work()
    end = time.perf_counter() + share * (time.perf_counter() - start)
    while time.perf_counter() < end:
        pass
    return done
"""
FAIL_ABOVE = 1.05  # of pytest-benchmark's rule


@dataclass(frozen=True)
class TrialConfig:
    """How many gates of each kind, on what."""

    bundle: tyro.conf.Positional[Path]
    gates: int = 100
    """Of a revision against itself."""
    slowed: int = 40
    """Against itself slowed by `slow_down`."""
    slow_down: float = 0.05
    neighbours: int = 1
    """Processes that keep a core busy meanwhile."""
    budget: float = 120.0
    """Seconds of one gate."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/trial.json")
    """JSON file, rewritten after every gate; one that is there is gone on with."""


def trial(config: TrialConfig) -> dict[str, Any]:
    """False alarms, slow-downs found, and gates that came to no answer."""
    settings = {
        "machine": machine.describe(),
        "bundle": Bundle.open(config.bundle).id,
        **{name: getattr(config, name) for name in ("gates", "slowed", "slow_down", "neighbours", "budget")},
    }
    found = finished(config.output, settings)
    kinds = [0.0] * config.gates + [config.slow_down] * config.slowed
    order = np.random.RandomState(0).permutation(len(kinds))
    with copies(config.slow_down) as trees, busy(config.neighbours):
        for index in tqdm(order[len(found) :], desc="gates", unit="gate", disable=None):
            planted = kinds[index]
            found.append(one(config, trees[planted], planted, int(index)))
            write_json(config.output, {"settings": settings, "summary": summary(found), "done": found})
    print(f"{config.output}: {summary(found)}", file=sys.stderr)
    return summary(found)


def finished(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The gates of an earlier start. Raises UsageError where it had other settings or another machine."""
    if not path.exists():
        return []
    data = read_json(path)
    if not isinstance(data, dict) or data.get("settings") != settings:
        raise UsageError(f"{path} is of a trial on another machine or with other settings; choose another --output")
    return data["done"]


def one(config: TrialConfig, head: Tree, planted: float, seed: int) -> dict[str, Any]:
    """One whole gate: the base against itself, then the head against the base."""
    settings = GateConfig(config.bundle, str(config.bundle), budget=config.budget, seed=seed)
    start = timing.SYSTEM.wall()
    same, settled = time_both((config.bundle, head), (config.bundle, Tree.here()), settings)
    outcome, _ = judge(same, settled, settings)
    base, slower = (np.concatenate([visit[side].wall for visit in settled.visits]) for side in (0, 1))
    return {
        "planted": planted,
        "outcome": outcome,
        "seconds": timing.SYSTEM.wall() - start,
        "ratio": [settled.ratio, settled.low, settled.high],
        "itself": [same.ratio, same.low, same.high],
        "visits": len(settled.visits),
        "base_median_s": float(np.median(base)),
        "head_median_s": float(np.median(slower)),
    }


def summary(gates: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers by kind of gate, of ours and of a fixed rule on medians."""
    kinds: dict[str, Any] = {}
    for name, chosen in (("itself", lambda p: p == 0), ("slowed", lambda p: p > 0)):
        of = [gate for gate in gates if chosen(gate["planted"])]
        recorded = [
            gate["head_median_s"] > FAIL_ABOVE * before["base_median_s"]
            for before, gate in pairwise(gates)
            if chosen(gate["planted"])
        ]
        kinds[name] = {
            "gates": len(of),
            **Counter(gate["outcome"] for gate in of),
            "median_seconds": float(np.median([gate["seconds"] for gate in of])) if of else None,
            "median_rule_same_gate": sum(gate["head_median_s"] > FAIL_ABOVE * gate["base_median_s"] for gate in of),
            "median_rule_recorded_before": [sum(recorded), len(recorded)],
        }
    return kinds


@contextmanager
def copies(slow_down: float) -> Iterator[dict[float, Tree]]:
    """This checkout's `kdc_edge` twice: as it is, and slowed."""
    here = Tree.here().root / "kdc_edge"
    with tempfile.TemporaryDirectory(prefix="kdc-trial-") as folder:
        trees = {share: Tree(Path(folder) / str(share)) for share in (0.0, slow_down)}
        for share, tree in trees.items():
            shutil.copytree(here, tree.root / "kdc_edge", ignore=shutil.ignore_patterns("data", "__pycache__"))
            if share:
                runtime = tree.root / RUNTIME
                text = runtime.read_text(encoding="utf-8")
                runtime.write_text(text.replace(CALL, f"_slowed(lambda: {CALL}, {share})") + SLOWER, encoding="utf-8")
        yield trees


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Neighbours: bursts of work with pauses between, of random lengths up to a second."""
    processes = [multiprocessing.Process(target=_neighbour, args=(seed,), daemon=True) for seed in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _neighbour(seed: int) -> None:
    import time

    rng = np.random.RandomState(seed)
    x = rng.standard_normal(1 << 16)
    while True:
        end = time.perf_counter() + rng.rand()
        while time.perf_counter() < end:
            np.sort(x)
        time.sleep(0.2 * rng.rand())


def main(argv: list[str] | None = None) -> None:
    command.run(trial, argv, prog="python -m bench.trial")


if __name__ == "__main__":
    main()
