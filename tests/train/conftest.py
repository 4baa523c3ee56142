"""A data set of sixteen real emoji, small enough to train on in a test."""

import json
from pathlib import Path

import pytest

from train.data import Pictures, load

ASSET = Path(__file__).parents[2] / "assets" / "emoji-64.tar"


@pytest.fixture(scope="session")
def emoji() -> Pictures:
    """The shipped data set."""
    return load(str(ASSET), 64)


@pytest.fixture(scope="session")
def few(emoji: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen of its pictures as an `imagefolder`."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("few")
    rows = []
    for i in range(0, 1600, 100):
        name = f"{i}.png"
        Image.fromarray(emoji.pixels[i]).save(folder / name)
        rows.append({**emoji.rows[i], "file_name": name, "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def groups(emoji: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures without skin tone of each of three groups, as an `imagefolder`."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("groups")
    rows = []
    for group in ("Smileys & Emotion", "Animals & Nature", "Food & Drink"):
        of = [i for i, row in enumerate(emoji.rows) if row["group"] == group]
        for i in of[:36:6]:
            Image.fromarray(emoji.pixels[i]).save(folder / f"{i}.png")
            rows.append({**emoji.rows[i], "file_name": f"{i}.png", "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
