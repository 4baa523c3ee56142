"""The one place that times: warm-up, raw samples of wall and CPU time, two callables interleaved, bootstrap intervals.

    comparison = compare(teacher, student, samples=20, seed=0)
    print(comparison.ratio, comparison.low, comparison.high)      # below 1: the second is faster

A ratio taken in one run beats two absolute times: machines drift, neighbours come and go, and both hit A and B alike
when they take turns. `settle` goes on until the ratio is known well enough, and opens both sides anew between visits:
where a process puts its buffers decides a per cent or two. Who ran what on which machine is the caller's to record.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdc_edge.errors import GateError, UsageError

Clock = Literal["wall", "cpu"]
Call = Callable[[], object]
MIN_SAMPLES = 3  # an exhausted budget still leaves this many
MIN_VISITS = 8  # fewer say too little about the spread between visits


@dataclass(frozen=True)
class Clocks:
    """Sources of time in seconds; tests put fakes here."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.process_time


SYSTEM = Clocks()


@dataclass(frozen=True)
class Samples:
    """Raw seconds per call, in the order taken. CPU time is the whole process's, all threads added up."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    warmup: int

    @property
    def p50(self) -> float:
        """Median wall seconds."""
        return self.quantile(0.5)

    def quantile(self, q: float, clock: Clock = "wall") -> float:
        """Quantile `q` in [0, 1] of the chosen clock's seconds, linearly interpolated."""
        return float(np.quantile(self.of(clock), q))

    def of(self, clock: Clock) -> np.ndarray:
        """Seconds of one clock, (count,)."""
        return np.asarray(self.wall if clock == "wall" else self.cpu, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        return {
            "count": len(self.wall),
            "warmup": self.warmup,
            "p50_s": self.p50,
            "p90_s": self.quantile(0.9),
            "p99_s": self.quantile(0.99),
            "cpu_p50_s": self.quantile(0.5, "cpu"),
            "wall_s": list(self.wall),
            "cpu_s": list(self.cpu),
        }


@dataclass(frozen=True)
class Comparison:
    """How long B takes over A: the median ratio, with a bootstrap interval of the given confidence."""

    a: Samples
    b: Samples
    clock: Clock
    ratio: float
    low: float
    high: float
    confidence: float
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
            "clock": self.clock,
            "seed": self.seed,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
        }


def measure(
    fn: Call, *, warmup: int = 1, samples: int = 10, budget_s: float | None = None, clocks: Clocks = SYSTEM
) -> Samples:
    """Times `fn` up to `samples` times after `warmup` untimed calls; past `budget_s` wall seconds it stops early."""
    (taken,) = turns((fn,), warmup, samples, budget_s, clocks)
    return taken


def compare(
    a: Call,
    b: Call,
    *,
    seed: int,
    warmup: int = 1,
    samples: int = 10,
    budget_s: float | None = None,
    clock: Clock = "wall",
    confidence: float = 0.95,
    clocks: Clocks = SYSTEM,
) -> Comparison:
    """Times two callables taking turns, A B B A A B …; `seed` is the bootstrap's.

    `compare(a, a, …)` is the A/A run that says how much of a ratio is the machine's own noise.
    """
    taken_a, taken_b = turns((a, b), warmup, samples, budget_s, clocks)
    ratio, low, high = ratio_interval(taken_a.of(clock), taken_b.of(clock), seed=seed, confidence=confidence)
    return Comparison(taken_a, taken_b, clock, ratio, low, high, confidence, seed)


def turns(
    calls: Sequence[Call], warmup: int, samples: int, budget_s: float | None = None, clocks: Clocks = SYSTEM
) -> tuple[Samples, ...]:
    """Rounds of every call once, every other round in reverse, until `samples` rounds or the budget is spent."""
    if samples < 1 or warmup < 0:
        raise UsageError(f"samples must be at least 1 and warmup at least 0, not {samples} and {warmup}")
    for fn in calls:
        for _ in range(warmup):
            fn()
    taken: tuple[list[tuple[float, float]], ...] = tuple([] for _ in calls)
    start = clocks.wall()
    for i in range(samples):
        if budget_s is not None and i >= MIN_SAMPLES and clocks.wall() - start > budget_s:
            break
        for j in range(len(calls)) if i % 2 == 0 else reversed(range(len(calls))):
            taken[j].append(_once(calls[j], clocks))
    return tuple(_samples(pairs, warmup) for pairs in taken)


