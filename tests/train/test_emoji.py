"""The emoji data set: how names are read, and what the shipped tar holds."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kdc_edge.errors import MissingBackend, UsageError
from train.data import Pictures
from train.emoji import EmojiConfig, build, parse, render, row

ASSET = Path(__file__).parents[2] / "assets" / "emoji-64.tar"
FONT = EmojiConfig(Path("x")).font
LINES = """\
# group: People & Body
# subgroup: hand-fingers-open
1F44B                                                  ; fully-qualified     # 👋 E0.6 waving hand
1F44B 1F3FE                                            ; fully-qualified     # 👋🏾 E1.0 waving hand: medium-dark skin tone
1F3FB                                                  ; component           # 🏻 E1.0 light skin tone
270B                                                   ; unqualified         # ✋ E0.6 raised hand
"""


def test_only_fully_qualified_emoji_are_read() -> None:
    found = list(parse(iter(LINES.splitlines())))
    assert [record.text for _, record in found] == ["waving hand", "waving hand: medium-dark skin tone"]
    assert found[1][0] == "👋🏾"
    assert found[1][1].group == "People & Body" and found[1][1].file_name == "1f44b-1f3fe.webp"


@pytest.mark.parametrize(
    ("name", "base", "tone"),
    [
        ("red apple", "red apple", ""),
        ("waving hand: dark skin tone", "waving hand", "dark skin tone"),
        ("woman: medium skin tone, red hair", "woman: red hair", "medium skin tone"),
        ("kiss: woman, man, light skin tone, dark skin tone", "kiss: woman, man", "light skin tone, dark skin tone"),
        ("flag: Norway", "flag: Norway", ""),
    ],
)
def test_the_tone_is_taken_out_of_the_name(name: str, base: str, tone: str) -> None:
    _, record = row(["1F600"], name, "g", "s")
    assert (record.base, record.tone) == (base, tone)


def test_the_shipped_set_is_what_the_readme_says(emoji: Pictures) -> None:
    untoned = Counter(row["group"] for row in emoji.rows if not row["tone"])
    assert len(emoji) == 3655 and sum(untoned.values()) == 1870
    assert untoned["People & Body"] == 363 and untoned["Flags"] == 269 and untoned["Activities"] == 85
    assert emoji.pixels.shape[1:] == (64, 64, 3)


def test_the_held_out_tenth_is_toned_and_has_trained_siblings(emoji: Pictures) -> None:
    unseen, seen = emoji.split("generalisation"), emoji.split("train")
    assert len(unseen) == 186 and len(seen) == 3655 - 186
    assert all(row["tone"] for row in unseen.rows)
    assert not {row["text"] for row in unseen.rows} & {row["text"] for row in seen.rows}
    bases = {row["base"] for row in seen.rows}
    assert all(row["base"] in bases for row in unseen.rows)


@pytest.mark.skipif(not FONT.exists(), reason="fonts-noto-color-emoji is not installed (make system-deps)")
def test_rendering_gives_the_shipped_picture(emoji: Pictures) -> None:
    from PIL import ImageFont

    font = ImageFont.truetype(str(FONT), 109, layout_engine=ImageFont.Layout.RAQM)
    index = next(i for i, row in enumerate(emoji.rows) if row["text"] == "red apple")
    assert np.array_equal(np.asarray(render("🍎", font, 64)), emoji.pixels[index])


def test_a_missing_font_and_an_existing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingBackend, match="fonts-noto-color-emoji"):
        build(EmojiConfig(tmp_path / "a.tar", font=tmp_path / "none.ttf", names=Path(__file__)))
    (tmp_path / "a.tar").touch()
    with pytest.raises(UsageError, match="--force"):
        build(EmojiConfig(tmp_path / "a.tar"))


@pytest.mark.slow
@pytest.mark.skipif(not FONT.exists(), reason="fonts-noto-color-emoji is not installed (make system-deps)")
def test_the_shipped_tar_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    build(EmojiConfig(tmp_path / "again.tar"))
    assert (tmp_path / "again.tar").read_bytes() == ASSET.read_bytes()
