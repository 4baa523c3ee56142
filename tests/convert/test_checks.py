"""What is kept of a bundle that draws no pictures, though every component answers as PyTorch does."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import golden
from convert.estimate import Estimate
from convert.settings import ConvertConfig, carry_out, finish
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import GateError
from kdc_edge.manifest import Manifest

PIXELS = {"NaN": np.nan, "black": -1.0, "white": 1.0}


@pytest.fixture(params=PIXELS)
def spoiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The decoder answers so while the golden pictures are made."""
    real = golden.open_runtime

    def spoil(bundle: Bundle, component: str, runtime: str) -> Any:
        opened = real(bundle, component, runtime)
        if component == "vae_decoder":
            answer = type(opened).__call__
            pixel = np.float32(PIXELS[request.param])
            broken = {"__call__": lambda self, **x: {k: np.full_like(v, pixel) for k, v in answer(self, **x).items()}}
            opened.__class__ = type("Broken", (type(opened),), broken)
        return opened

    monkeypatch.setattr(golden, "open_runtime", spoil)
    return request.param


def test_a_bundle_whose_pictures_are_broken_is_kept_with_its_report(
    spoiled: str, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, in_this_process
):
    made = Bundle.open(tiny_bundle)
    config = ConvertConfig(tiny_checkpoint, tmp_path / "out", keep_failed=True)

    def build(folder: Path) -> tuple[Manifest, dict[str, Any]]:
        shutil.copytree(
            tiny_bundle, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("golden", "*.md", "*t.json")
        )
        draft, checkpoint = replace(made.manifest, files={}), Checkpoint.open(tiny_checkpoint)
        told = {"conversion": made.report["conversion"]}
        return finish(config, checkpoint, folder, draft, "ort", dict.fromkeys(draft.components, 90.0), lambda _: told)

    says = {"NaN": "the bundle's own pictures: the decoder returned NaN or infinity", "black": "the picture is flat"}
    with pytest.raises(GateError, match=rf"{says.get(spoiled, 'the picture is flat')}.*but for .*out\.failed"):
        carry_out(config, Estimate({"unet": 1}, 1), (), "onnx", build)
    assert not (tmp_path / "out").exists()
    kept = Bundle.open(tmp_path / "out.failed")  # its manifest, and the hash of every file
    assert all(parity["passed"] for parity in kept.report["parity"].values())
    broken = spoiled == "NaN"
    assert str(kept.report["picture"]).startswith("broken: the decoder returned NaN") == broken
    assert ("golden/vectors.safetensors" in kept.manifest.files) != broken
    assert (kept.path / "README.md").exists()
