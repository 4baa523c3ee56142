"""Captioned pictures from a folder, a tar, a zip: the same; damaged ones are named."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from kdc_edge.errors import BundleError, UsageError
from kdc_edge.gallery import METADATA, Gallery, rows_of


def test_a_folder_a_tar_and_a_zip_are_one(tiny_gallery: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "g.tar", "w") as tar, zipfile.ZipFile(tmp_path / "g.zip", "w") as packed:
        for path in tiny_gallery.iterdir():
            tar.add(path, path.name)
            packed.write(path, path.name)
    found = [Gallery.open(source, 32) for source in (tiny_gallery, tmp_path / "g.tar", tmp_path / "g.zip")]
    assert found[0].pixels.shape == (24, 32, 32, 3) and len({gallery.digest() for gallery in found}) == 1
    assert found[0].rows == found[2].rows
    toned = found[0].select(np.array([bool(row.tone) for row in found[0].rows]))
    assert len(toned) == 8 and toned.rows[0].base == "waving hand"


def test_sources_that_are_damaged(tiny_gallery: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_gallery, tmp_path / "broken"))
    victim = rows_of(broken)[3].file
    (broken / victim).write_bytes((broken / victim).read_bytes()[:100])
    with pytest.raises(BundleError, match=f"{victim}: not a readable picture"):
        Gallery.open(broken, 64)
    (broken / victim).unlink()
    with pytest.raises(BundleError, match=f"no file '{victim}'"):
        Gallery.open(broken, 64)
    (broken / METADATA).write_text('{"file_name": "../x.png", "text": "a"}\n', encoding="utf-8")
    with pytest.raises(BundleError, match=r"no file '\.\./x\.png' in it"):
        Gallery.open(broken, 64)
    (broken / METADATA).write_text("{}\n", encoding="utf-8")
    with pytest.raises(BundleError, match="line 1: no file_name and text"):
        rows_of(broken)
    (tmp_path / "g.tar").write_bytes(b"no tar")
    with pytest.raises(BundleError, match="not a readable tar or zip"):
        rows_of(tmp_path / "g.tar")
    with pytest.raises(UsageError, match="no such file or folder"):
        rows_of(tmp_path / "nothing")
