"""Measures of a sequence against matrices worked out by hand, and the interval against scipy."""

import numpy as np
import pytest
from scipy import stats

from train.findings import paired, summarize, tables
from train.transfer import MEASURES, interval, quantile

# after:                  a    b    c
MATRIX = np.array([[0.1, 0.2, 0.0],  # nothing
                   [0.9, 0.3, 0.1],  # a
                   [0.6, 0.8, 0.2],  # b
                   [0.7, 0.5, 0.9]])  # c  # fmt: skip


def test_by_hand() -> None:
    found = {name: measure(MATRIX) for name, measure in MEASURES.items()}
    assert found == pytest.approx(
        {
            "average": (0.7 + 0.5 + 0.9) / 3,
            "forgetting": ((0.9 - 0.7) + (0.8 - 0.5)) / 2,
            "backward transfer": ((0.7 - 0.9) + (0.5 - 0.8)) / 2,
            "forward transfer": ((0.3 - 0.2) + (0.2 - 0.0)) / 2,
        }
    )


def test_what_was_better_later_on_counts_as_the_best() -> None:
    """Chaudhry's forgetting is from the best score so far, Lopez-Paz's transfer from the one right after the task."""
    matrix = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.8, 0.6, 0.0], [0.6, 0.6, 0.7]])
    assert MEASURES["forgetting"](matrix) == pytest.approx((0.2 + 0.0) / 2)
    assert MEASURES["backward transfer"](matrix) == pytest.approx((0.1 + 0.0) / 2)


def test_intervals_are_students() -> None:
    for freedom in (1, 2, 5, 10, 11, 20, 100):
        assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)
    values = [0.3, 0.5, 0.4]
    found = interval(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (found.mean, found.low, found.high, found.seeds) == (
        pytest.approx(0.4), pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4), 3
    )  # fmt: skip
    assert interval([0.3]).low is None


def test_seeds_add_up_to_measures_and_aims() -> None:
    kept, lost = MATRIX.copy(), MATRIX.copy()
    lost[-1, :2] = 0.0

    def seed(better: float) -> dict:
        matrices = {
            "replay": kept + better,
            "naive": lost,
            "joint": kept,
            "replay-no-distillation": kept,
            "pixel-replay": lost,
        }
        found = {
            name: {"top1": m.tolist(), "kid": (1 - m).tolist(), "seconds": [1.0] * 3} for name, m in matrices.items()
        }
        return found | {"scratch": {"top1": [[0.7] * 3], "kid": [[0.3] * 3], "seconds": [10.0]}}

    settings = {"loop": {"steps": 8, "batch_size": 2}, "replay": {"replay_memory": "9KB"}, "prompts": 3}
    found = summarize(settings, ["a", "b", "c"], {"0": seed(0.0), "1": seed(0.02)})
    assert list(found["methods"]) == ["naive", "joint", "replay", "replay-no-distillation", "pixel-replay", "scratch"]
    replay = found["methods"]["replay"]
    assert replay["top1"]["average"]["mean"] == pytest.approx(0.71) and replay["top1"]["average"]["seeds"] == 2
    assert replay["kid"]["average"]["mean"] == pytest.approx(0.29), "KID itself"
    assert replay["kid"]["forgetting"]["mean"] == pytest.approx(0.25), "its rise"
    assert found["methods"]["scratch"]["top1"]["average"]["mean"] == pytest.approx(0.7)
    aims = {aim["name"]: aim for aim in found["aims"]}
    values = [None if aim["value"] is None else round(aim["value"]["mean"], 4) for aim in aims.values()]
    assert values == [round(0.71 / 0.7, 4), round(0.25 / 0.85, 4), 0.4, 0.1, round(0.71 / 0.7, 4), None]
    assert [aim["met"] for aim in aims.values()] == [True, False, True, True, True, None]
    text = tables(found)
    assert text.startswith(
        "Seed 0, 1; intervals and ± are 95 % over seeds (Student's t). 8 steps of 2 for each task, 9KB of memory, "
    )
    assert "| time of an update, as a share of training from scratch | 0.10 [0.10, 0.10] | <= 0.15 | met |" in text
    assert "| before | 10% | 20% | 0% |  |  |  |  |  |  |  |" in text
    assert "| naive | 0% | 0% | 90% | 30.0 ± 0.0 | 85.0 ± 0.0 | -85.0 " in text
    scratch = next(line for line in text.splitlines() if line.startswith("| scratch"))
    assert scratch.endswith("70.0 ± 0.0 | – | – | – | -1.0 ± 12.7 | 0.30 ± 0.00 | 0.2 ± 0.0 |")


def test_variants_stand_by_number_and_a_bundle_costs_no_training() -> None:
    scores = {"top1": [[0.5, 0.5]] * 3, "kid": [[0.1, 0.1]] * 3}
    trained = {name: scores | {"seconds": [60.0] * 2} for name in ("scratch", "replay-210KB", "replay-26KB", "replay")}
    settings = {"loop": {"steps": 8, "batch_size": 2}, "replay": {"replay_memory": "9KB"}, "prompts": 3}
    found = summarize(settings, ["a", "b"], {"0": trained | {"int8-bundles": scores | {"seconds": []}}})
    assert list(found["methods"]) == ["replay", "int8-bundles", "replay-26KB", "replay-210KB", "scratch"]
    costs = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in tables(found).splitlines() if "|" in line
    }
    assert costs["replay"] == "2.0" and costs["int8-bundles"] == "–"


def test_a_variant_stands_beside_replay_of_its_own_seeds() -> None:
    def found(top1: float) -> dict:
        return {"top1": [[top1, top1]] * 3, "kid": [[0.1, 0.1]] * 3, "seconds": [60.0] * 2}

    seeds = {"0": {"replay": found(0.5), "replay-herding": found(0.7)}, "1": {"replay": found(0.9)}}
    assert paired("replay-herding", seeds) == {"mean": pytest.approx(0.2), "low": None, "high": None, "seeds": 1}
    seeds["1"]["replay-herding"] = found(0.9)
    both = paired("replay-herding", seeds)
    assert both is not None and both["mean"] == pytest.approx(0.1) and both["low"] < 0 < both["high"]
    assert paired("replay", seeds) is None and paired("replay-random", seeds) is None
