"""The one place that times: warm-up, raw samples of wall and CPU time, two callables interleaved, bootstrap intervals.

    comparison = compare(teacher, student, samples=20, seed=0)
    print(comparison.ratio, comparison.low, comparison.high)      # below 1: the second is faster

A ratio taken in one run beats two absolute times: machines drift, neighbours come and go, and both hit A and B alike
when they take turns. Who ran what on which machine is the caller's to record.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdc_edge.errors import UsageError

Clock = Literal["wall", "cpu"]
Call = Callable[[], object]
MIN_SAMPLES = 3  # an exhausted budget still leaves this many


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

    @property
    def p90(self) -> float:
        """90th percentile of the wall seconds."""
        return self.quantile(0.9)

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
            "p90_s": self.p90,
            "cpu_p50_s": self.quantile(0.5, "cpu"),
            "wall_s": list(self.wall),
            "cpu_s": list(self.cpu),
        }


@dataclass(frozen=True)
class Comparison:
    """How long B takes over A: the ratio of their medians, with a bootstrap interval of the given confidence."""

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
    (taken,) = _take((fn,), warmup, samples, budget_s, clocks)
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
    taken_a, taken_b = _take((a, b), warmup, samples, budget_s, clocks)
    ratio, low, high = ratio_interval(taken_a.of(clock), taken_b.of(clock), seed=seed, confidence=confidence)
    return Comparison(taken_a, taken_b, clock, ratio, low, high, confidence, seed)


def ratio_interval(
    a: np.ndarray, b: np.ndarray, *, seed: int, confidence: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """median(b) / median(a) with its percentile bootstrap interval: (ratio, low, high).

    Sample i of A and of B were taken side by side, so they are resampled as a pair and shared drift cancels.
    """
    if not np.median(a) > 0:
        raise UsageError("the first callable is too short for this clock: its median is 0 s; time several calls as one")
    rng = np.random.default_rng(seed)
    picks = rng.integers(0, len(a), (resamples, len(a)))  # (resamples, count)
    ratios = np.median(b[picks], axis=1) / np.maximum(np.median(a[picks], axis=1), np.finfo(np.float64).tiny)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(np.median(b) / np.median(a)), float(low), float(high)


def _take(
    calls: tuple[Call, ...], warmup: int, samples: int, budget_s: float | None, clocks: Clocks
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


def _once(fn: Call, clocks: Clocks) -> tuple[float, float]:
    wall, cpu = clocks.wall(), clocks.cpu()
    fn()
    cpu_end, wall_end = clocks.cpu(), clocks.wall()
    return wall_end - wall, cpu_end - cpu


def _samples(pairs: list[tuple[float, float]], warmup: int) -> Samples:
    return Samples(tuple(w for w, _ in pairs), tuple(c for _, c in pairs), warmup)
