"""Cards: strict on disk, compared only where the rules agree, and a table that says what its numbers rest on."""

from dataclasses import replace
from pathlib import Path

import pytest

from kdc_edge import cards, machine
from kdc_edge.cards import Basis, Card, Cards, Number
from kdc_edge.drawing import How
from kdc_edge.errors import BundleError, UsageError

BASIS = Basis("InceptionV3", "a" * 64, "clean-fid", "coco", "b" * 64)
NUMBER = Number(12.345, 11.9, 12.8, 5000, "bootstrap", "lower", BASIS)
CARD = Card(
    "teacher", "checkpoint", "torch", "c" * 64, "p.txt", "d" * 64, 5000, How(0, "ddim", 20, 3.0), {"fid": NUMBER}
)


def test_a_card_survives_the_disk(tmp_path: Path) -> None:
    whole = Cards(1, "now", "command", machine.describe(), {}, (CARD,), {"outcome": "equivalent"})
    cards.write(tmp_path / "card.json", whole)
    assert cards.read(tmp_path / "card.json") == whole
    (tmp_path / "card.json").write_text('{"format": 2}', encoding="utf-8")
    with pytest.raises(BundleError, match="format 2"):
        cards.read(tmp_path / "card.json")


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (replace(CARD, prompts_hash="e" * 64), "prompts: dddddddddddd… against eeeeeeeeeeee…"),
        (replace(CARD, count=30_000), "count: 5000 against 30000"),
        (replace(CARD, how=How(1, "ddim", 20, 3.0)), "seed: 0 against 1"),
        (replace(CARD, how=How(0, "lcm", 20, 3.0)), "sampler: ddim against lcm"),
        (replace(CARD, how=How(0, "ddim", 4, 3.0)), "steps: 20 against 4"),
        (replace(CARD, how=How(0, "ddim", 20, 1.0)), "guidance: 3.0 against 1.0"),
        (
            replace(CARD, numbers={"fid": replace(NUMBER, basis=replace(BASIS, extractor_hash="f" * 64))}),
            "fid's extractor_hash: aaaaaaaaaaaa… against ffffffffffff…",
        ),
        (
            replace(CARD, numbers={"fid": replace(NUMBER, basis=replace(BASIS, resize="bilinear"))}),
            "fid's resize: clean-fid against bilinear",
        ),
        (
            replace(CARD, numbers={"fid": replace(NUMBER, basis=replace(BASIS, reference_hash="0" * 64))}),
            "fid's reference_hash: bbbbbbbbbbbb… against 000000000000…",
        ),
        (replace(CARD, numbers={"fid": replace(NUMBER, count=4999)}), "fid's count: 5000 against 4999"),
    ],
)
def test_cards_of_other_rules_do_not_compare_and_the_difference_is_named(other: Card, difference: str) -> None:
    with pytest.raises(UsageError, match="were not measured alike: ") as error:
        cards.require_alike([CARD, other])
    assert str(error.value).endswith(difference)


def test_what_may_differ_is_said() -> None:
    few = replace(CARD, model="student", how=How(0, "lcm", 4, 1.0))
    cards.require_alike([CARD, few], ("sampler", "steps", "guidance"))
    with pytest.raises(UsageError, match="guidance: 3"):
        cards.require_alike([CARD, few], ("sampler", "steps"))
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        cards.require_alike([CARD, few], ("step",))


def test_figures_of_another_processor_are_the_same() -> None:
    """12.345 is 12.34 or 12.35 in a table, as the last digits fall."""
    for value, same in ((12.345001, True), (12.3442, True), (12.343, False)):
        assert cards.same_figures(CARD, replace(CARD, numbers={"fid": replace(NUMBER, value=value)})) is same
    assert not cards.same_figures(CARD, replace(CARD, numbers={}))


def test_the_table_shows_intervals_and_what_they_rest_on() -> None:
    other = replace(CARD, model="student", numbers={}, not_measured={"fid": "too few"}, skipped=2)
    text = cards.table([CARD, other])
    assert "| p.txt | teacher, 20 ddim steps, guidance 3 | student, 20 ddim steps, guidance 3 |" in text
    assert "| fid ↓ | 12.35 [11.9, 12.8] | not measured |" in text
    assert "fid: InceptionV3 (aaaaaaaaaaaa); clean-fid, against coco (bbbbbbbbbbbb); 5000 pictures; bootstrap." in text
    assert "student: fid not measured: too few." in text and "student: 2 pictures could not be read" in text
