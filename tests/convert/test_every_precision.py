"""Every precision, and every target but the default, from a checkpoint to a bundle that draws pictures."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from convert import export
from convert.onnx import OnnxConfig, convert
from convert.rewrites import CONTRIB
from convert.schemes import PRECISIONS, Precision, calibrated
from convert.targets import TARGETS
from kdc_edge.bundle import Bundle
from kdc_edge.pipeline import Pipeline
from kdc_edge.ports import zeros
from kdc_edge.runtimes import open_runtime

MIB = {"fp32": 0.7, "fp16": 0.36, "int8-weights": 0.2, "int4-weights": 0.14, "mixed": 0.17, "int8": 0.21}  # of weights
CASES = [(precision, "cpu") for precision in get_args(Precision)] + [("fp32", "web"), ("int8", "mobile")]


def test_every_precision_and_target_is_here():
    assert {precision for precision, _ in CASES} == set(PRECISIONS)
    assert {target for _, target in CASES} == set(TARGETS) - {"cuda"}  # tests/convert/test_onnx.py


@pytest.fixture(scope="module")
def traces() -> dict[str, ir.Model]:
    """Graphs by the network that torch traced, before anything is done with them."""
    return {}


@pytest.fixture
def traced_once(traces: dict[str, ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes most of a conversion, and is the same for every precision and target."""
    real = export._trace

    def trace(network: torch.nn.Module, *arguments: object) -> ir.Model:
        name = type(network).__name__
        if name not in traces:
            traces[name] = real(network, *arguments)
        return traces[name].clone()

    monkeypatch.setattr(export, "_trace", trace)


@pytest.mark.parametrize(("precision", "target"), CASES, ids=map("-".join, CASES))
def test_from_a_checkpoint_to_pictures(
    precision: str, target: str, tiny_checkpoint: Path, tmp_path: Path, traced_once, in_this_process
):
    settings = {"precision": precision, "target": target, "steps": 2, "guidance": 1.0, "allow_drift": True}
    if any(map(calibrated, PRECISIONS[precision].values())):
        (tmp_path / "prompts.txt").write_text("red apple\ngreen heart")
        settings |= {"calibration": tmp_path / "prompts.txt", "calibration_prompts": 2}
    if precision == "mixed":
        settings |= {"budget_mib": 0.12, "exclude": ("conv_in.weight",)}
    report = convert(OnnxConfig(tiny_checkpoint, tmp_path / "bundle", **settings))
    made = Bundle.open(tmp_path / "bundle")
    assert (made.id, made.manifest.precision, made.manifest.target) == (report["id"], precision, target)
    assert sum(took["weights_mib"] for took in report["conversion"].values()) < MIB[precision]
    for name in made.manifest.components:
        runtime = open_runtime(made, name, "ort")
        for array in runtime(**zeros(runtime.ports.inputs, {"batch": 2})).values():
            assert np.isfinite(array).all()
        domains = {entry.domain for entry in onnx.load(made.path / name / "model.onnx").opset_import}
        assert target == "cpu" or CONTRIB not in domains
    with Pipeline.open(made) as pipe:
        assert np.asarray(pipe.generate("red apple", steps=2)).std() > 1
