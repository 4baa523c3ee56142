"""What the converters' tests share."""

from dataclasses import replace
from pathlib import Path

import pytest

from convert import calibration, checks, exclude, onnx
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.spec import pipeline_spec


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions without the cost of another import of torch for each component."""
    for module in (checks, exclude, onnx):
        monkeypatch.setattr(module, "in_own_process", lambda _, fn, *args, **kwargs: fn(*args, **kwargs))


@pytest.fixture(scope="module")
def calls(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs met while two prompts are drawn."""
    folder = tmp_path_factory.mktemp("calls")
    spec = replace(pipeline_spec(Checkpoint.open(tiny_checkpoint)), steps=5)
    seen = calibration.record(tiny_checkpoint, spec, ["red apple", "green heart"], folder)
    assert (seen["prompts"], seen["calls"]) == (2, 8)
    return folder
