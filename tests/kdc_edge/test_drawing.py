"""Drawings: the pictures `Pipeline.generate` makes, resumable, with prompts and seeds; and folders that are read badly."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdc_edge import drawing
from kdc_edge.drawing import How, Part, draw, draw_all, plan
from kdc_edge.errors import BundleError, UsageError
from kdc_edge.pictures import Reading, listing
from kdc_edge.pipeline import Pipeline
from kdc_edge.prompts import PromptSet
from tests.kdc_edge import builders

PROMPTS = PromptSet("three", ("red apple", "green heart", "rocket"))


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.open(builders.write_bundle(tmp_path_factory.mktemp("bundles") / "hand"))


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_the_one_generate_draws(pipe: Pipeline, sampler: str, guidance: float) -> None:
    how = How(5, sampler, 4, guidance)
    expected = pipe.generate(list(PROMPTS.prompts), seed=5, steps=4, guidance=guidance, sampler=sampler)
    one_by_one = [draw(pipe, [text], [5 + i], how)[0] for i, text in enumerate(PROMPTS.prompts)]
    assert [np.asarray(image).tolist() for image in one_by_one] == [np.asarray(image).tolist() for image in expected]
    together = draw(pipe, PROMPTS.prompts, [5, 6, 7], how)
    for a, b in zip(together, expected, strict=True):
        assert np.abs(np.asarray(a, int) - np.asarray(b, int)).max() <= 1


def test_a_folder_is_resumed_and_its_pictures_say_what_they_are(pipe: Pipeline, tmp_path: Path) -> None:
    wanted = plan("hand", "id", "bundle", "ort", How.of(pipe, 3, steps=2), PROMPTS)
    draw_all(pipe, wanted, tmp_path, batch=2)
    assert drawing.read(tmp_path) == wanted
    with Image.open(tmp_path / "000001.png") as opened:
        assert (opened.text["prompt"], opened.text["seed"]) == ("green heart", "4")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    gone = tmp_path / "000002.png"
    data = gone.read_bytes()
    gone.unlink()
    draw_all(pipe, wanted, tmp_path, batch=2)
    assert gone.read_bytes() == data
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path != gone)
    with pytest.raises(UsageError, match="holds other drawings"):
        draw_all(pipe, plan("hand", "id", "bundle", "ort", How.of(pipe, 4, steps=2), PROMPTS), tmp_path, batch=2)


def test_processes_share_the_work(pipe: Pipeline, tmp_path: Path) -> None:
    wanted = plan("hand", "id", "bundle", "ort", How.of(pipe, 0, steps=1), PROMPTS)
    waits: list[int] = []
    draw_all(pipe, wanted, tmp_path, 1, Part(1, 2, lambda: waits.append(1)))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["000001.png"] and len(waits) == 2
    draw_all(pipe, wanted, tmp_path, 1, Part(0, 2, lambda: waits.append(0)))
    assert len(list(tmp_path.glob("*.png"))) >= 2


def test_values_that_cannot_be_meant(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="steps is 0"):
        How.of(pipe, 0, steps=0)
    with pytest.raises(UsageError, match="guidance nan"):
        How.of(pipe, 0, guidance=float("nan"))
    with pytest.raises(UsageError, match="seed is -1"):
        plan("hand", "id", "bundle", "ort", How(-1, "ddim", 1, 1.0), PROMPTS)
    (tmp_path / drawing.INDEX).write_text('{"format": 9}', encoding="utf-8")
    with pytest.raises(BundleError, match="format 9"):
        drawing.read(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(6):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_corrupt_pictures_are_named_and_counted(folder: Path) -> None:
    for name in ("1.png", "4.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:40])
    paths = listing(folder)
    reading = Reading()
    reading.expect(paths)
    numbers, pictures = reading.batch(paths)
    assert numbers == [0, 2, 3, 5] and [int(p[0, 0, 0]) for p in pictures] == numbers
    with pytest.raises(BundleError, match=r"2 of 6 pictures cannot be read, --skip-bad .*1\.png.*4\.png"):
        reading.finish(len(paths))
    Reading(bad=reading.bad, skip_bad=True).finish(len(paths))


def test_folders_that_are_empty_too_small_or_of_mixed_sizes(folder: Path, tmp_path_factory) -> None:
    with pytest.raises(UsageError, match="has 6 pictures, 7 were asked for"):
        listing(folder, at_least=7)
    with pytest.raises(UsageError, match="no pictures in it"):
        listing(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UsageError, match="no such folder"):
        listing(folder / "nothing")
    Image.new("L", (9, 7)).save(folder / "6.png")
    paths = listing(folder)
    reading = Reading()
    reading.expect(paths)
    with pytest.raises(UsageError, match=r"mixed sizes: .*0\.png is 8×8, .*6\.png 9×7; --size"):
        reading.batch(paths)
    sized = Reading(size=4)
    sized.expect(paths)
    assert {picture.shape for picture in sized.batch(paths)[1]} == {(4, 4, 3)}
