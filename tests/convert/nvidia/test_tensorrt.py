"""convert.tensorrt from the command line: a whole bundle, what is refused, graphs that stay the same as weights change."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from convert import tensorrt
from convert.calibration import Calls
from convert.nvidia.lint import lint_file
from convert.nvidia.quantise import fp8_values, restored
from convert.nvidia.signature import signature
from convert.schemes import Typed, floor_db
from convert.typed import export_typed
from kdc_edge import Bundle, Pipeline
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.differences import snr_db
from kdc_edge.runtimes.engines import build
from kdc_edge.runtimes.refits import differences
from kdc_edge.torch_ref.networks import load_network

ROOT = Path(__file__).resolve().parents[3]
PRECISIONS = tuple(tensorrt.PRECISIONS)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        tensorrt.main(list(arguments))
    return ended.value.code


def test_the_whole_bundle_is_sound_and_draws_what_it_promises(tiny_trt_bundle: Path):
    bundle = Bundle.open(tiny_trt_bundle)
    manifest, report = bundle.manifest, bundle.report
    assert (manifest.runtime, manifest.target, manifest.precision) == ("tensorrt", "cuda", "fp16")
    assert report["parity_by"].startswith("emulated")
    for name, component in manifest.components.items():
        found, path = report["parity"][name], bundle.path / component.files[0]
        assert found["passed"] and found["snr_db"] >= found["floor_db"] == floor_db(Typed())
        assert lint_file(path) == []
        assert component.options["profile"] == {"batch": [1, 2, 2]}
        assert set(component.quantization) == {"weights", "compute", "method", "calibration"}
        assert {"left", "islands", "peak_mib"} <= set(report["conversion"][name])
    assert "conv_in.weight" in json.loads((bundle.path / "unet" / "weights.json").read_text())["weights"]
    with Pipeline.open(bundle.path, "emulated") as pipe:
        assert pipe.generate("red apple").size == (64, 64)


def test_every_component_builds_in_tensorrt_rtx(tiny_trt_bundle: Path):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; it exists for Linux on x86-64")
    bundle = Bundle.open(tiny_trt_bundle)
    for name, component in bundle.manifest.components.items():
        path, profile = bundle.path / component.files[0], component.options["profile"]
        engine, _ = build(trt, path, component.inputs, profile, target=trt.ComputeCapability.SM86)
        assert len(engine) > 1000, name


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--build"], 3, "it comes with JetPack"),
        (["--precision", "int8"], 2, "--calibration FILE"),
        (["--max-batch", "1"], 2, "takes 2"),
        (["--like", "absent"], 5, "no such folder"),
        (["--precision", "int4"], 2, "int4"),
    ],
)
def test_what_is_refused_before_anything_is_written(
    arguments: list[str],
    code: int,
    said: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    found = run("--model", str(tiny_checkpoint), "-o", str(tmp_path / "out"), *arguments)
    assert (found, said in capsys.readouterr().err) == (code, True)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_student_has_the_same_graph(
    tiny_checkpoint: Path, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """So an engine of one takes the weights of the other: a decoder in int8, before and after its weights moved."""
    scheme = Typed(weights="int8", products=True, spare=False)
    found, arrays = [], []
    for version in ("before", "after"):
        if version == "after":
            monkeypatch.setattr("kdc_edge.torch_ref.networks.load_network", _moved)
        folder = tmp_path / version
        export_typed(tiny_checkpoint, "vae_decoder", folder, scheme, Calls(calls / "vae_decoder"), narrow_ports=True)
        found.append(signature(folder / "model.onnx"))
        graph = onnx.load(folder / "model.onnx").graph
        arrays.append({tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer})
    assert differences(*found) == []
    assert list(found[0]["weights"]) == list(found[1]["weights"])
    weights = [name for name in found[0]["weights"] if name.endswith("weight")]
    assert weights and all(not np.array_equal(arrays[0][name], arrays[1][name]) for name in weights)


def _moved(checkpoint: Checkpoint, component: str) -> torch.nn.Module:
    network = load_network(checkpoint, component)
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data *= 1 + 0.05 * torch.randn_like(parameter)
    return network


def test_like_takes_over_what_an_earlier_bundle_left_wide(tiny_trt_bundle: Path, tiny_checkpoint: Path, tmp_path: Path):
    job = tensorrt.plan(tensorrt.TensorrtConfig(tiny_checkpoint, tmp_path, like=tiny_trt_bundle))
    islands = Bundle.open(tiny_trt_bundle).report["conversion"]["unet"]["islands"]
    assert job.kept["unet"]["islands"] == islands != {}
    assert not any(scheme.spare for scheme in job.schemes.values())


def test_fp8_weights_are_rounded_relatively():
    """e4m3 has four significant bits: uniform error in a binade, 31.5 dB, whatever the channel's size."""
    weight = np.random.RandomState(0).standard_normal((64, 512)).astype(np.float32)
    weight *= np.logspace(-3, 0, 64, dtype=np.float32)[:, None]
    found = restored(fp8_values(weight))
    worst = min(snr_db(row, out) for row, out in zip(weight, found, strict=True))
    assert 30 < worst < 33


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_shipped_student_converts_and_builds(precision: str, tmp_path: Path):
    """Floors, linter and golden pictures are the converter's; NVIDIA's parser and builder then take every component."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; it exists for Linux on x86-64")
    assets, folder = ROOT / "assets" / "emoji-64", tmp_path / precision
    arguments = ["--model", str(assets / "fewstep"), "--precision", precision, "-o", str(folder)]
    assert run(*arguments, "--calibration", str(assets / "calibration.txt")) == 0
    bundle = Bundle.open(folder)
    target = trt.ComputeCapability.SM89 if precision == "fp8" else trt.ComputeCapability.SM86
    for name, component in bundle.manifest.components.items():
        path, profile = bundle.path / component.files[0], component.options["profile"]
        engine, _ = build(trt, path, component.inputs, profile, target=target)
        size, found = len(engine) / 2**20, bundle.report["parity"][name]["snr_db"]
        print(f"\n{precision} {name}: {found:.1f} dB, plan of tensorrt-rtx {size:.1f} MiB")
