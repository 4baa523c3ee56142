"""A budget is estimated with while layers are chosen, and held against what came of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from convert import export, latency
from convert.calibration import Calls
from convert.integers import TRIES
from convert.onnx import OnnxConfig, convert
from convert.schemes import Dynamic, Mixed, Scheme, Static
from kdc_edge.bundle import Bundle
from kdc_edge.errors import GateError, UsageError

SETTINGS = {"components": ("unet",), "steps": 2, "calibration_prompts": 1}
TIMED = SETTINGS | {"precision": "int8", "budget_ms": 50, "allow_drift": True}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("red apple")
    return path


def test_a_bundle_over_its_size_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path, prompts: Path, monkeypatch, in_this_process
):
    monkeypatch.setattr(export, "weights_mib", lambda path: 0.1201)
    settings = SETTINGS | {"precision": "mixed", "budget_mib": 0.12, "calibration": prompts, "keep_failed": True}
    with pytest.raises(GateError, match=r"the U-Net came to 0\.120 MiB, allowed are 0\.12; .* but for .*out\.failed"):
        convert(OnnxConfig(tiny_checkpoint, tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()
    assert Bundle.open(tmp_path / "out.failed").report["conversion"]["unet"]["weights_mib"] == 0.1201


def test_a_bundle_over_its_time_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path, prompts: Path, monkeypatch, in_this_process
):
    """As long as there is hope, layers are chosen again for less time."""
    aims, took = [], iter([1, 62, 58, 51])
    monkeypatch.setattr(latency, "call_ms", lambda path, feed: next(took))
    monkeypatch.setattr("convert.exclusions.slower", lambda found: [])
    monkeypatch.setattr("convert.exclusions.afforded", lambda found, left_ms: aims.append(left_ms) or [])
    with pytest.raises(GateError, match=r"the U-Net came to 51\.000 ms a call, allowed are 50; nothing was written"):
        convert(OnnxConfig(tiny_checkpoint, tmp_path / "out", **TIMED, calibration=prompts))
    assert aims == [49, 37, 29] and len(aims) == TRIES
    assert not (tmp_path / "out").exists()


def test_a_time_that_int8_does_not_reach_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, prompts: Path, monkeypatch, in_this_process
):
    monkeypatch.setattr(latency, "call_ms", lambda path, feed: 50.1)
    monkeypatch.setattr("convert.exclusions.slower", lambda found: [])
    with pytest.raises(UsageError, match=r"is 50; with int8 wherever it is faster a call takes 50\.10 ms here"):
        convert(OnnxConfig(tiny_checkpoint, tmp_path / "out", **TIMED, calibration=prompts))
    assert not list(tmp_path.glob("*out*"))


def test_a_budget_holds_what_is_left_out_of_it(tiny_checkpoint: Path, calls: Path, tmp_path: Path):
    arguments = (tiny_checkpoint, "unet", tmp_path)
    seen, leave = Calls(calls / "unet"), ("conv_in.weight", "conv_out.weight")
    done = export.export_component(*arguments, Mixed(0.12), seen, leave)
    kinds = {w.name: w.data_type for w in onnx.load(tmp_path / export.MODEL).graph.initializer}
    assert {kinds[name] for name in leave} == {onnx.TensorProto.FLOAT16}
    assert 0.11 < done.weights_mib <= 0.12
    with pytest.raises(UsageError, match=r"at 4 bits, those of --exclude at 16, they take 0\.\d\d"):
        export.export_component(*arguments, Mixed(0.12), seen, ("*",))


@pytest.mark.parametrize(("component", "scheme"), [("unet", Static(spare=False)), ("text_encoder", Dynamic())])
def test_integers_are_made_of_weights_beside_their_graph(
    component: str, scheme: Scheme, tiny_checkpoint: Path, calls: Path, tmp_path: Path, monkeypatch
):
    """As those of a network are that are too many for one protobuf: no file on the way holds them and the graph.

    Of one whose int8 weights are few enough again, they come back into the graph.
    """
    seen = Calls(calls / component)
    whole, apart, back = tmp_path / "whole", tmp_path / "apart", tmp_path / "back"
    export.export_component(tiny_checkpoint, component, tmp_path)
    fp32 = (tmp_path / export.MODEL).stat().st_size
    for folder, limit in ((whole, export.EXTERNAL_BYTES), (apart, 0), (back, 2 * fp32 // 3)):
        folder.mkdir()
        monkeypatch.setattr(export, "EXTERNAL_BYTES", limit)
        export.export_component(tiny_checkpoint, component, folder, scheme, seen)
    assert sorted(path.name for path in apart.iterdir()) == [export.MODEL, export.EXTERNAL]
    assert (apart / export.MODEL).stat().st_size < (whole / export.MODEL).stat().st_size
    assert [path.name for path in back.iterdir()] == [export.MODEL]
    graphs = [onnx.load(folder / export.MODEL).graph for folder in (whole, apart, back)]
    weights = [{w.name: onnx.numpy_helper.to_array(w) for w in graph.initializer} for graph in graphs]
    for found in weights[1:]:
        assert found.keys() == weights[0].keys()
        assert all(np.array_equal(found[name], weights[0][name]) for name in found)
