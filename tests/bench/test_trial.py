"""The trial of the gate: what it plants is slower by what it says, and its count of answers is right."""

from pathlib import Path

import numpy as np

from bench.trial import copies, summary
from bench.visits import Work, visit


def test_what_is_planted_is_a_share_of_every_call(hand_bundle: Path) -> None:
    with copies(9.0) as trees:
        same, slowed = visit((hand_bundle, trees[0.0]), (hand_bundle, trees[9.0]), 0, Work("vae_decoder", 4, 1, 0))
    assert 4 < np.median(slowed.cpu) / np.median(same.cpu) < 16  # neighbours take from its waiting, not from its work
    assert not trees[9.0].root.exists()


def gate(planted: float, outcome: str, base: float, head: float) -> dict:
    return {"planted": planted, "outcome": outcome, "base_median_s": base, "head_median_s": head, "seconds": 1.0}


def test_answers_are_counted_by_kind() -> None:
    gates = [
        gate(0, "pass", 1.0, 1.0),
        gate(0, "pass", 1.2, 1.2),
        gate(0.05, "regression", 1.0, 1.06),
        gate(0.05, "inconclusive", 1.2, 1.21),
    ]
    found = summary(gates)
    assert found["itself"]["pass"] == 2 and found["itself"]["gates"] == 2
    assert found["itself"]["median_rule_same_gate"] == 0
    assert found["itself"]["median_rule_recorded_before"] == [1, 1]
    assert found["slowed"]["regression"] == found["slowed"]["inconclusive"] == 1
    assert found["slowed"]["median_rule_same_gate"] == 1
    assert found["slowed"]["median_rule_recorded_before"] == [1, 2]
