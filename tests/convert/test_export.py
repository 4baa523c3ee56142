"""The export of one component, in this process."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from convert import checks, export, rewrites
from convert import onnx as onnx_converter
from convert.schemes import Dynamic, Scheme, Weights
from kdc_edge.bundle import Bundle
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError
from kdc_edge.pipeline import COMPONENTS, Pipeline
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


@pytest.fixture(scope="module")
def updated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint after some more training: every weight is another."""
    folder = tmp_path_factory.mktemp("updated") / "checkpoint"
    shutil.copytree(tiny_checkpoint, folder)
    for path in folder.rglob("*.safetensors"):
        weights = load_file(path)
        for number, name in enumerate(weights):
            noise = np.random.RandomState(number).standard_normal(weights[name].shape)
            weights[name] += (0.02 * noise).astype(weights[name].dtype)
        save_file(weights, path, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def unets(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The U-Net, with attention in standard operators (False) and fused (True)."""
    folders = {fused: tmp_path_factory.mktemp(f"fused-{fused}") for fused in (False, True)}
    for fused, folder in folders.items():
        export.export_component(tiny_checkpoint, "unet", folder, fused=fused)
    return folders


def test_an_update_changes_weights_and_neither_graph_nor_names(
    unets: dict[bool, Path], tiny_checkpoint: Path, updated: Path, tmp_path: Path
):
    """So that a device may take new weights into what it compiled from the old ones."""
    export.export_component(updated, "unet", tmp_path)
    assert_same_but_weights(unets[False] / export.MODEL, tmp_path / export.MODEL)
    folders = [tmp_path / "before", tmp_path / "after"]
    for checkpoint, folder in zip((tiny_checkpoint, updated), folders, strict=True):
        folder.mkdir()
        export.export_component(checkpoint, "text_encoder", folder, Dynamic())
    assert_same_but_weights(*(folder / export.MODEL for folder in folders))


SHIPPED = Path(__file__).parents[2] / "assets" / "emoji-64"


@pytest.mark.slow
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("scheme", [None, Weights(16), Weights(8), Weights(4, 32)], ids=str)
def test_the_shipped_students_share_graphs_and_names(component: str, scheme: Scheme, tmp_path: Path):
    """Two trained versions of one student; only the U-Net was trained between them."""
    models = []
    for name in ("student", "fewstep"):
        (tmp_path / name).mkdir()
        export.export_component(SHIPPED / name, component, tmp_path / name, scheme, fused=True)
        models.append(tmp_path / name / export.MODEL)
    assert_same_but_weights(*models, trained=component == "unet")


def assert_same_but_weights(before: Path, after: Path, trained: bool = True) -> None:
    """Names, shapes and types of the weights, and all else; if `trained`, every weight has other numbers."""
    models = [onnx.load(path) for path in (before, after)]
    weights = [{init.name: init for init in model.graph.initializer} for model in models]
    described = [{name: (tuple(init.dims), init.data_type) for name, init in each.items()} for each in weights]
    assert described[0] == described[1]
    same = [name for name in weights[0] if ".weight" in name and weights[0][name] == weights[1][name]]
    assert not (trained and [name for name in same if "zero_point" not in name])
    for model in models:
        del model.graph.initializer[:]
    assert models[0] == models[1]


@pytest.mark.parametrize("fused", [False, True])
def test_attention_in_standard_operators_or_in_one(fused: bool, unets: dict[bool, Path], tiny_checkpoint: Path):
    model = onnx.load(unets[fused] / export.MODEL)
    count = Counter(node.op_type for node in model.graph.node)
    attentions = 6  # three blocks, self and cross
    assert count["MultiHeadAttention"] == (attentions if fused else 0)
    assert count["Softmax"] == (0 if fused else attentions)
    assert {entry.domain for entry in model.opset_import} == ({"", rewrites.CONTRIB} if fused else {""})
    assert count["Shape"] == 1  # the batch, which the timestep is expanded to
    rng = np.random.RandomState(0)
    feed = {
        "sample": rng.standard_normal((3, 16, 8, 8)).astype(np.float32),
        "timestep": np.array(500, np.float32),
        "encoder_hidden_states": rng.standard_normal((3, 77, 32)).astype(np.float32),
    }
    (out,) = onnxruntime.InferenceSession(unets[fused] / export.MODEL).run(None, feed)
    reference = open_runtime(Checkpoint.open(tiny_checkpoint), "unet")
    np.testing.assert_allclose(out, reference(**feed)["out_sample"], atol=1e-4)


@pytest.fixture(scope="module")
def any_size(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fp32 bundle whose U-Net and decoder take latents of any size."""
    folder = tmp_path_factory.mktemp("any-size") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        for module in (onnx_converter, checks):
            patch.setattr(module, "in_own_process", lambda _, fn, *args, **kwargs: fn(*args, **kwargs))
        onnx_converter.convert(onnx_converter.OnnxConfig(tiny_checkpoint, folder, any_size=True))
    return folder


def test_pictures_of_any_size_are_pytorchs(any_size: Path, tiny_bundle: Path, tiny_checkpoint: Path):
    bundle, fixed = Bundle.open(any_size), Bundle.open(tiny_bundle)
    for name, component in bundle.manifest.components.items():
        assert component.macs == fixed.component(name).macs  # counted at the model's own size
    calls = bundle.report["parity"]["unet"]["calls_db"]
    assert len(calls) == len(fixed.report["parity"]["unet"]["calls_db"]) + 1  # a wider one
    components = {name: open_runtime(Checkpoint.open(tiny_checkpoint), name, any_size=True) for name in COMPONENTS}
    with Pipeline.open(bundle) as pipe:
        reference = Pipeline(pipe.spec, pipe.tokenizer, components)
        reference.multiple = pipe.multiple
        for height, width in ((96, 64), (48, 80), (64, 64)):
            asked = {"seed": 3, "steps": 3, "height": height, "width": width}
            ours, theirs = (each.generate("red apple", **asked) for each in (pipe, reference))
            assert ours.size == (width, height)
            assert np.abs(np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)).max() <= 1
    with Pipeline.open(bundle, "fake") as pipe:
        assert pipe.generate("red apple", steps=1, height=96, width=32).size == (32, 96)


def test_sizes_that_cannot_be_drawn(any_size: Path, tiny_bundle: Path):
    with Pipeline.open(any_size) as pipe:
        for height in (40, 16, 0, -32):
            with pytest.raises(UsageError, match=f"height and width are {height} and 64, must be multiples of 16"):
                pipe.generate("red apple", height=height)
    with (
        Pipeline.open(tiny_bundle) as pipe,
        pytest.raises(UsageError, match="draws 64×64 only; convert with --any-size"),
    ):
        pipe.generate("red apple", width=128)


def test_what_only_resembles_attention_is_left_alone():
    """A softmax of something that is no product, and one whose output two read."""
    text = """<ir_version: 9, opset_import: ["" : 18]>
    g (float[2, 4] x, float[4, 4] w) => (float[2, 4] y, float[2, 4] z, float[2, 4] p) {
        a = Softmax <axis = -1> (x)
        y = MatMul (a, w)
        m = MatMul (x, w)
        p = Softmax <axis = -1> (m)
        z = MatMul (p, w)
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert not list(rewrites.attentions(model.graph))
    rewrites.rewrite(model, fused=True)
    assert [node.op_type for node in model.graph] == ["Softmax", "MatMul", "MatMul", "Softmax", "MatMul"]
