"""A bundle to measure."""

from pathlib import Path

import pytest

from tests.kdc_edge import builders


@pytest.fixture(scope="session")
def hand_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed ONNX bundle of hand-written graphs with a few hundred weights."""
    return builders.write_bundle(tmp_path_factory.mktemp("bundles") / "hand")
