"""The export of one component, in this process."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from convert import export
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.torch_ref.runtime import open_runtime


def test_large_weights_lie_beside_the_graph_and_a_second_export_has_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "EXTERNAL_BYTES", 0)
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
        export.export_component(tiny_checkpoint, "vae_decoder", folder)
    for name in (export.MODEL, export.EXTERNAL):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1
    latent = np.random.RandomState(0).standard_normal((2, 16, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "first" / export.MODEL)
    reference = open_runtime(Checkpoint.open(tiny_checkpoint), "vae_decoder")
    (out,) = session.run(None, {"latent_sample": latent})
    np.testing.assert_allclose(out, reference(latent_sample=latent)["sample"], atol=1e-5)
