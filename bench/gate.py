"""Is the head slower than the base? Three answers: pass, regression, or inconclusive, which is green only if allowed.

    python -m bench gate kdc_edge/data/emoji-64 --base HEAD~1

The base against itself first, which says what this machine cannot tell apart; then the head against the base, both in
processes that take turns and are started anew for every visit, until the ratio is known to ± the margin or the budget ends.
Counters (MACs, bytes, operators, parameters) know no noise and are held hard.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bench import record
from bench.side import counters
from bench.visits import Entrant, Tree, Work, visit
from kdc_edge import machine, timing
from kdc_edge.bundle import Bundle
from kdc_edge.errors import BundleError, GateError, UsageError
from kdc_edge.files import write_json
from kdc_edge.markdown import table

COUNTER_MARGIN = 0.01
AA_SHARE = 0.3  # of the budget, for the base against itself
NOT_GATED = "not gated"
Outcome = Literal["pass", "regression", "inconclusive"]


@dataclass(frozen=True)
class GateConfig:
    """What to hold against what."""

    bundle: tyro.conf.Positional[Path]
    """The bundle in question, run by the code of this checkout."""
    base: str
    """What it may not be slower than: a bundle, a git revision (its code, and its bundle at the same path), or a record
    of `bench run`, against which only counters can be held."""
    what: Literal["picture", "text_encoder", "unet", "vae_decoder"] = "picture"
    """What is timed."""
    steps: int = 4
    """Of the picture: short turns are slowed alike."""
    margin: float = 0.015
    """Slower by more than this is a regression; also how well the ratio must be known."""
    budget: float = 120.0
    """Seconds for the timings."""
    clock: Literal["cpu", "wall"] = "cpu"
    """Processor time does not count what others run meanwhile; with more than one thread, or a device, take wall."""
    threads: int = 1
    """Of the runtime. One leaves the other cores to whoever else is there."""
    seed: int = 0
    allow_inconclusive: bool = False
    """Exit 0 where it cannot be told, after saying so: for a job that a noisy machine must not stop."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for every sample and figure."""


@dataclass(frozen=True)
class Base:
    """What is known of the base: its counters, and where there is something to run, what."""

    counters: dict[str, dict[str, int | None]]
    entrant: Entrant | None
    why_not: str = ""


def gate(config: GateConfig) -> dict[str, Any]:
    """Exit 0 if the head is no slower, 1 for a regression and, unless that is allowed, where it cannot be told."""
    if not 0 < config.margin < 1 or not config.budget > 0 or config.steps < 1:
        seen = f"--margin is {config.margin:g}, --budget {config.budget:g} and --steps {config.steps}"
        raise UsageError(f"{seen}; all must be above 0, and the margin below 1")
    head = Bundle.open(config.bundle)
    with find_base(config.base, config.bundle) as base:
        risen = counter_regressions(counters(head), base.counters)
        data: dict[str, Any] = {
            "format": record.FORMAT,
            "machine": machine.describe(),
            "head": head.id,
            "base": config.base,
            "counters": risen,
            "times": NOT_GATED,
        }
        outcome: Outcome = "regression" if risen else "pass"
        advice = "; ".join(risen)
        if base.entrant is None:
            print(f"times: {NOT_GATED}: {base.why_not}", file=sys.stderr)
        elif not risen:
            same, found = time_both((config.bundle, Tree.here()), base.entrant, config)
            outcome, advice = judge(same, found, config)
            data["times"] = {"base_against_itself": same.to_json(), "head_against_base": found.to_json()}
            print("\n".join(rows(same, found, config)), file=sys.stderr)
    data["outcome"], data["advice"] = outcome, advice
    if config.output is not None:
        write_json(config.output, data)
    if outcome == "regression" or (outcome == "inconclusive" and not config.allow_inconclusive):
        raise GateError(f"{outcome}: {advice}")
    print(f"{outcome}: {advice or f'{config.bundle} costs no more than {config.base}'}", file=sys.stderr)
    return data


def time_both(head: Entrant, base: Entrant, config: GateConfig) -> tuple[timing.Settled, timing.Settled]:
    """The base against itself, then the head against the base."""
    start = timing.SYSTEM.wall()
    same = _settle(base, base, config, config.budget * AA_SHARE)
    left = config.budget - (timing.SYSTEM.wall() - start)
    return same, _settle(base, head, config, left)


