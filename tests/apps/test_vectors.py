"""The committed vectors are what the library says now."""

import json

from apps import vectors


def test_they_are_current():
    stored = json.loads(vectors.FILE.read_text(encoding="utf-8"))
    made = vectors.make()
    assert stored["tokenizer"] == made["tokenizer"]
    assert stored["noise"] == made["noise"]
    for one, other in zip(stored["samplers"], made["samplers"], strict=True):
        told = {key: value for key, value in one.items() if key != "x"}
        assert told == {key: value for key, value in other.items() if key != "x"}
        for x, now in zip(one["x"], other["x"], strict=True):
            assert max(abs(a - b) for a, b in zip(x, now, strict=True)) <= 1e-9 * max(map(abs, now))
