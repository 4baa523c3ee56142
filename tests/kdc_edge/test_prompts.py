"""Prompt sets: the files people have, a fixed choice, a hash."""

import json
from pathlib import Path

import pytest

from kdc_edge import prompts
from kdc_edge.errors import BundleError, UsageError

COCO = {
    "annotations": [
        {"id": 9, "image_id": 2, "caption": "a later one"},
        {"id": 3, "image_id": 2, "caption": "two dogs on a beach\n"},
        {"id": 5, "image_id": 1, "caption": "a red bus"},
    ]
}
FILES = {
    "parti.tsv": "Prompt\tCategory\na cube\tShapes\nan orb\tShapes\n",
    "some.csv": 'image,caption\n1.png,"a cube"\n2.png,an orb\n',
    "lines.txt": "a cube\n\n  an orb \n",
    "records.jsonl": '{"file_name": "1.png", "text": "a cube"}\n{"file_name": "2.png", "text": "an orb"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_people_have(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    found = prompts.load(str(tmp_path / name), tmp_path, None)
    assert (found.name, found.prompts) == (name, ("a cube", "an orb"))
    assert found.hash == prompts.PromptSet("other name", ("a cube", "an orb")).hash
    assert found.hash != prompts.PromptSet(name, ("an orb", "a cube")).hash


def test_coco_gives_one_caption_a_picture(tmp_path: Path) -> None:
    (tmp_path / "captions_val2014.json").write_text(json.dumps(COCO), encoding="utf-8")
    assert prompts.read(tmp_path / "captions_val2014.json") == ["a red bus", "two dogs on a beach"]


def test_a_choice_is_fixed_and_fewer_than_asked_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(50)), encoding="utf-8")
    first, again = (prompts.load(str(tmp_path / "p.txt"), tmp_path, 7) for _ in range(2))
    assert first == again and len(set(first.prompts)) == 7
    with pytest.raises(UsageError, match="has 50 prompts, 51 were asked for"):
        prompts.load(str(tmp_path / "p.txt"), tmp_path, 51)


def test_the_emoji_sets(tiny_gallery: Path) -> None:
    trained = prompts.load("trained", tiny_gallery, None)
    assert len(trained.prompts) == 16 and not any("skin tone" in text for text in trained.prompts)
    assert len(prompts.load("trained", tiny_gallery, 5).rows) == 5
    unseen = prompts.load("generalisation", tiny_gallery, 5)
    assert unseen.rows == (17, 22) and all("skin tone" in text for text in unseen.prompts)
    with pytest.raises(UsageError, match="16 prompts, 17 were asked for"):
        prompts.load("trained", tiny_gallery, 17)


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.csv", b"x,y\n1,2\n", "no column Prompt"),
        ("a.txt", b"\n \n", "no prompts in it"),
        ("a.txt", b"caf\xe9\n", "not UTF-8 at byte 3"),
        ("a.json", b"{}", "not readable as prompts"),
        ("a.jsonl", b"{", "not readable as prompts"),
    ],
)
def test_files_that_hold_no_prompts(name: str, data: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BundleError, match=problem):
        prompts.read(tmp_path / name)


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'trained'"):
        prompts.load("traned", tmp_path, None)
