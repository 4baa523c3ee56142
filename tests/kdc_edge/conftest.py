"""Fixtures of the on-device package. Shared ones are read-only; `bundle_copy` is a test's own."""

import shutil
from pathlib import Path

import pytest

from tests.kdc_edge import builders


@pytest.fixture(scope="session")
def hand_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed ONNX bundle of hand-written graphs with a few hundred weights."""
    return builders.write_bundle(tmp_path_factory.mktemp("bundles") / "hand")


@pytest.fixture
def bundle_copy(hand_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hand_bundle, tmp_path / "bundle"))


@pytest.fixture
def checkpoint_copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