def ratio_interval(
    a: np.ndarray, b: np.ndarray, *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """The median of b / a with its percentile bootstrap interval: (ratio, low, high).

    Sample i of A and of B were taken side by side: what slowed one slowed the other, and their ratio is free of it.
    """
    return _bootstrap(_log_ratios(a, b), np.median, seed, confidence, resamples)


def unpaired_interval(
    a: np.ndarray, b: np.ndarray, *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """median(b) / median(a) of samples that were not taken in turns, with its percentile bootstrap interval."""
    rng = np.random.default_rng(seed)
    medians = [np.median(x[rng.integers(0, len(x), (resamples, len(x)))], axis=1) for x in (a, b)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(medians[1] / medians[0], [tail, 1 - tail])
    return float(np.median(b) / np.median(a)), float(low), float(high)


def settle(
    visit: Callable[[int], tuple[Samples, Samples]],
    *,
    half_width: float,
    budget_s: float,
    seed: int,
    clock: Clock = "wall",
    confidence: float = 0.95,
    clocks: Clocks = SYSTEM,
) -> "Settled":
    """Visits until the interval of the ratio is within ± `half_width` of it, or the next would overrun `budget_s`.

    `visit(i)` opens A and B, times them against each other and closes them. The interval is over visits, not samples,
    so it holds what differs from one opening to the next. `MIN_VISITS` are made whatever the budget.
    """
    start, longest = clocks.wall(), 0.0
    taken: list[tuple[Samples, Samples]] = []
    while True:
        before = clocks.wall()
        taken.append(visit(len(taken)))
        now = clocks.wall()
        longest = max(longest, now - before)
        if len(taken) < MIN_VISITS:
            continue
        result = _settled(taken, half_width, seed, clock, confidence)
        if result.conclusive or now + longest - start > budget_s:
            return result


@dataclass(frozen=True)
class Settled:
    """The ratio of B to A over visits; `conclusive` if its interval came within the half-width asked for."""

    visits: tuple[tuple[Samples, Samples], ...]
    clock: Clock
    ratio: float
    low: float
    high: float
    confidence: float
    half_width: float

    @property
    def conclusive(self) -> bool:
        return (self.high - self.low) / 2 <= self.half_width

    def to_json(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
            "half_width": self.half_width,
            "conclusive": self.conclusive,
            "clock": self.clock,
            "visits": [{"a": a.to_json(), "b": b.to_json()} for a, b in self.visits],
        }


def _settled(
    visits: list[tuple[Samples, Samples]], half_width: float, seed: int, clock: Clock, confidence: float
) -> Settled:
    medians = np.array([np.median(_log_ratios(a.of(clock), b.of(clock))) for a, b in visits])
    ratio, low, high = _bootstrap(medians, np.mean, seed, confidence, 2000)
    return Settled(tuple(visits), clock, ratio, low, high, confidence, half_width)


def _log_ratios(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if min(a.min(), b.min()) <= 0:
        raise UsageError("a call is too short for this clock, it took 0 s; time several calls as one")
    return np.log(b / a)


def _bootstrap(
    logs: np.ndarray, statistic: Callable[..., Any], seed: int, confidence: float, resamples: int
) -> tuple[float, float, float]:
    """exp of the statistic of `logs`, and of its percentile bootstrap interval."""
    picks = np.random.default_rng(seed).integers(0, len(logs), (resamples, len(logs)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(logs[picks], axis=1), [tail, 1 - tail])
    return math.exp(statistic(logs)), math.exp(low), math.exp(high)


def _once(fn: Call, clocks: Clocks) -> tuple[float, float]:
    wall, cpu = clocks.wall(), clocks.cpu()
    fn()
    cpu_end, wall_end = clocks.cpu(), clocks.wall()
    if wall_end < wall or cpu_end < cpu:
        raise GateError("the clock went backwards during a call; nothing timed with it can be trusted, measure again")
    return wall_end - wall, cpu_end - cpu


def _samples(pairs: list[tuple[float, float]], warmup: int) -> Samples:
    return Samples(tuple(w for w, _ in pairs), tuple(c for _, c in pairs), warmup)