def _settle(a: Entrant, b: Entrant, config: GateConfig, budget: float) -> timing.Settled:
    work = Work(config.what, config.steps, config.threads, config.seed)

    def once(index: int) -> tuple[timing.Samples, timing.Samples]:
        return visit(a, b, index, work)

    return timing.settle(once, half_width=config.margin, budget_s=budget, seed=config.seed, clock=config.clock)


def judge(same: timing.Settled, found: timing.Settled, config: GateConfig) -> tuple[Outcome, str]:
    """The answer and, unless it is a pass, what would help."""
    limit = 1 + config.margin
    if same.low > limit or same.high < 1 / limit:
        return "inconclusive", (
            f"the base against itself came out at {_interval(same)}: something on this machine favours one turn over the "
            "other; stop what else runs here, or set --threads below the number of cores"
        )
    if not found.conclusive:
        other_clock = ", or gate --clock cpu" if config.clock == "wall" else ""
        return "inconclusive", (
            f"{_interval(found)} after {len(found.visits)} visits is wider than ± {config.margin:.1%}; raise --budget, or "
            f"stop what else runs here{other_clock}"
        )
    if found.low > limit:
        return (
            "regression",
            f"{config.what} takes {_interval(found)} times as long as the base's, the limit is {limit:g}",
        )
    return "pass", ""


def rows(same: timing.Settled, found: timing.Settled, config: GateConfig) -> list[str]:
    cells = [
        (name, config.what, config.clock, _interval(settled), str(len(settled.visits)))
        for name, settled in (("base / base", same), ("head / base", found))
    ]
    return table(("", "timed", "clock", "ratio and 95 % interval", "visits"), cells)


def counter_regressions(head: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """Counters that rose by more than a hundredth; what was not counted on one side is not compared."""
    found = []
    for what, counted in base.items():
        for name, before in counted.items():
            now = head.get(what, {}).get(name)
            if before and now is not None and now > before * (1 + COUNTER_MARGIN):
                found.append(f"{what} {name} rose from {before:,} to {now:,} ({now / before - 1:+.1%})")
    return found


@contextmanager
def find_base(base: str, bundle: Path) -> Iterator[Base]:
    """A record, a bundle folder or a git revision, whichever `base` is. Raises UsageError where it is none."""
    path = Path(base)
    with ExitStack() as stack:
        if path.is_file():
            yield _recorded(path)
        elif path.is_dir():
            other = Bundle.open(path)
            yield Base(counters(other), (path, Tree.here()))
        else:
            tree, root = stack.enter_context(checkout(base)), repository()
            if root not in bundle.resolve().parents:
                raise UsageError(
                    f"{bundle} is not in {root}, so revision {base} has none at its path; give a bundle as base"
                )
            yield _revision(base, tree, tree.root / bundle.resolve().relative_to(root))


def _revision(name: str, tree: Tree, path: Path) -> Base:
    """Its counters if this code reads its bundle; its times if its own code does."""
    try:
        known = counters(Bundle.open(path))
    except BundleError as error:
        print(f"counters: {NOT_GATED}: {error}", file=sys.stderr)
        known = {}
    problem = tree.works(path)
    return Base(known, None if problem else (path, tree), f"{name} does not run here: {problem}" if problem else "")


def _recorded(path: Path) -> Base:
    found = record.read(path)
    here = machine.fingerprint(machine.describe())
    why = "a recording cannot take turns with the head; give the base as a bundle or a git revision"
    if found.fingerprint != here:
        why = f"{path} was recorded on another machine ({found.machine['processor']}); counters are held all the same"
    return Base(found.bundle["counters"], None, why)


@contextmanager
def checkout(revision: str) -> Iterator[Tree]:
    """The files of a git revision, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="kdc-base-") as folder:
        archive = _git("archive", "--format=tar", revision, where=repository())
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Tree(Path(folder))


def repository() -> Path:
    """The root of the git repository of the working folder."""
    return Path(_git("rev-parse", "--show-toplevel").decode().strip())


def _git(*arguments: str, where: Path | None = None) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], cwd=where, capture_output=True, check=False)
    except FileNotFoundError:
        raise UsageError("git is not installed; give the base as a bundle folder or as a record") from None
    if done.returncode:
        problem = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(
            f"the base is no file, no folder and no git revision: {problem[-1] if problem else arguments[-1]}"
        )
    return done.stdout


def _interval(found: timing.Settled) -> str:
    return f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]"
