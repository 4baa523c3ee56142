"""Timing against fake clocks and closed forms."""

import json
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from kdc_edge.errors import GateError, UsageError
from kdc_edge.timing import MIN_SAMPLES, MIN_VISITS, Clocks, Samples, compare, measure, ratio_interval, settle


@dataclass
class FakeTime:
    """A clock that moves only when work is done, and a log of who worked."""

    now: float = 0.0
    log: list[str] = field(default_factory=list)

    def work(self, name: str, *seconds: float):
        durations = iter(seconds * 1000)

        def call():
            self.log.append(name)
            self.now += next(durations)

        return call

    @property
    def clocks(self) -> Clocks:
        return Clocks(wall=lambda: self.now, cpu=lambda: 2 * self.now)


def test_measure_reports_the_seconds_of_each_call_and_not_the_warmup():
    fake = FakeTime()
    taken = measure(fake.work("a", 9.0, 1.0, 3.0, 2.0), warmup=1, samples=3, clocks=fake.clocks)
    assert taken.wall == (1.0, 3.0, 2.0)
    assert taken.cpu == (2.0, 6.0, 4.0)
    assert taken.p50 == 2.0
    assert taken.quantile(0.9) == pytest.approx(2.8)


def test_budget_ends_the_run_but_leaves_a_minimum():
    fake = FakeTime()
    assert len(measure(fake.work("a", 1.0), warmup=0, samples=100, budget_s=7.5, clocks=fake.clocks).wall) == 8
    assert len(measure(fake.work("a", 99.0), samples=100, budget_s=1.0, clocks=fake.clocks).wall) == MIN_SAMPLES


def test_compare_interleaves_abba_after_warming_each():
    fake = FakeTime()
    compare(fake.work("a", 1.0), fake.work("b", 1.0), warmup=1, samples=4, seed=0, clocks=fake.clocks)
    assert "".join(fake.log) == "ab" + "abba" * 2


def test_exact_durations_give_the_exact_ratio():
    fake = FakeTime()
    comparison = compare(fake.work("a", 2.0), fake.work("b", 1.0), samples=5, seed=0, clocks=fake.clocks)
    assert (comparison.ratio, comparison.low, comparison.high) == (0.5, 0.5, 0.5)


def test_linear_drift_of_the_machine_cancels():
    """A machine slowing down by a tenth per call: B then A in turn see the same drift."""
    fake = FakeTime()
    calls = [fake.work(name, *np.linspace(1, 2, 40)) for name in "ab"]
    comparison = compare(*calls, warmup=0, samples=40, seed=0, clocks=fake.clocks)
    assert comparison.low <= 1.0 <= comparison.high


def test_interval_covers_the_true_ratio_as_often_as_it_says():
    rng = np.random.default_rng(7)
    trials, hits = 400, 0
    for seed in range(trials):
        shared = rng.lognormal(0, 0.2, 25)
        a, b = shared * rng.lognormal(0, 0.05, 25), 0.8 * shared * rng.lognormal(0, 0.05, 25)
        _, low, high = ratio_interval(a, b, seed=seed, resamples=400)
        hits += low <= 0.8 <= high
    assert 0.90 <= hits / trials <= 0.995


def test_same_seed_same_interval():
    a, b = np.random.default_rng(0).lognormal(size=(2, 201))
    assert ratio_interval(a, b, seed=3) == ratio_interval(a, b, seed=3)
    assert ratio_interval(a, b, seed=3) != ratio_interval(a, b, seed=4)


def test_real_clocks_run_forward_and_the_result_is_json():
    comparison = compare(lambda: sum(range(2000)), lambda: sum(range(4000)), samples=5, seed=0)
    assert comparison.ratio > 0
    assert json.loads(json.dumps(comparison.to_json()))["a"]["count"] == 5


@pytest.mark.parametrize("bad", [{"samples": 0}, {"warmup": -1}])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(UsageError, match="at least"):
        measure(lambda: None, **bad)


def test_a_callable_shorter_than_the_clock_is_refused_rather_than_divided_by():
    with pytest.raises(UsageError, match="too short"):
        ratio_interval(np.zeros(5), np.ones(5), seed=0)


def test_a_clock_that_goes_backwards_is_not_believed():
    times = iter([0.0, 5.0, 4.0])
    backwards = Clocks(wall=lambda: next(times), cpu=lambda: 0.0)
    with pytest.raises(GateError, match="backwards"):
        measure(lambda: None, warmup=0, samples=1, clocks=backwards)


def visits(ratios: np.ndarray, fake: FakeTime, noise: float = 0.0):
    """Visit i finds B slower by `ratios[i]`, and takes a second of the fake clock."""
    rng = np.random.default_rng(1)

    def visit(index: int) -> tuple[Samples, Samples]:
        fake.now += 1.0
        a = rng.lognormal(0, noise, 40)
        b = ratios[index] * rng.lognormal(0, noise, 40)
        return Samples(tuple(a), tuple(a), 0), Samples(tuple(b), tuple(b), 0)

    return visit


def test_settling_stops_as_soon_as_the_interval_is_narrow():
    fake = FakeTime()
    found = settle(visits(np.full(99, 1.05), fake), half_width=0.01, budget_s=60, seed=0, clocks=fake.clocks)
    assert found.conclusive and found.ratio == pytest.approx(1.05) and len(found.visits) == MIN_VISITS == fake.now


def test_what_differs_between_openings_widens_the_interval():
    """Two hundred quiet samples say nothing about the ten openings they came from."""
    fake, spread = FakeTime(), np.random.default_rng(5).lognormal(0, 0.1, 99)
    found = settle(visits(spread, fake), half_width=0.01, budget_s=20.5, seed=0, clocks=fake.clocks)
    assert not found.conclusive and fake.now == 20
    assert 0.02 < (found.high - found.low) / 2 < 0.08


def test_settled_intervals_cover_the_true_ratio():
    hits, trials = 0, 80
    for seed in range(trials):
        spread = 1.05 * np.random.default_rng(seed).lognormal(0, 0.02, 99)
        fake = FakeTime()
        found = settle(visits(spread, fake, 0.1), half_width=0.012, budget_s=60, seed=seed, clocks=fake.clocks)
        hits += found.low <= 1.05 <= found.high
    assert 0.86 <= hits / trials <= 0.99  # stopping at a narrow interval costs a little of the 95 %


def test_the_harness_costs_less_than_a_hundredth_of_a_short_step():
    def five_ms() -> None:
        end = time.perf_counter() + 0.005
        while time.perf_counter() < end:
            pass

    costs = []
    for _ in range(5):
        start = time.perf_counter()
        taken = measure(five_ms, warmup=0, samples=30)
        costs.append((time.perf_counter() - start) / sum(taken.wall) - 1)
        costs.append(np.median(taken.wall) / 0.005 - 1)
    assert np.median(costs) < 0.01
