"""Captioned pictures in every shape people keep them, and what broken ones get."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdc_edge.errors import BundleError, UsageError
from train.captions import captions, dominant_colour
from train.data import load


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def folder_of(path: Path, rows: list[dict[str, str]]) -> Path:
    path.mkdir()
    for row in rows:
        (path / row["file_name"]).write_bytes(picture("red"))
    (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_an_imagefolder_with_captions(tmp_path: Path) -> None:
    rows = [{"file_name": f"{i}.png", "text": f"thing {i}", "group": "Things"} for i in range(3)]
    found = load(str(folder_of(tmp_path / "data", rows)), 32)
    assert found.pixels.shape == (3, 32, 32, 3)
    assert found.captions[1][0] == "thing 1" and "red thing 1" in found.captions[1]
    assert found.rows[2]["group"] == "Things"


def test_class_folders_become_prompts(tmp_path: Path) -> None:
    for name in ("pink_primrose", "daisy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture("blue"))
    assert load(str(tmp_path), 16).captions == (("daisy",), ("pink primrose",))


def test_a_webdataset_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for i in range(2):
            for suffix, data in (("png", picture("green")), ("json", json.dumps({"text": f"leaf {i}"}).encode())):
                info = tarfile.TarInfo(f"{i:04}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for source in (tmp_path / "shard.tar", tmp_path):
        assert [group[0] for group in load(str(source), 16).captions] == ["leaf 0", "leaf 1"]


def test_a_shard_with_captions_as_text(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for i in range(2):
            for suffix, data in (("jpg", picture("green")), ("txt", f"leaf {i}".encode())):
                info = tarfile.TarInfo(f"{i:04}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    for source in (tmp_path / "shard.tar", tmp_path):
        assert load(str(source), 16).captions == (("leaf 0",), ("leaf 1",))


def test_a_text_file_beside_class_folders_makes_no_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "flowers.tar", "w") as tar:
        for name, data in (("README.txt", b"read me"), ("daisy/1.png", picture("red")), ("rose/1.png", picture("red"))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert load(str(tmp_path / "flowers.tar"), 16).captions == (("daisy",), ("rose",))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK"])
def test_every_kind_of_picture_becomes_rgb_on_white(mode: str, tmp_path: Path) -> None:
    colour = {"L": 60, "LA": (60, 0), "P": 0, "RGBA": (60, 60, 60, 0), "CMYK": (0, 0, 0, 195)}[mode]
    for name, size in (("tall", (20, 30)), ("wide", (64, 16))):
        (tmp_path / name).mkdir()
        Image.new(mode, size, colour).save(tmp_path / name / ("1.tiff" if mode == "CMYK" else "1.png"))
    found = load(str(tmp_path), 16).pixels
    assert found.shape == (2, 16, 16, 3)
    assert (found == (255 if mode in ("LA", "RGBA") else 60 if mode != "P" else 0)).all()


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [{"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": "b"}])
    (folder / "b.png").write_bytes(b"no picture at all")
    with pytest.raises(BundleError, match=r"b\.png: not a readable picture"):
        load(str(folder), 16)


def test_a_missing_caption_column_is_named_with_what_is_there(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [{"file_name": "a.png", "title": "a"}])
    with pytest.raises(UsageError, match=r"wanted one of text, caption, .*title"):
        load(str(folder), 16)


def test_an_empty_caption_is_named_by_its_row(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", [{"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": " "}])
    with pytest.raises(UsageError, match="row 1: column 'text' holds no caption"):
        load(str(folder), 16)


@pytest.mark.parametrize("content", [b"", b"not a tar"])
def test_a_broken_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.tar"
    path.write_bytes(content)
    with pytest.raises((BundleError, UsageError), match=r"data\.tar"):
        load(str(path), 16)


def test_a_source_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        load("./nowhere", 16)


def test_a_mistyped_path_is_no_data_set_on_the_hub() -> None:
    for revision in (None, "main"):
        with pytest.raises(
            UsageError, match=r"data/flowers: no such file or folder; if it is .* --data-revision COMMIT"
        ):
            load("data/flowers", 16, revision=revision)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures in it"):
        load(str(tmp_path), 16)


def test_a_picture_above_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "data", [{"file_name": "a.png", "text": "a"}])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(BundleError, match=r"a\.png: not a readable picture .*exceeds limit.*; mend or remove it"):
        load(str(folder), 16)


def test_colours_are_read_off_the_pixels() -> None:
    red = np.full((8, 8, 3), (220, 20, 30), np.uint8)
    assert dominant_colour(red) == "red"
    assert dominant_colour(np.full((8, 8, 3), 255, np.uint8)) is None
    assert "red apple" in captions({"text": "apple", "subgroup": "food-fruit"}, red)
    assert all("red red" not in text for text in captions({"text": "red apple", "subgroup": "food-fruit"}, red))
