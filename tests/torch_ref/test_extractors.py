"""Features of many pictures: the same in parts, after a kill and by two processes; what is wrong with them is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdc_edge.drawing import Part
from kdc_edge.errors import BundleError, GateError, UsageError
from kdc_edge.gallery import Gallery
from kdc_edge.pictures import Reading, listing
from kdc_edge.torch_ref import extractors, reference
from kdc_edge.torch_ref.extractors import Extractor, gather, stream
from tests.torch_ref.seeded import picture

CALLS: list[int] = []


def means(network=lambda x: x) -> Extractor:
    """A picture's mean colour, and how often it was asked."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        CALLS.append(len(x))
        return network(x)

    def prepare(pictures: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack([p.mean((0, 1)) for p in pictures]))

    return Extractor("mean colour", "0" * 64, "none", 3, prepare, forward)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty pictures; features are kept by six, computed by two."""
    monkeypatch.setattr(extractors, "SAVED", 6)
    monkeypatch.setattr(extractors, "BATCH", 2)
    (tmp_path / "pictures").mkdir()
    for i in range(20):
        Image.fromarray(picture(8, i)).save(tmp_path / "pictures" / f"{i:02}.png")
    CALLS.clear()
    return tmp_path / "pictures"


def test_parts_are_the_whole_and_a_second_run_computes_nothing(folder: Path, tmp_path: Path) -> None:
    paths = listing(folder)
    found = gather(stream(means(), paths, Reading(), tmp_path / "f"))
    expected = np.stack([picture(8, i).mean((0, 1)) for i in range(20)])
    assert found.numbers.tolist() == list(range(20)) and found.features == pytest.approx(expected, rel=1e-5)
    assert sum(CALLS) == 20 and max(CALLS) == 2
    again = gather(stream(means(), paths, Reading(), tmp_path / "f"))
    assert sum(CALLS) == 20 and (again.features == found.features).all()


def test_what_was_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    def dies(x: torch.Tensor) -> torch.Tensor:
        if sum(CALLS) > 8:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        gather(stream(means(dies), listing(folder), Reading(), tmp_path / "f"))
    CALLS.clear()
    found = gather(stream(means(), listing(folder), Reading(), tmp_path / "f"))
    assert len(found.numbers) == 20 and sum(CALLS) == 14


def test_two_processes_share_the_parts(folder: Path, tmp_path: Path) -> None:
    paths, whole = listing(folder), gather(stream(means(), listing(folder), Reading(), tmp_path / "whole"))
    CALLS.clear()

    def other() -> None:
        """The other process works while this one waits at the end of its share."""
        waited.append(1)
        if len(waited) == 2:
            list(stream(means(), paths, Reading(), tmp_path / "shared", Part(1, 2)))

    waited: list[int] = []
    found = gather(stream(means(), paths, Reading(), tmp_path / "shared", Part(0, 2, other)))
    assert (found.features == whole.features).all()


def test_bad_pictures_are_named_or_skipped_but_never_kept(folder: Path, tmp_path: Path) -> None:
    (folder / "07.png").write_bytes(b"no picture")
    paths = listing(folder)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"1 of 20 pictures cannot be read, --skip-bad .*07\.png"):
            gather(stream(means(), paths, Reading(), tmp_path / "f"))
    found = gather(stream(means(), paths, Reading(skip_bad=True), tmp_path / "f"))
    assert found.numbers.tolist() == [i for i in range(20) if i != 7]


def test_features_that_are_not_finite(folder: Path, tmp_path: Path) -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        return x / 0 if sum(CALLS) > 4 else x

    with pytest.raises(GateError, match=r"mean colour: features of 2 pictures are not finite, the first .*04\.png"):
        gather(stream(means(broken), listing(folder), Reading(), tmp_path / "f"))


def test_mixed_sizes_are_found_after_a_resume_too(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(9)).save(folder / "19.png")
    for _ in range(2):
        with pytest.raises(UsageError, match="mixed sizes"):
            gather(stream(means(), listing(folder), Reading(), tmp_path / "f"))


def test_statistics_of_a_folder_are_cached_with_their_provenance(folder: Path, tmp_path: Path) -> None:
    first = reference.of_folder(means(), folder, Reading(), tmp_path / "cache")
    calls = sum(CALLS)
    again = reference.of_folder(means(), folder, Reading(), tmp_path / "cache")
    assert sum(CALLS) == calls and (again.sample == first.sample).all() and again.hash == first.hash
    assert first.moments.mean == pytest.approx(np.mean([picture(8, i).mean((0, 1)) for i in range(20)], axis=0))
    (stored,) = (tmp_path / "cache" / "statistics").iterdir()
    with np.load(stored, allow_pickle=False) as data:
        provenance = str(data["provenance"])
    assert '"pictures": 20' in provenance and '"extractor": "mean colour"' in provenance and first.hash in provenance
    Image.fromarray(picture(8, 99)).save(folder / "00.png")
    other = reference.of_folder(means(), folder, Reading(), tmp_path / "cache")
    assert other.hash != first.hash and sum(CALLS) == calls + 20
    stored.write_bytes(b"torn")
    Image.fromarray(picture(8, 0)).save(folder / "00.png")
    with pytest.raises(BundleError, match="remove it, it is made anew"):
        reference.of_folder(means(), folder, Reading(), tmp_path / "cache")


def test_a_gallery_s_features_are_cached(tiny_gallery: Path, tmp_path: Path) -> None:
    gallery = Gallery.open(tiny_gallery, 16)
    CALLS.clear()
    first, again = (reference.of_gallery(means(), gallery, tmp_path) for _ in range(2))
    assert (first == again).all() and sum(CALLS) == len(gallery)
